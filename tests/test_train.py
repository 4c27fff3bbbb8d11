"Training across processes: the command line, exit codes, runs killed at awkward moments, W&B without an account."
import json, random, runpy, shutil, signal, subprocess, sys, time
from pathlib import Path
import nbclient, nbformat, numpy as np, pytest, torch
from safetensors.torch import load_file
from lab import Forks, SCRIPT, free_port, lab_in

TINY = dict(hidden_size=32, num_attention_heads=2, state_size=4, vocab_size=280, length=32, batch_size=4, learning_rate=3e-3,
            eval_every=10, eval_batches=2, log_every=3, recall_documents=0, threads=1)

@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "A folder with a small corpus, the script, and a cache of its own."
    folder = tmp_path_factory.mktemp("lab")
    rng = random.Random(0)
    def sentence(): return " ".join(rng.choice("the a red old cat dog house river saw left near under".split()) for _ in range(9)).capitalize() + "."
    rows = [json.dumps(dict(text=" ".join(sentence() for _ in range(12)))) for _ in range(80)]
    (folder/"corpus.jsonl").write_text("\n".join(rows) + "\n")
    with lab_in(folder): yield folder

@pytest.fixture(scope="module")
def forks(lab):
    server = Forks()
    yield server
    server.close()

def flags(**kw): return [x for k, v in (TINY | dict(corpus="corpus.jsonl", quiet=True) | kw).items() if v is not False for x in ([f"--{k}"] if v is True else [f"--{k}", str(v)])]

def command(*args):
    "The command in this process: exit code and what it wrote to standard error."
    with pytest.MonkeyPatch.context() as mp:
        mp.setattr(sys, "argv", ["hybrid_train", *args])
        try: runpy.run_path("hybrid_train", run_name="__main__")
        except SystemExit as e: return e.code
    return 0

def read_json(path): return json.loads(Path(path).read_text())
def lines(run):
    "Metrics without what depends on the clock."
    return [{k: v for k, v in json.loads(l).items() if k not in ("time", "tokens_per_second")} for l in (run/"metrics.jsonl").read_text().splitlines()]

def test_command_end_to_end(lab):
    "A pattern with a letter of the user's own, in a process of its own."
    (lab/"mine.py").write_text("from torch import nn\nfrom hybrid_nb.model import register\n"
                               "@register('Q', 'a linear map', cache='none')\nclass Q(nn.Module):\n"
                               "    def __init__(self, config, layer_idx): super().__init__(); self.map = nn.Linear(config.hidden_size, config.hidden_size)\n"
                               "    def forward(self, x, **context): return self.map(x)\n")
    args = [sys.executable, "hybrid_train", *flags(pattern="AQ", plugins="mine.py", name="first", study="s", steps=12, checkpoint_every=5, precision="bf16")]
    r = subprocess.run(args, capture_output=True, text=True)
    assert r.returncode == 0, r.stderr
    assert "first: AQ" in r.stdout and "runs/s/first" in r.stdout and "bits a byte" in r.stdout
    run = lab/"runs"/"s"/"first"
    config, summary = read_json(run/"config.json"), read_json(run/"summary.json")
    assert config["model"]["hidden_size"] == 32 and config["data"]["corpus"] == "corpus.jsonl" and config["train"]["steps"] == 12
    assert config["model"]["vocab_size"] == 280 and config["environment"]["packages"]["torch"] == torch.__version__
    assert summary["steps"] == 12 and summary["pattern"] == "AQ" and summary["tokens_seen"] == 12*4*32 and summary["peak_memory_bytes"] > 1e7
    assert [l["step"] for l in lines(run)] == [3, 5, 6, 9, 10, 12] and [l["step"] for l in lines(run) if "val_loss" in l] == [10, 12]
    assert read_json(run/"checkpoints"/"best.json")["step"] == summary["best_step"]
    assert not list(run.rglob("*.tmp"))

@pytest.mark.parametrize("kw, message", [
    (dict(steps=0), "steps 0: must be at least 1"), (dict(steps="ten"), "argument --steps: invalid int value: 'ten'"), (dict(pattern="AMx"), "pattern 'AMx'"), (dict(pattern="AQ0"), "pattern"),
    (dict(num_attention_heads=3), "num_attention_heads 3"), (dict(batch_size=4, accumulation=3), "accumulation 3: must divide batch_size 4"),
    (dict(eval_every=0), "eval_every 0"), (dict(precision="fp8"), "precision 'fp8'"), (dict(precision="fp16", device="cpu"), "precision 'fp16'"),
    (dict(corpus="missing.jsonl"), "missing.jsonl"), (dict(length=10**7), "length 10000000"), (dict(name="a/b"), "name 'a/b'"), (dict(name=""), "name '': must do as the name of a folder"), (dict(nonsense=1), "nonsense"),
    (dict(plugins="missing.py"), "missing.py")])
