"""Sweeps over several accelerators and several machines. The machines are Ray nodes on this one: real processes,
which can be killed."""
import os, shutil, signal, subprocess, sys, time
from importlib.util import find_spec
from pathlib import Path
import psutil, pytest, torch
from safetensors.torch import load_file
import hybrid_nb
from hybrid_nb.core.runs import list_checkpoints, run_state
from hybrid_nb.study import workers
from hybrid_nb.study.arguments import format_settings
from hybrid_nb.study.sweeps import sweep
from hybrid_nb.study.tables import load_metrics, load_runs

script = str(Path(sys.executable).with_name("hybrid_sweep"))
tiny = dict(batch_size=2, length=32, hidden_size=16, num_attention_heads=2, state_size=4, max_documents=100,
            vocab_size=300, eval_every=1000, eval_batches=2, recall_documents=5, log_every=1, save_best=False,
            threads=1)

@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    "One token cache for all sweeps of this file."
    tiny["cache_dir"] = str(tmp_path_factory.mktemp("cache"))

@pytest.fixture(scope="module")
def cluster():
    "A cluster whose head holds no runs; each test adds machines of its own."
    pytest.importorskip("ray", reason="ray is not installed (pip install 'hybrid_nb[cluster]')")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster
    head = dict(num_cpus=0, include_dashboard=False, object_store_memory=80*2**20)
    cluster = Cluster(initialize_head=True, head_node_args=head)
    yield cluster
    cluster.shutdown()

@pytest.fixture
def add(cluster):
    "Function that adds a machine; they are removed after the test."
    nodes = []
    def add(**kw):
        nodes.append(cluster.add_node(**(dict(num_cpus=1, object_store_memory=80*2**20) | kw)))
        return nodes[-1]
    yield add
    for n in nodes:
        if n in cluster.worker_nodes: cluster.remove_node(n, allow_graceful=False)

