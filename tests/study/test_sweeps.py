"Sweeps in real processes: failing, killed, repeated, contended."
import json, os, signal, subprocess, sys, time
from pathlib import Path
import nbformat as nbf, psutil, pytest
from nbclient import NotebookClient
from hybrid_nb.core.commands import CommandParser
from hybrid_nb.core.runs import notebook_error, run_lock, run_state
from hybrid_nb.study import sweeps, workers
from hybrid_nb.study.arguments import format_settings
from hybrid_nb.study.sweeps import hybrid_sweep, Progress, run_all, sweep
from hybrid_nb.study.tables import load_metrics, load_runs
from hybrid_nb.study.workers import LocalExecutor, RunWorker

script = str(Path(sys.executable).with_name("hybrid_sweep"))
tiny = dict(batch_size=2, length=32, hidden_size=16, num_attention_heads=2, state_size=4, max_documents=100,
            vocab_size=300, eval_every=5, eval_batches=2, recall_documents=5, log_every=1, save_best=False,
            device="cpu", threads=1)

@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    "One token cache for all sweeps of this file."
    tiny["cache_dir"] = str(tmp_path_factory.mktemp("cache"))

def start(*args, cwd, **settings):
    words = [script, *map(str, args), "--set", *format_settings(tiny | settings)]
    return subprocess.Popen(words, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

def finish(process, timeout=400):
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err

def wait_for(condition, seconds=300):
    end = time.time() + seconds
    while not condition():
        assert time.time() < end, "waited in vain"
        time.sleep(.05)

def alive(process):
    try: return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess: return False

def step(run): return load_metrics(run).step.max() if (run/"metrics.jsonl").exists() else 0

mixer = '''
import torch
from pathlib import Path
from hybrid_nb.models.registry import register

@register("X", "an average of two tokens that may fail")
class Average(torch.nn.Module):
    def __init__(self, config, layer_idx=None):
        super().__init__()
        self.weight, self.steps = torch.nn.Parameter(torch.ones(config.hidden_size)), set()

    def forward(self, x, cache=None, segments=None, **context):
        if self.training: self.steps.add(self.weight.detach().numpy().tobytes()) # steps have other weights
        if len(self.steps) > 7 and Path("fail").exists(): raise RuntimeError("the mixer broke")
        return self.weight*(x + torch.nn.functional.pad(x, (0, 0, 1, 0))[:, :-1])/2
'''

def test_failing_runs_then_a_complete_study(tmp_path):
    "Two patterns, two seeds; a mixer from a user's notebook fails before step 10, is mended, and the sweep goes on."
    code = "%matplotlib inline", "!echo a", mixer, "%%bash\necho b", "display(Average)", "#| eval: false\n1/0"
    cells = [nbf.v4.new_markdown_cell("# My mixer"), *map(nbf.v4.new_code_cell, code)]
    nbf.write(nbf.v4.new_notebook(cells=cells), tmp_path/"my_mixer.ipynb")
    (tmp_path/"fail").touch()
    args = ["--study", "s", "--patterns", "AM AX", "--seeds", "2", "--plugins", "my_mixer.ipynb"]
    code, out, err = finish(start(*args, cwd=tmp_path, steps=12, checkpoint_every=4))
    assert code == 1 and "2 of 4 runs failed; see runs/s/AX-s0/train.ipynb" in err.splitlines()[-1], err
    assert out.count("RuntimeError: the mixer broke") == 2 and out.count(" finished ") == 2, out
    runs, study = load_runs(tmp_path/"runs"/"s").set_index("name"), tmp_path/"runs"/"s"
    assert runs.status.to_dict() == {"AM-s0": "finished", "AM-s1": "finished", "AX-s0": "failed", "AX-s1": "failed"}
    assert notebook_error(study/"AX-s0"/"train.ipynb") == "RuntimeError: the mixer broke"
    assert 4 <= runs.step["AX-s0"] <= 8
    assert "of 4 runs done, 2 failed · 100%" in err and max(map(len, err.split("\n"))) < 2000

    (tmp_path/"fail").unlink()
    before = {p: p.stat().st_mtime_ns for p in study.glob("AM-s*/*.*")}
    code, out, err = finish(start(*args, cwd=tmp_path, steps=12, checkpoint_every=4))
    assert code == 0 and out.count(" finished ") == 4, out + err
    losses = load_runs(study).groupby("pattern").final_val_loss.mean().sort_values()
    rows = [line.split() for line in out.split("\n\n")[1].splitlines()] # the table of patterns
    assert rows[0] == "pattern seeds final_val_loss sd seconds".split()
    assert [r[:3] for r in rows[1:]] == [[p, "2", f"{loss:.4g}"] for p, loss in losses.items()], out
    assert err.endswith("now: hybrid_report runs/s\n") and "hardly trained" in out
    assert before == {p: p.stat().st_mtime_ns for p in before}, "a finished run was touched"
    assert load_metrics(study/"AX-s0").step.tolist() == list(range(1, 13))
    assert notebook_error(study/"AX-s0"/"train.ipynb") is None
    nb = nbf.read(study/"AM-s1"/"train.ipynb", 4)
    assert "seed = 1" in next(c.source for c in nb.cells if "injected-parameters" in c.metadata.tags)
    outputs = [o for c in nb.cells for o in c.get("outputs", [])]
    assert any("image/png" in o.get("data", {}) for o in outputs), "no curve in the executed notebook"

    before = sorted(study.parent.rglob("*"))
    again = NotebookClient(nb, resources=dict(metadata=dict(path=study/"AM-s1"))).execute() # as in JupyterLab
    top = again.cells[0].outputs[0].data["text/markdown"]
    assert "# `AM` · seed 1 · " in top and " nats a token" in top and "`steps = 12`" in top, top
    assert sorted(study.parent.rglob("*")) == before, "a notebook that was run in its folder left something there"

    words = [str(Path(script).with_name("hybrid_report")), "runs/s", "--out", "s.html"]
    report = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert report.returncode == 0 and "--plugins my_mixer.ipynb" in (tmp_path/"s.html").read_text(), report.stderr

def test_killed_sweeps_leave_nothing_behind_and_go_on(tmp_path):
    "Ended politely, then brutally: no process stays, and the second start goes on where the first was."
    run, args = tmp_path/"runs"/"k"/"AM-s0", ["--study", "k", "--patterns", "AM", "--seeds", 1]
    settings = dict(steps=1000, checkpoint_every=10, eval_every=1000, keep_checkpoints=1)
    reached = 0
    for sig in signal.SIGTERM, signal.SIGKILL:
        process = start(*args, cwd=tmp_path, **settings)
        wait_for(lambda: step(run) >= reached + 15)
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) >= 2 and run_state(run)["status"] == "running"
        os.kill(process.pid, sig)
        code, out, err = finish(process)
        assert code == (130 if sig == signal.SIGTERM else -9)
        said = "hybrid_sweep: interrupted; the same command continues"
        if sig == signal.SIGTERM: assert err.rstrip().endswith(said), err
        wait_for(lambda: not any(map(alive, family)))
        reached, state = step(run), run_state(run)
        assert state["status"] == "interrupted" and reached < 1000
    m = load_metrics(run)
    assert reached >= 30 and m.step.tolist() == list(range(1, reached + 1)) and m.time.is_monotonic_increasing

