"Several processes: the same run, whatever their number; launchers; batches that cannot be shared."
import os, shutil, subprocess, sys
import nbclient, nbformat, numpy as np, pytest, torch
from helpers.lab import command, flags, free_port, lines, SMALL
from hybrid_nb.core.files import read_json
from hybrid_nb.data.corpora import DataConfig
from hybrid_nb.models.config import HybridConfig
from hybrid_nb.training.config import TrainConfig
from hybrid_nb.training.devices import cpu_threads
from hybrid_nb.training.runner import run_threads
from safetensors.torch import load_file

AUDITS = 21 # checks of a run


def agree(want, got):
    "The same lines of metrics, up to the order of sums."
    for a, b in zip(lines(want), lines(got), strict=True):
        assert a.keys() == b.keys() and all(a[k] == pytest.approx(b[k], rel=2e-5) for k in a), (a, b)


@pytest.mark.parametrize("name, n, extra", [
    ("two", 2, {}), ("four", 4, dict(gradient_accumulation_steps=2)), ("sharded", 2, dict(parallel="fsdp"))])
def test_many_processes(lab, forks, name, n, extra):
    "The same run on 1, 2 and 4 processes, sharded too: the same losses, each validation window counted once."
    settings = dict(pattern="AMSG", steps=12, batch_size=8, dropout=0, log_every=1, eval_every=5, eval_batches=3,
                    checkpoint_every=6, ssd_head_dim=16)
    assert command(*flags(**settings, name="alone")) == 0 # once: a finished run stays
    for r in forks.ranks(n, "hybrid_train", *flags(**settings | extra, name=name)): assert r.returncode == 0, r.stderr
    want, got = (lab/"runs"/"default"/k for k in ("alone", name))
    assert len(lines(got)) == 12 and read_json(got/"config.json")["processes"] == n
    agree(want, got)
    same_results(want, got, name == "sharded")
    # what several processes began, one continues
    (got/"summary.json").unlink()
    shutil.rmtree(got/"checkpoints"/"step_00000012")
    parts = {k: v for k, v in extra.items() if k == "gradient_accumulation_steps"}
    assert command(*flags(**settings, name=name, **parts)) == 0
    assert [l["step"] for l in lines(got)] == list(range(1, 13))
    agree(want, got)


def same_results(want, got, sharded):
    "Summary, audits, sums by window and weights."
    a, b = (read_json(r/"summary.json") for r in (want, got))
    same = "final_val_loss", "val_accuracy", "bits_per_byte", "parameters", "tokens_seen"
    assert all(a[k] == pytest.approx(b[k], rel=1e-5) for k in same)
    verdicts = [{f["check"]: f["verdict"] for f in s["audit"]} for s in (a, b)]
    assert len(verdicts[0]) == AUDITS and "fail" not in verdicts[0].values()
    unseen = [("train and validation", "not checked")] if sharded else [] # weights in pieces
    assert verdicts[1] == verdicts[0] | dict(unseen)
    a, b = (dict(np.load(r/"val_windows.npz")) for r in (want, got))
    assert all((a[k] == b[k]).all() for k in ("window", "document", "first", "tokens"))
    assert np.allclose(a["nats"], b["nats"], rtol=1e-3) and a["nats"].min() > 0
    a, b = (load_file(r/"checkpoints"/"step_00000012"/"model.safetensors") for r in (want, got))
    assert a.keys() == b.keys() and all(torch.allclose(a[k], b[k], atol=1e-4) for k in a)


