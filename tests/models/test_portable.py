"Checkpoints beyond this package: loaded in a process that lacks it, and those whose code is older than it."
import json, os, shutil, subprocess, sys, tarfile
from pathlib import Path
import pytest, torch
from transformers import AutoModelForCausalLM
from hybrid_nb.models.config import HybridConfig
from hybrid_nb.models.context_config import ContextConfig
from hybrid_nb.models.context_vector import ContextForCausalLM
from hybrid_nb.models.modeling import HybridForCausalLM
from hybrid_nb.models.registry import register
from hybrid_nb.training.optim import decayed
from hybrid_nb.training.runner import train_run
from helpers.lab import lab_in
from helpers.small_models import letters_restored

GONE = """
import sys
class Gone:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("hybrid_nb", "fastcore", "numba"): raise ImportError(f"{name} is not there")
sys.meta_path.insert(0, Gone())
import json, torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
torch.set_num_threads(1)
def load(folder): return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
"""

FRESH = GONE + """
told, ids, models = {}, torch.load("ids.pt", weights_only=True), {}
for name in "hybrid", "copy", "context":
    models[name] = m = load(name)
    told[name] = [m(ids).logits.tolist(), m.generate(ids, max_new_tokens=6, do_sample=False).tolist()]
told["again"] = [models["hybrid"](ids).logits.tolist()] # after the code was loaded a second time
m = models["hybrid"].train(); loss = m(ids, labels=ids).loss; loss.backward(); told["loss"] = loss.item()
from transformers import Trainer
told["decayed"] = Trainer.get_decay_parameter_names(None, m)
m.save_pretrained("saved"); told["saved"] = [load("saved")(ids).logits.tolist()]
write = pipeline("text-generation", sys.argv[1], trust_remote_code=True)
told["text"] = write("the", max_new_tokens=4, do_sample=False, return_full_text=False)[0]["generated_text"]
try: load("own")
except Exception as e: told["own"] = str(e)
told["modules"] = [k for k in sys.modules if k.split(".")[0] in ("hybrid_nb", "fastcore", "numba")]
json.dump(told, open("told.json", "w"))
"""

OLD = GONE + """
from transformers import Cache
cached = hasattr(Cache, "is_recording_past") # which the old code asks for
want = json.load(open("want.json"))
ids, found = torch.tensor(want["ids"]), {}
for name in "hybrid", "context":
    m = load(name).eval()
    with torch.no_grad(): found[name] = m(ids, use_cache=cached).logits[0, -1].tolist()
    m.save_pretrained(f"{name}-saved")
    again = load(f"{name}-saved").eval()
    with torch.no_grad(): found[f"{name}-saved"] = again(ids, use_cache=cached).logits[0, -1].tolist()
json.dump(found, open("found.json", "w"))
"""


def run_without_the_package(source, folder, *args):
    "Run a script in `folder`, in a process that finds neither this package nor fastcore or numba."
    (folder/"fresh.py").write_text(source)
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    env |= dict(HF_MODULES_CACHE=str(folder/"modules"), HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")
    r = subprocess.run([sys.executable, "fresh.py", *args], capture_output=True, text=True, env=env, cwd=folder)
    assert r.returncode == 0, r.stderr[-3000:]


class Same(torch.nn.Module):
    "A mixer of a user's own."
    def __init__(self, config, layer_idx): super().__init__()
    def forward(self, x, **context): return x


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "A folder with models, and the checkpoint of a small run."
    folder = tmp_path_factory.mktemp("lab")
    texts = [f"the {a} saw the {b} near the house. " * 4 for a in "cat dog rat".split()
             for b in "one two red old".split() for _ in range(4)]
    (folder/"corpus.jsonl").write_text("".join(json.dumps(dict(text=t)) + "\n" for t in texts))
    with lab_in(folder):
        train_run("AM", study="s", progress=False, corpus="corpus.jsonl", vocab_size=280, hidden_size=32,
                  num_attention_heads=2, state_size=4, length=16, batch_size=4, steps=6, eval_every=3, eval_batches=1,
                  checkpoint_every=3, recall_documents=0, device="cpu")
        yield folder


def small_models():
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, num_attention_heads=4, vocab_size=100, dropout=0.)
    hybrid = HybridConfig(pattern="AMSGWFL", sliding_window=7, ssd_head_dim=16, **sizes)
    context = ContextConfig(vocab_size=100, embedding_size=16, context_dim=16, network_size=32, depth=2)
    return dict(hybrid=HybridForCausalLM(hybrid).eval(), context=ContextForCausalLM(context).eval())