def test_a_run_held_by_another_sweep_is_passed_over(tmp_path):
    args = ["--study", "two", "--patterns", "A", "G", "--seeds", "1", "--jobs", "1"]
    a, g = (tmp_path/"runs"/"two"/f"{p}-s0" for p in "AG")
    a.mkdir(parents=True)
    with run_lock(a):  # as the other sweep would
        process = start(*args, cwd=tmp_path, steps=3)
        wait_for(lambda: (g/"summary.json").exists() and (g/"train.ipynb").stat().st_size != 0)
        assert not (a/"train.ipynb").exists() and process.poll() is None
    code, out, err = finish(process)
    assert code == 0 and out.count(" finished ") == 2, out + err

@pytest.mark.parametrize("gone", [False, True], ids=["still trains", "has just ended"])
def test_a_run_that_someone_trains_by_hand_is_waited_for(gone, tmp_path, monkeypatch):
    "The kernel finds the run locked, as training by `hybrid_train` does; that is no failure of the run."
    path, starts = tmp_path/"AM-s0", []
    lock = run_lock(path)

    class ByHand(RunWorker):
        "The first time the notebook ends in the error of a locked run, the second time with a result."
        def __init__(self, run, *args):
            self.run, self.stderr = run, open(os.devnull, "rb")
            starts.append(run["name"])
            error = dict(output_type="error", ename="RuntimeError", traceback=[],
                         evalue=f"{path}: another process is training this run")
            nb = dict(cells=[dict(cell_type="code", outputs=[error] if len(starts) == 1 else [])])
            (path/"train.ipynb").write_text(json.dumps(nb))
            if len(starts) == 1 and not gone: lock.acquire()
            summary = dict(pattern="AM", final_val_loss=2., steps=7)
            if len(starts) == 2: (path/"summary.json").write_text(json.dumps(summary))
            self.process = subprocess.Popen(["false"], stdin=subprocess.PIPE)
        def stop(self): self.process.wait()

    class Line(Progress):
        def update(self, live=(), last=False):
            states.append(self.plan[0]["state"]["status"])
            if not live: lock.release()
    states, plan = [], [dict(name="AM-s0", path=path, planned=7, state=run_state(path))]
    monkeypatch.setattr(workers, "RunWorker", ByHand)
    run_all(plan, lambda run: {}, "train.ipynb", LocalExecutor(1, 1, 1), Line("s", plan))
    assert len(starts) == 2 and set(states[:-1]) <= {"running", "finished"}
    assert plan[0]["state"] == dict(status="finished", step=7, error=None)