def test_bad_arguments(lab, capsys, kw, message):
    assert command(*flags(**dict(pattern="A", name="bad", steps=3) | kw)) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert len([l for l in error.splitlines() if not l.startswith("warning:")]) == 1
    assert not (lab/"runs"/"default"/"bad"/"summary.json").exists()

def test_finished_and_changed(lab, capsys):
    "A finished run is shown, not repeated; other settings are refused; --restart starts anew; a failure exits with 1."
    args, run = dict(pattern="A", name="done", steps=4), lab/"runs"/"default"/"done"
    assert command(*flags(**args)) == 0
    first, shown = (run/"summary.json").read_bytes(), capsys.readouterr().out
    assert command(*flags(**args)) == 0
    assert (run/"summary.json").read_bytes() == first and capsys.readouterr().out == shown
    assert command(*flags(**args | dict(steps=5, dropout=.2))) == 2
    error = capsys.readouterr().err
    assert "steps 4 there, 5 now" in error and "dropout 0.1 there, 0.2 now" in error
    assert command(*flags(**args | dict(steps=5), restart=True)) == 0
    assert read_json(run/"summary.json")["steps"] == 5 and lines(run)[-1]["step"] == 5
    assert command(*flags(**args | dict(name="lost", learning_rate=1e30, warmup_steps=0))) == 1
    error = capsys.readouterr().err
    assert "RuntimeError: step 2: training loss nan" in error and len(error.strip().splitlines()) == 1

def test_changed_corpus(lab, capsys):
    "A run does not continue on other data than it began with."
    text, args = (lab/"corpus.jsonl").read_text(), dict(pattern="A", name="moved", corpus="moving.jsonl", steps=4)
    (lab/"moving.jsonl").write_text(text)
    assert command(*flags(**args)) == 0
    (lab/"runs"/"default"/"moved"/"summary.json").unlink() # as if it had died just before the end
    (lab/"moving.jsonl").write_text(text + text.splitlines()[0].replace("cat", "cow") + "\n")
    capsys.readouterr()
    assert command(*flags(**args)) == 2
    assert "another state of the corpus" in capsys.readouterr().err
    (lab/"moving.jsonl").write_text(text)
    assert command(*flags(**args)) == 0

def test_flags_are_the_settings():
    "Every setting has a flag, and nothing else does."
    from inspect import signature
    from hybrid_nb.train import config_fields, configs, hybrid_train
    names = {f.name for c in configs for f in config_fields(c)}
    own = {"name", "study", "runs", "plugins", "use_wandb", "rebuild_cache", "restart", "quiet", "recipe", "debug", "preset", "family"}
    assert set(signature(hybrid_train).parameters) == names | own

def killed_runs(forks, args):
    "Start the command and kill it: once in a step, once while it writes a checkpoint."
    suicide = "import os, signal\nfrom hybrid_nb.train import Objective\nforward = Objective.forward\nsteps = []\ndef dying(self, *args):\n    steps.append(self.training)\n    if sum(steps) == 29: os.kill(os.getpid(), signal.SIGKILL)\n    return forward(self, *args)\nObjective.forward = dying\n"
    Path("dying").write_text(suicide + SCRIPT)
    yield forks.run(["dying", *args])[0].returncode
    suicide = "import os, signal, torch\nsave, calls = torch.save, []\ndef dying(*args):\n    calls.append(1)\n    if len(calls) == 2: os.kill(os.getpid(), signal.SIGKILL)\n    save(*args)\ntorch.save = dying\n"
    Path("dying").write_text(suicide + SCRIPT)
    yield forks.run(["dying", *args])[0].returncode

def test_sigkill(lab, forks):
    "A run killed twice ends with the weights and the lines of an undisturbed one."
    settings = dict(pattern="AM", steps=90, checkpoint_every=8, seed=3)
    calm, killed = lab/"runs"/"default"/"calm", lab/"runs"/"default"/"killed"
    args = flags(**settings, name="killed")
    for code in killed_runs(forks, args):
        assert code == -signal.SIGKILL
        assert not (killed/"summary.json").exists() and list((killed/"checkpoints").glob("step_*"))
    assert list((killed/"checkpoints").glob(".step_*.tmp")), "the second death was meant to be in the middle of a checkpoint"
    assert command(*args) == 0 and command(*flags(**settings, name="calm")) == 0
    assert lines(killed) == lines(calm) and len({l["step"] for l in lines(killed)}) == len(lines(killed))
    assert not list((killed/"checkpoints").glob(".step_*.tmp"))
    saved = [p.name for p in sorted((calm/"checkpoints").glob("step_*"))]
    assert [p.name for p in sorted((killed/"checkpoints").glob("step_*"))] == saved
    for name in saved:
        a, b = (load_file(run/"checkpoints"/name/"model.safetensors") for run in (calm, killed))
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a), name
    same = "final_val_loss best_val_loss best_step val_accuracy bits_per_byte tokens_seen train_loss".split()
    a, b = (read_json(run/"summary.json") for run in (calm, killed))
    assert {k: a[k] for k in same} == {k: b[k] for k in same}