def test_state_between_windows(lab, forks):
    "With `stateful` one process and two agree, and what two began with their rows' states, one continues."
    settings = dict(pattern="MSA", steps=8, batch_size=8, dropout=0, log_every=1, eval_every=4, checkpoint_every=4,
                    ssd_head_dim=16, stateful=True)
    assert command(*flags(**settings, name="alone-on")) == 0
    words = flags(**settings, gradient_accumulation_steps=2, name="two-on")
    for r in forks.ranks(2, "hybrid_train", *words): assert r.returncode == 0, r.stderr
    want, got = (lab/"runs"/"default"/k for k in ("alone-on", "two-on"))
    def same_loss():
        a, b = (read_json(r/"summary.json")["final_val_loss"] for r in (want, got))
        assert len(lines(got)) == 8 and a == pytest.approx(b, rel=1e-5)
        agree(want, got)
    same_loss()
    (got/"summary.json").unlink()
    shutil.rmtree(got/"checkpoints"/"step_00000008")
    assert command(*words) == 0
    same_loss()


def test_two_nodes(lab):
    "Two launchers that find each other over the network, as on two machines of a cluster, with a process each."
    settings = dict(pattern="AM", steps=6, batch_size=8, dropout=0, log_every=1, eval_every=3)
    assert command(*flags(**settings, name="one-node")) == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1",
              "--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    words = ["hybrid_train", *flags(**settings, name="two-nodes")]
    nodes = [subprocess.Popen([*launch, "--node-rank", str(k), *words], stderr=subprocess.PIPE, text=True)
             for k in (0, 1)]
    for node in nodes: assert (error := node.communicate()[1]) is not None and node.returncode == 0, error
    want, got = (lab/"runs"/"default"/k for k in ("one-node", "two-nodes"))
    assert read_json(got/"config.json")["processes"] == 2
    agree(want, got)


def test_notebook_launcher(lab):
    "From a notebook: a function, two processes, the same run."
    short = dict(steps=6, batch_size=8, log_every=1, eval_every=3)
    settings = SMALL | dict(corpus="corpus.jsonl", dropout=0., progress=False) | short
    assert command(*flags(pattern="AM", name="one-process", dropout=0, **short)) == 0
    cells = ["from accelerate import notebook_launcher\nfrom hybrid_nb.training.runner import train_run\n"
             f"def two(): train_run('AM', name='launched', **{settings})",
             f"notebook_launcher(two, num_processes=2, use_port='{free_port()}')"]
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    here = dict(metadata=dict(path=str(lab)))
    nbclient.NotebookClient(nb, kernel_name="python3", timeout=120, resources=here).execute()
    want, got = (lab/"runs"/"default"/k for k in ("one-process", "launched"))
    assert read_json(got/"config.json")["processes"] == 2
    agree(want, got)


def test_batch_that_cannot_be_shared(lab, forks):
    done = forks.ranks(2, "hybrid_train", *flags(pattern="A", name="odd", batch_size=5))
    codes = {r.returncode for r in done}
    assert 2 in codes and 0 not in codes and not (lab/"runs"/"default"/"odd"/"summary.json").exists()
    says = "hybrid_train: batch_size 5: must be a multiple of gradient_accumulation_steps × processes, 1 × 2"
    assert any(says in r.stderr for r in done), done


def test_threads_by_the_size_of_the_work(capsys):
    "Small work takes one thread, whatever the machine does, and the user is told; OpenMP waits without spinning."
    cfg, usual = TrainConfig(device="cpu", batch_size=8), torch.get_num_threads()
    with cpu_threads(2):
        for width, length, n in (64, 32, 1), (512, 256, 2):
            assert run_threads(HybridConfig(hidden_size=width), DataConfig(length=length), cfg, say=True) == n
    assert torch.get_num_threads() == usual
    small, large = capsys.readouterr().err.splitlines()
    assert small.startswith("CPU threads: 1: 256 tokens of width 64 are too little")
    assert large.startswith("CPU threads: 2 (")
    code = "import os, hybrid_nb; print(os.environ['OMP_WAIT_POLICY'])"
    for given, policy in ({}, "passive"), (dict(OMP_WAIT_POLICY="active"), "active"):
        env = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"} | given
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
        assert done.stdout == f"{policy}\n"