@pytest.mark.parametrize("args, settings, message", [
    (["--patterns", "AM?"], {}, "pattern 'AM?': unknown block '?'"),
    (["--patterns", "AM"], dict(num_attention_heads=5), "num_attention_heads 5: must be a divisor"),
    (["--patterns", "AM"], dict(stepps=5), "did you mean 'steps'"),
    (["--patterns", "AM"], dict(corpus="wurld"), "corpus 'wurld': unknown"),
    (["--patterns", "AM"], dict(jobs=3), "--set jobs: not a setting of a run but of the sweep"),
    (["--patterns", "AM", "--equal_parameters", "30000"], {},
     "hidden_size 16: with equal_parameters each pattern gets its own"),
    (["--patterns", "AM", "--seeds", "none"], {}, "seeds 'none'"),
    (["--patterns", "AM", "--plugins", "no.ipynb"], {}, "no such file"),
    (["--patterns", "AM", "--template", "no.ipynb"], {}, "name one with --template FILE"),
    ([], {}, "name the patterns"),
    (["--study", ""], {}, "study '': must do as the name of a folder"),
    (["--study", "", "--patterns", "AM"], {}, "study '': must do as the name of a folder"),
])
def test_nothing_starts_with_bad_arguments(args, settings, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--study", "s", *args, "--set", *format_settings(tiny | dict(steps=3) | settings)]
    with pytest.raises(ValueError, match=".*") as e: hybrid_sweep(**vars(CommandParser(hybrid_sweep).parse_args(words)))
    assert message in str(e.value)
    assert not list(tmp_path.iterdir())

def parameters(*sources, kind="code"):
    "A notebook with cells tagged `parameters`."
    make = getattr(nbf.v4, f"new_{kind}_cell")
    return nbf.writes(nbf.v4.new_notebook(cells=[nbf.v4.new_code_cell("import hybrid_nb"),
                                                 *(make(s, metadata=dict(tags=["parameters"])) for s in sources)]))

needs = "pattern = study = runs = 1\nseed: int = 0 # a; b = c\n"
known = "\n".join(f"{k} = None" for k in [*tiny, "cache_dir"])

@pytest.mark.parametrize("text, more, message", [
    ("{", [], "not a notebook"), ("[]", [], "not a notebook"),
    (parameters(), [], "no cell tagged 'parameters'; one code cell"),
    (parameters("a = 1", "b = 1"), [], "2 cells tagged 'parameters'; one code cell"),
    (parameters("a = 1", kind="markdown"), [], "1 cell tagged 'parameters'; one code cell"),
    (parameters("a = ("), [], "its cell of parameters is not Python ("),
    (parameters("x = 1"), [], "does not assign batch_size, cache_dir, device, eval_batches"),
    (parameters(needs + known), ["--set", "steps=3"], "does not assign steps"),
    (parameters(needs + known), ["--plugins", "json"], "does not assign plugins"),
    (parameters(needs.replace("seed", "seeds") + known), [], "does not assign seed"),
    (parameters(needs + known + "\nsteps = 1"), ["--recipe_group", "base/AMAMAMAM"], "learning_rate")])
def test_a_template_that_would_train_something_else(text, more, message, tmp_path, monkeypatch):
    "It is refused before anything starts, in one line that names it."
    monkeypatch.chdir(tmp_path)
    Path("mine.ipynb").write_text(text)
    words = ["--study", "s", *([] if "--recipe_group" in more else ["--patterns", "AM"]), "--template", "mine.ipynb",
             "--set", *format_settings(tiny), *more]
    with pytest.raises(ValueError, match=".*") as e: hybrid_sweep(**vars(CommandParser(hybrid_sweep).parse_args(words)))
    assert str(e.value).startswith("template 'mine.ipynb': ") and message in str(e.value) and "\n" not in str(e.value)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.ipynb"]

def test_a_small_template_of_ones_own(tmp_path, monkeypatch):
    "It need not know what it is not given, nor `progress`."
    monkeypatch.chdir(tmp_path)
    Path("mine.ipynb").write_text(parameters("%matplotlib inline\n" + needs + known))
    monkeypatch.setattr(sweeps, "run_all", lambda plan, parameters, *_: given.extend(map(parameters, plan)))
    given = []
    sweep("s", "AM", 1, template="mine.ipynb", progress=False, **tiny)
    assert set(given[0]) == {"pattern", "seed", "study", "runs", "progress", *tiny}

def test_equal_parameters_reach_the_runs(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(sweeps, "run_all", lambda plan, parameters, *_: given.extend(map(parameters, plan)))
    settings = {k: v for k, v in tiny.items() if k != "hidden_size"}
    settings |= dict(runs=tmp_path, cache_dir=str(tmp_path/"cache"), progress=False)
    sweep("s", "AAAA MMMM", 1, equal_parameters=60_000, **settings)
    assert {p["equal_parameters"] for p in given} == {60_000} and given[0]["hidden_size"] > given[1]["hidden_size"]

def test_exit_code_and_one_line(tmp_path):
    code, out, err = finish(start("--study", "s", "--patterns", "AM)", cwd=tmp_path))
    assert code == 2 and err.startswith("hybrid_sweep: pattern 'AM)'") and err.count("\n") == 1
    assert not list(tmp_path.iterdir())

def test_wandb_offline_keeps_one_folder(tmp_path, monkeypatch):
    "Under the id of the run; the notebook that papermill finished later would need a second one, and is left out."
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR", "WANDB_SERVICE"): monkeypatch.delenv(name, raising=False)
    args = ["--study", "s", "--patterns", "A", "--seeds", "1"]
    code, out, err = finish(start(*args, cwd=tmp_path, steps=4, wandb="offline"))
    assert code == 0 and "not sent" not in err, out + err
    run = tmp_path/"runs"/"s"/"A-s0"
    logs = sorted((run/"wandb").glob("offline-run-*/*.wandb"), key=lambda p: p.stat().st_mtime)
    assert {p.parent.name.rsplit("-", 1)[1] for p in logs} == {(run/"wandb_id").read_text()}
    [log] = logs
    wait_for(lambda: b"summary.json" in log.read_bytes())
    assert b"s-A-s0-notebook" not in log.read_bytes()

def test_halving(tmp_path):
    "Three patterns pause at a rung; two go on as the runs they would have been, one stays until it is asked for."
    args = ["--study", "s", "--patterns", "A M AM", "--seeds", "1"]
    settings = dict(steps=8, eval_every=4, checkpoint_every=0, warmup_steps=2)
    code, out, err = finish(start(*args, "--halving", "2", cwd=tmp_path, **settings), timeout=500)
    assert code == 0 and "halving 2: 2 patterns go on after step 4" in err, err
    assert "power: 1 seed finds no difference" in err, err
    runs = load_runs(tmp_path/"runs"/"s").set_index("pattern")
    assert sorted(runs.status) == ["finished", "finished", "stopped"], runs.status
    assert runs.step[runs.status == "stopped"].tolist() == [4]
    losses = {p: load_metrics(path).query("step == 4").val_loss.dropna().iloc[0] for p, path in runs.path.items()}
    assert max(losses, key=losses.get) == runs.index[runs.status == "stopped"][0]
    code, out, err = finish(start(*args, cwd=tmp_path, **settings))
    assert code == 0 and out.count(" finished ") == 3, out + err
    metrics = load_metrics(runs.path[max(losses, key=losses.get)])
    assert metrics.step.drop_duplicates().tolist() == list(range(1, 9))
    assert not list((tmp_path/"runs").rglob("stopped.json"))