def test_told_to_stop(lab, forks):
    "SIGTERM: the step is finished and saved, the exit code asks for another try, and the run goes on from that step."
    args, run = flags(pattern="A", name="evicted", steps=40, log_every=1, checkpoint_every=0, save_best=False), lab/"runs"/"default"/"evicted"
    evicted = "import os, signal\nfrom hybrid_nb.train import Trainer\nstep = Trainer.train_step\ndef told(self):\n    if self.state.step == 6: os.kill(os.getpid(), signal.SIGTERM)\n    step(self)\nTrainer.train_step = told\n"
    Path("evicted").write_text(evicted + SCRIPT)
    [r] = forks.run(["evicted", *args])
    assert r.returncode == 75 and "stopped by SIGTERM after step 7" in r.stderr
    [saved] = (run/"checkpoints").glob("step_*")
    assert int(saved.name[5:]) == lines(run)[-1]["step"] == 7
    assert command(*args) == 0 and [l["step"] for l in lines(run)] == list(range(1, 41))

@pytest.mark.parametrize("name, n, extra", [("two", 2, {}), ("four", 4, dict(accumulation=2)), ("sharded", 2, dict(parallel="fsdp"))])
def test_many_processes(lab, forks, name, n, extra):
    "The same run on 1, 2 and 4 processes, sharded too: the same losses, each validation window counted once."
    settings = dict(pattern="AMSG", steps=12, batch_size=8, dropout=0, log_every=1, eval_every=5, eval_batches=3, checkpoint_every=6, ssd_head_dim=16)
    assert command(*flags(**settings, name="alone")) == 0 # once: a finished run stays
    for r in forks.ranks(n, "hybrid_train", *flags(**settings | extra, name=name)): assert r.returncode == 0, r.stderr
    want, got = (lab/"runs"/"default"/k for k in ("alone", name))
    assert len(lines(got)) == 12 and read_json(got/"config.json")["processes"] == n
    for a, b in zip(lines(want), lines(got)):
        assert a.keys() == b.keys() and all(a[k] == pytest.approx(b[k], rel=2e-5) for k in a), (a, b)
    a, b = (read_json(r/"summary.json") for r in (want, got))
    assert all(a[k] == pytest.approx(b[k], rel=1e-5) for k in ("final_val_loss", "val_accuracy", "bits_per_byte", "parameters", "tokens_seen"))
    verdicts = [{f["check"]: f["verdict"] for f in s["audit"]} for s in (a, b)]
    assert len(verdicts[0]) == 17 and "fail" not in verdicts[0].values()
    assert verdicts[1] == verdicts[0] | (dict([("train and validation", "not checked")]) if name == "sharded" else {}) # weights in pieces
    a, b = (dict(np.load(r/"val_windows.npz")) for r in (want, got))
    assert all((a[k] == b[k]).all() for k in ("window", "document", "first", "tokens")) and np.allclose(a["nats"], b["nats"], rtol=1e-3) and a["nats"].min() > 0
    a, b = (load_file(r/"checkpoints"/"step_00000012"/"model.safetensors") for r in (want, got))
    assert a.keys() == b.keys() and all(torch.allclose(a[k], b[k], atol=1e-4) for k in a)
    # what several processes began, one continues
    (got/"summary.json").unlink()
    shutil.rmtree(got/"checkpoints"/"step_00000012")
    assert command(*flags(**settings, name=name, **{k: v for k, v in extra.items() if k == "accumulation"})) == 0
    assert [l["step"] for l in lines(got)] == list(range(1, 13))
    assert all(x[k] == pytest.approx(y[k], rel=2e-5) for x, y in zip(lines(want), lines(got)) for k in x)

