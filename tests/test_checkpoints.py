"Checkpoints beyond this package: loaded in a process that lacks it, and handled from the command line."
import json, os, shutil, subprocess, sys
from pathlib import Path
import pytest, torch
from hybrid_nb.checkpoints import best_checkpoint, find_checkpoints
from hybrid_nb.context import ContextConfig, ContextForCausalLM
from hybrid_nb.model import HybridConfig, HybridForCausalLM, mixers, register
from hybrid_nb.patterns import blocks
from hybrid_nb.train import train_run
from lab import lab_in

FRESH = """
import sys
class Gone:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("hybrid_nb", "fastcore", "numba"): raise ImportError(f"{name} is not there")
sys.meta_path.insert(0, Gone())
import json, torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
torch.set_num_threads(1)
def load(folder): return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
told, ids, models = {}, torch.load("ids.pt", weights_only=True), {}
for name in "hybrid", "copy", "context":
    models[name] = m = load(name)
    told[name] = [m(ids).logits.tolist(), m.generate(ids, max_new_tokens=6, do_sample=False).tolist()]
told["again"] = [models["hybrid"](ids).logits.tolist()] # after the code was loaded a second time
m = models["hybrid"].train(); loss = m(ids, labels=ids).loss; loss.backward(); told["loss"] = loss.item()
m.save_pretrained("saved"); told["saved"] = [load("saved")(ids).logits.tolist()]
write = pipeline("text-generation", sys.argv[1], trust_remote_code=True)
told["text"] = write("the", max_new_tokens=4, do_sample=False, return_full_text=False)[0]["generated_text"]
try: load("own")
except Exception as e: told["own"] = str(e)
told["modules"] = [k for k in sys.modules if k.split(".")[0] in ("hybrid_nb", "fastcore", "numba")]
json.dump(told, open("told.json", "w"))
"""

@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "A folder with a small run."
    folder = tmp_path_factory.mktemp("lab")
    (folder/"corpus.jsonl").write_text("".join(json.dumps(dict(text=f"the {a} saw the {b} near the house. " * 4)) + "\n" for a in "cat dog rat".split() for b in "one two red old".split() for _ in range(4)))
    with lab_in(folder):
        train_run("AM", study="s", progress=False, corpus="corpus.jsonl", vocab_size=280, hidden_size=32, num_attention_heads=2, state_size=4, length=16, batch_size=4,
                  steps=6, eval_every=3, eval_batches=1, checkpoint_every=3, recall_documents=0, device="cpu")
        yield folder

def test_a_checkpoint_loads_where_the_package_is_not(lab):
    "Same logits, same greedy text with a cache, a gradient, a pipeline; two folders with the same code in one process."
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, num_attention_heads=4, vocab_size=100, dropout=0.)
    models = dict(hybrid=HybridForCausalLM(HybridConfig(pattern="AMSGWFL", sliding_window=7, ssd_head_dim=16, **sizes)),
                  context=ContextForCausalLM(ContextConfig(vocab_size=100, embedding_size=16, context_dim=16, network_size=32, depth=2)))
    for name, m in models.items(): m.eval().save_pretrained(name)
    shutil.copytree("hybrid", "copy")
    blocks["Q"], mixers["Q"] = None, None
    try:
        register("Q", "no change", cache="none")(type("Same", (torch.nn.Identity,), {"__init__": lambda self, c, i: super(type(self), self).__init__(), "forward": lambda self, x, **kw: x}))
        HybridForCausalLM(HybridConfig(pattern="AQ", **sizes)).save_pretrained("own")
    finally: del blocks["Q"], mixers["Q"]
    ids = torch.randint(1, 100, (2, 20))
    torch.save(ids, "ids.pt")
    Path("fresh.py").write_text(FRESH)
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | dict(HF_MODULES_CACHE=str(lab/"modules"), HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")
    best = best_checkpoint()
    r = subprocess.run([sys.executable, "fresh.py", str(best)], capture_output=True, text=True, env=env)
    assert r.returncode == 0, r.stderr[-3000:]
    told = json.loads(Path("told.json").read_text())
    with torch.no_grad(): want = {k: m(ids).logits for k, m in models.items()}
    for name in "hybrid copy context again saved".split(): torch.testing.assert_close(torch.tensor(told[name][0]), want["context" if name == "context" else "hybrid"], atol=1e-6, rtol=0)
    for name in "hybrid", "copy", "context":
        assert told[name][1] == models["context" if name == "context" else "hybrid"].generate(ids, max_new_tokens=6, do_sample=False).tolist()
    assert abs(told["loss"] - models["hybrid"](ids, labels=ids).loss.item()) < 1e-5 and told["text"] and told["modules"] == []
    assert "pattern with Q: the code of Q is its author's own and not in this folder" in told["own"]

def command(capfd, name, *args):
    "A console script in this process: exit code, what it printed, what it wrote to standard error."
    import hybrid_nb.checkpoints, runpy
    Path(name).write_text(f"from hybrid_nb.checkpoints import {name}\n{name}()\n")
    capfd.readouterr()
    with pytest.MonkeyPatch.context() as mp:
        mp.setattr(sys, "argv", [name, *args])
        try: runpy.run_path(name, run_name="__main__"); code = 0
        except SystemExit as e: code = e.code or 0
    return code, *capfd.readouterr()

def test_commands(lab, capfd):
    code, out, _ = command(capfd, "hybrid_checkpoints", "--json", "--sort", "step")
    rows = json.loads(out)
    assert code == 0 and [(r["study"], r["run"], r["pattern"], r["step"], r["intact"]) for r in rows] == [("s", "AM-s0", "AM", 3, True), ("s", "AM-s0", "AM", 6, True)]
    assert [r["best"] for r in rows].count(True) == 1 and all(r["parameters"] > 10_000 and r["val_loss"] > 0 for r in rows)
    code, out, _ = command(capfd, "hybrid_checkpoints", "runs/s")
    assert code == 0 and "AM-s0" in out and "2 checkpoints under runs/s" in out
    shutil.copytree("runs/s", "runs/t")
    Path("runs/t/AM-s0/checkpoints/step_00000006/config.json").write_bytes(b"{")
    code, out, _ = command(capfd, "hybrid_checkpoints", "runs/t", "--prune")
    assert code == 0 and "1 checkpoint under runs/t" in out and "would go; delete with --yes" in out and len(find_checkpoints("runs/t")) == 2
    code, out, _ = command(capfd, "hybrid_checkpoints", "runs/t", "--prune", "--yes")
    assert code == 0 and "deleted" in out and find_checkpoints("runs/t").step.tolist() == [3]
    for args, message in [(["no/such"], "folder 'no/such': no such folder"), (["--sort", "loss"], "sort 'loss': unknown"), (["--yes"], "yes: goes with --prune"), (["--limit", "x"], "invalid int value")]:
        code, out, err = command(capfd, "hybrid_checkpoints", *args)
        assert code == 2 and message in err and len(err.strip().splitlines()) == 1 and not out
    code, _, err = command(capfd, "hybrid_import", "runs/s/AM-s0/checkpoints/step_00000003", "out")
    assert code == 2 and "a model of type 'hybrid_nb', which is no pattern" in err and not Path("out").exists()