def start(study, patterns, *args, cwd, **settings):
    words = [script, "--study", study, "--patterns", *patterns.split(), "--seeds", "1", *map(str, args), "--set",
             *format_settings(tiny | settings)]
    return subprocess.Popen(words, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

def ray(cluster): return "--executor", "ray", "--address", cluster.address

def finish(process, seconds=240):
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err

def wait_for(condition, process=None, seconds=120):
    "Wait until something holds, which `process` is working at."
    end = time.time() + seconds
    while not condition():
        if process and (time.time() > end or process.poll() is not None):
            process.kill()
            raise AssertionError("".join(process.communicate()))
        assert time.time() < end, "waited in vain"
        time.sleep(.05)

def alive(process):
    try: return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess: return False

def step(run):
    metrics = run/"metrics.jsonl"
    return load_metrics(run).step.max() if metrics.exists() and metrics.stat().st_size else 0

def runs_on(node) -> dict: # name of the run -> processes: the worker and its kernel
    "The runs on a machine."
    found = {}
    for p in psutil.Process(node.all_processes["raylet"][0].process.pid).children(recursive=True):
        try: words = p.cmdline()
        except psutil.NoSuchProcess: continue
        if "run_notebook" in (words[2:3] or [""])[0]:
            found[Path(words[3].split('"path": "')[1].split('"')[0]).name] = [p, *p.children(recursive=True)]
    return found

witness = '''
import os, torch
from pathlib import Path
from hybrid_nb.models.registry import register

@register("X", "notes its accelerator")
class Witness(torch.nn.Module):
    def __init__(self, config, layer_idx=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(config.hidden_size))
        if self.weight.device.type == "meta": return
        Path(f"seen-{os.getpid()}").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "all"))
    def forward(self, x, **context): return x*self.weight
'''

def seen(folder): return sorted(p.read_text() for p in folder.glob("seen-*"))

def test_each_run_of_a_machine_has_an_accelerator_of_its_own(tmp_path, monkeypatch, capsys):
    "The list of accelerators is made up; the environment of the kernels is not."
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(workers, "visible_devices", lambda device: ["4", "7"])
    (tmp_path/"witness.py").write_text(witness)
    df = sweep("s", "X XX", 1, plugins="witness.py", steps=2, **tiny)
    assert set(df.status) == {"finished"} and seen(tmp_path) == ["4", "7"]
    assert "2 runs to do, 2 at a time on 2 accelerators" in capsys.readouterr().err

@pytest.mark.parametrize("settings, message", [
    (dict(executor="slurm"), "executor 'slurm': unknown (accepted: local, ray)"),
    (dict(gpus_per_run=.5), "gpus_per_run 0.5: only a cluster takes it")])
def test_executors_and_what_they_take(settings, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as e: sweep("s", "A", 1, steps=2, **tiny, **settings)
    assert message in str(e.value) and not list(tmp_path.iterdir())

@pytest.mark.parametrize("flag", ["--executor", "--engine"]) # the second is its former name
def test_without_ray_one_line_says_what_to_install(flag, tmp_path):
    (tmp_path/"ray.py").write_text("raise ImportError")
    code = ("import sys; sys.path.insert(0, '.'); from hybrid_nb.core.commands import run_script; "
            "from hybrid_nb.study.sweeps import hybrid_sweep; run_script(hybrid_sweep)")
    words = [sys.executable, "-c", code, "--study", "s", "--patterns", "A", flag, "ray"]
    r = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    message = "executor 'ray': the package ray is not installed (pip install 'hybrid_nb[cluster]')"
    assert (r.returncode, r.stderr) == (2, f"hybrid_sweep: {message}\n")
    assert not (tmp_path/"runs").exists()

@pytest.mark.more
def test_a_machine_dies_in_the_middle_of_a_sweep(cluster, add, tmp_path):
    "Every run finishes, none twice, and the lost one has the weights of an undisturbed run."
    settings, study = dict(steps=500, checkpoint_every=50, keep_checkpoints=3), tmp_path/"runs"/"s"
    _, second = add(), add()
    process = start("s", "AM MA AA", *ray(cluster), cwd=tmp_path, **settings)
    wait_for(lambda: any(step(study/r) > 60 for r in runs_on(second)), process)
    (lost, family), = runs_on(second).items()
    kept = (study/lost/"metrics.jsonl").read_text().splitlines()[:int(list_checkpoints(study/lost)[-1].name[5:])]
    cluster.remove_node(second, allow_graceful=False)
    assert len(family) >= 2
    wait_for(lambda: not any(map(alive, family)), seconds=15)
    assert not (study/lost/"summary.json").exists() and process.poll() is None
    code, out, err = finish(process)
    assert code == 0 and out.count(" finished ") == 3 and "3 of 3 runs done" in err, out + err
    assert "3 runs to do, 2 at a time on 2 machines, 1 CPU each" in err

    for run in study.iterdir():
        assert load_metrics(run).step.tolist() == list(range(1, 501)), run
        assert load_metrics(run).time.is_monotonic_increasing and run_state(run)["status"] == "finished"
    assert (study/lost/"metrics.jsonl").read_text().splitlines()[:len(kept)] == kept, "begun again instead of resumed"
    assert len(list(study.iterdir())) == 3, "something is left of the sweep"

    code, out, err = finish(start("calm", lost.split("-")[0], cwd=tmp_path, **settings))
    weights = [load_file(list_checkpoints(tmp_path/"runs"/s/lost)[-1]/"model.safetensors") for s in ("s", "calm")]
    assert all(torch.equal(v, weights[1][k]) for k, v in weights[0].items())
    losses = [load_runs(tmp_path/"runs"/s).set_index("name").final_val_loss[lost] for s in ("s", "calm")]
    assert losses[0] == losses[1]

    before = {p: p.stat().st_mtime_ns for p in study.glob("*/*.*")}
    code, out, err = finish(start("s", "AM MA AA", *ray(cluster), cwd=tmp_path, **settings))
    assert code == 0 and before == {p: p.stat().st_mtime_ns for p in before}, "a finished run was touched"

@pytest.mark.more
def test_an_interrupted_sweep_leaves_nothing_behind(cluster, add, tmp_path):
    "Ended politely, then brutally; the cluster stays, and the next start goes on where the last was."
    node, run, reached = add(), tmp_path/"runs"/"k"/"AM-s0", 0
    for sig in signal.SIGTERM, signal.SIGKILL:
        process = start("k", "AM", *ray(cluster), cwd=tmp_path, steps=100000, checkpoint_every=10,
                        keep_checkpoints=1)
        wait_for(lambda: step(run) >= reached + 15, process)
        family = runs_on(node)["AM-s0"]
        assert len(family) >= 2 and run_state(run)["status"] == "running"
        os.kill(process.pid, sig)
        code, out, err = finish(process)
        assert code == (130 if sig == signal.SIGTERM else -9)
        if sig == signal.SIGTERM:
            assert err.rstrip().endswith("hybrid_sweep: interrupted; the same command continues"), err
            assert not list(run.parent.glob(".cluster*"))
        wait_for(lambda: not any(map(alive, family)) and run_state(run)["status"] == "interrupted", seconds=20)
        reached = step(run)
    assert load_metrics(run).step.tolist() == list(range(1, reached + 1))

@pytest.mark.more
def test_a_worker_that_is_killed_is_started_again(cluster, add, tmp_path):
    "Ray's process for a task dies, the machine does not."
    node, run = add(), tmp_path/"runs"/"w"/"AM-s0"
    process = start("w", "AM", *ray(cluster), cwd=tmp_path, steps=300, checkpoint_every=20)
    wait_for(lambda: step(run) >= 30, process)
    worker, *_ = runs_on(node)["AM-s0"]
    worker.parent().kill()
    code, out, err = finish(process)
    assert code == 0 and load_metrics(run).step.tolist() == list(range(1, 301)), out + err

@pytest.mark.more
def test_machines_with_other_code_are_named_and_left_out(cluster, add, tmp_path):
    other = tmp_path/"other"
    shutil.copytree(Path(hybrid_nb.__file__).parent, other/"hybrid_nb", ignore=shutil.ignore_patterns("__pycache__"))
    with (other/"hybrid_nb"/"training"/"trainer.py").open("a") as f: f.write("# an idea of yesterday\n")
    places = [str(other), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    elsewhere = dict(env_vars=dict(PYTHONPATH=os.pathsep.join(places)))
    add()
    args, work = ("o", "A AA", *ray(cluster)), tmp_path/"work"
    work.mkdir()
    process = start(*args, cwd=work, steps=1500)
    wait_for(lambda: step(work/"runs"/"o"/"A-s0") > 3, process)
    add(**elsewhere)  # joins later: gets the second run, reports it back
    code, out, err = finish(process)
    assert code == 0 and out.count(" finished ") == 2, out + err
    assert err.count("gets no runs: it has another code of hybrid_nb (") == 1, err

    shutil.rmtree(work/"runs")
    code, out, err = finish(start(*args, cwd=work, steps=4))
    assert code == 2 and " has another code of hybrid_nb (" in err and err.count("\n") == 1, err
    assert not list((work/"runs"/"o").iterdir())

@pytest.mark.more
def test_accelerators_are_shared_as_asked(cluster, add, tmp_path):
    add(num_cpus=2, num_gpus=1)  # Ray takes our word for it
    (tmp_path/"witness.py").write_text(witness)
    args = [*ray(cluster), "--plugins", "witness.py", "--gpus-per-run"]
    code, out, err = finish(start("half", "X XX", *args, .5, cwd=tmp_path, steps=2))
    assert code == 0 and "2 at a time on 1 machine, 1 CPU and 0.5 GPU each" in err, out + err
    assert seen(tmp_path) == ["0", "0"]
    for p in tmp_path.glob("seen-*"): p.unlink()
    code, out, err = finish(start("none", "X", *args, 0, cwd=tmp_path, steps=2))
    assert code == 0 and seen(tmp_path) == [""], out + err
    code, out, err = finish(start("two", "X", *args, 2, cwd=tmp_path, steps=2))
    assert code == 2 and "gpus_per_run 2: no machine of the cluster has that many" in err, err
    assert err.count("\n") == 1 and not (tmp_path/"runs"/"two").exists(), err
    code, out, err = finish(start("fp16", "X", *args, 0, cwd=tmp_path, steps=2, precision="fp16"))
    assert code == 2 and "precision 'fp16': needs an accelerator" in err, err

@pytest.mark.more
@pytest.mark.skipif(not find_spec("ray"), reason="ray is not installed (pip install 'hybrid_nb[cluster]')")
def test_no_cluster_at_the_address(tmp_path):
    code, out, err = finish(start("s", "A", "--executor", "ray", "--address", "127.0.0.1:1", cwd=tmp_path, steps=2))
    assert code == 2 and err.startswith("hybrid_sweep: address '127.0.0.1:1': no cluster there"), err
    assert err.count("\n") == 1, err