def test_state_between_windows(lab, forks):
    "Windows that hand their state on: one process and two agree, and what two began with their rows' states, one continues."
    settings = dict(pattern="MSA", steps=8, batch_size=8, dropout=0, log_every=1, eval_every=4, checkpoint_every=4, ssd_head_dim=16, carry_state=True)
    assert command(*flags(**settings, name="alone-on")) == 0
    for r in forks.ranks(2, "hybrid_train", *flags(**settings, accumulation=2, name="two-on")): assert r.returncode == 0, r.stderr
    want, got = (lab/"runs"/"default"/k for k in ("alone-on", "two-on"))
    def agree():
        assert len(lines(got)) == 8
        for a, b in zip(lines(want), lines(got), strict=True): assert all(a[k] == pytest.approx(b[k], rel=2e-5) for k in a), (a, b)
        assert read_json(want/"summary.json")["final_val_loss"] == pytest.approx(read_json(got/"summary.json")["final_val_loss"], rel=1e-5)
    agree()
    (got/"summary.json").unlink()
    shutil.rmtree(got/"checkpoints"/"step_00000008")
    assert command(*flags(**settings, accumulation=2, name="two-on")) == 0
    agree()

def test_two_nodes(lab):
    "Two launchers that find each other over the network, as on two machines of a cluster, with a process each."
    settings = dict(pattern="AM", steps=6, batch_size=8, dropout=0, log_every=1, eval_every=3)
    assert command(*flags(**settings, name="one-node")) == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    nodes = [subprocess.Popen([*launch, "--node-rank", str(k), "hybrid_train", *flags(**settings, name="two-nodes")], stderr=subprocess.PIPE, text=True) for k in (0, 1)]
    for node in nodes: assert (error := node.communicate()[1]) is not None and node.returncode == 0, error
    want, got = (lab/"runs"/"default"/k for k in ("one-node", "two-nodes"))
    assert read_json(got/"config.json")["processes"] == 2
    for a, b in zip(lines(want), lines(got), strict=True): assert all(a[k] == pytest.approx(b[k], rel=2e-5) for k in a), (a, b)

def test_notebook_launcher(lab):
    "From a notebook: a function, two processes, the same run."
    settings = TINY | dict(corpus="corpus.jsonl", steps=6, batch_size=8, dropout=0., log_every=1, eval_every=3, progress=False)
    assert command(*flags(pattern="AM", name="one-process", **{k: v for k, v in settings.items() if k not in TINY and k not in ("corpus", "progress")}, batch_size=8, log_every=1, eval_every=3)) == 0
    cells = [f"from accelerate import notebook_launcher\nfrom hybrid_nb.train import train_run\ndef two(): train_run('AM', name='launched', **{settings})",
             f"notebook_launcher(two, num_processes=2, use_port='{free_port()}')"]
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    nbclient.NotebookClient(nb, kernel_name="python3", timeout=120, resources=dict(metadata=dict(path=str(lab)))).execute()
    want, got = (lab/"runs"/"default"/k for k in ("one-process", "launched"))
    assert read_json(got/"config.json")["processes"] == 2
    for a, b in zip(lines(want), lines(got), strict=True): assert all(a[k] == pytest.approx(b[k], rel=2e-5) for k in a), (a, b)

def test_batch_that_cannot_be_shared(lab, forks):
    done = forks.ranks(2, "hybrid_train", *flags(pattern="A", name="odd", batch_size=5))
    assert 2 in (codes := {r.returncode for r in done}) and 0 not in codes and not (lab/"runs"/"default"/"odd"/"summary.json").exists()
    assert any("hybrid_train: batch_size 5: must be a multiple of accumulation × processes, 1 × 2" in r.stderr for r in done), done

def test_wandb_offline(lab, monkeypatch):
    "No account and no network: the run is in the run folder."
    pytest.importorskip("wandb")
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR", "WANDB_SERVICE"): monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9") # nothing answers there
    assert command(*flags(pattern="A", name="watched", steps=4, use_wandb=True, wandb="offline")) == 0
    [log] = (lab/"runs"/"default"/"watched"/"wandb").glob("offline-run-*/*.wandb")
    deadline = time.time() + 30 # its own process writes it, and may take a moment longer than ours
    while len(found := {k for k in (b"train_loss", b"final_val_loss", b"hidden_size") if k in log.read_bytes()}) < 3 and time.time() < deadline:
        time.sleep(.1)
    assert len(found) == 3
    # continued, it is the same run there
    run = lab/"runs"/"default"/"watched"
    (run/"summary.json").unlink()
    shutil.rmtree(run/"checkpoints")
    assert command(*flags(pattern="A", name="watched", steps=4, use_wandb=True, wandb="offline")) == 0
    logs = list((run/"wandb").glob("offline-run-*"))
    assert len(logs) >= 1 and {p.name.rsplit("-", 1)[1] for p in logs} == {(run/"wandb_id").read_text()}

def test_tensorboard(lab):
    pytest.importorskip("tensorboard")
    assert command(*flags(pattern="A", name="boarded", steps=4, tensorboard=True)) == 0
    [log] = (lab/"runs"/"default"/"boarded"/"tensorboard").glob("events.*")
    assert b"train_loss" in log.read_bytes() and b"final_val_loss" in log.read_bytes()