def test_a_checkpoint_loads_where_the_package_is_not(lab):
    "Same logits, same greedy text with a cache, a gradient, a pipeline; two folders with the same code in one process."
    models = small_models()
    for name, m in models.items(): m.save_pretrained(name)
    shutil.copytree("hybrid", "copy")
    with letters_restored():
        register("Q", "no change", cache="none")(Same)
        config = HybridConfig(pattern="AQ", hidden_size=32, num_attention_heads=4, vocab_size=100, dropout=0.)
        HybridForCausalLM(config).save_pretrained("own")
    ids = torch.randint(1, 100, (2, 20))
    torch.save(ids, "ids.pt")
    run_without_the_package(FRESH, lab, "runs/s/AM-s0/checkpoints/step_00000006")
    told = json.loads(Path("told.json").read_text())
    with torch.no_grad(): want = {k: m(ids).logits for k, m in models.items()}
    for name in "hybrid copy context again saved".split():
        of = "context" if name == "context" else "hybrid"
        torch.testing.assert_close(torch.tensor(told[name][0]), want[of], atol=1e-5, rtol=0)
    for name in "hybrid", "copy", "context": # FRESH generates with a cache
        m = models["context" if name == "context" else "hybrid"]
        assert told[name][1] == m.generate(ids, max_new_tokens=6, do_sample=False).tolist()
    assert abs(told["loss"] - models["hybrid"](ids, labels=ids).loss.item()) < 1e-5
    assert told["text"] and told["modules"] == []
    assert decayed(models["hybrid"]) == {*told["decayed"]} & dict(models["hybrid"].named_parameters()).keys()
    assert "pattern with Q: the code of Q is its author's own and not in this folder" in told["own"]


@pytest.fixture
def old_checkpoints(tmp_path):
    "A hybrid and a context-vector model as saved before the package had chapters, each with its code beside it."
    with tarfile.open(Path(__file__).with_name("old_checkpoints.tar.xz")) as tar:
        tar.extractall(tmp_path, filter="data")
    return tmp_path, json.loads((tmp_path/"want.json").read_text())


def test_old_checkpoints_load_where_the_package_is_not(old_checkpoints):
    folder, want = old_checkpoints
    run_without_the_package(OLD, folder)
    found = json.loads((folder/"found.json").read_text())
    for name, logits in found.items():
        torch.testing.assert_close(torch.tensor(logits), torch.tensor(want[name.split("-")[0]]), atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("name", ["hybrid", "context"])
def test_old_checkpoints_load_here(old_checkpoints, name, monkeypatch):
    "By this package's code, by their own where it is trusted; saved again they carry today's code."
    folder, want = old_checkpoints
    ids = torch.tensor(want["ids"])
    def same(m): torch.testing.assert_close(m.eval()(ids).logits[0, -1], torch.tensor(want[name]), atol=1e-5, rtol=0)
    cls = dict(hybrid=HybridForCausalLM, context=ContextForCausalLM)[name]
    ours = AutoModelForCausalLM.from_pretrained(folder/name)
    assert type(ours) is cls
    same(ours)
    same(cls.from_pretrained(folder/name))
    theirs = AutoModelForCausalLM.from_pretrained(folder/name, trust_remote_code=True)
    assert type(theirs) is cls or type(theirs).__module__.startswith("transformers_modules.")
    same(theirs)
    ours.save_pretrained(folder/"again")
    same(AutoModelForCausalLM.from_pretrained(folder/"again"))
    assert (folder/"again"/"hybrid_nb_losses.py").exists()
