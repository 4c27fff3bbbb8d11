"W&B without an account, and TensorBoard: what they show is what `metrics.jsonl` says, each step once."
import json, shutil, struct, types
from pathlib import Path
import pytest
from helpers.lab import command, flags
from hybrid_nb.training import trackers
from hybrid_nb.training.trackers import numbers

# a run that a signal ends which no process can catch, between the line of metrics of a step and the trackers
KILLED = """
import os, signal, sys
from hybrid_nb.training import record, trackers
from hybrid_nb.training.cli import hybrid_train
step, log = int(sys.argv.pop(1)), trackers.TensorBoardLog.log
def dies(self, line):
    if line["step"] == step: os.kill(os.getpid(), signal.SIGKILL)
    log(self, line)
trackers.TensorBoardLog.log = dies
hybrid_train()
"""


def metrics(run): return [json.loads(line) for line in (run/"metrics.jsonl").read_text().splitlines()]


def curves(records):
    "name -> [(step, value)] of lines of metrics."
    names = dict.fromkeys(k for r in records for k in numbers(r))
    return {k: [(r["step"], r[k]) for r in records if k in numbers(r)] for k in names}


def events(run):
    "name -> [(step, value)] of what TensorBoard shows, but for the summary."
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    shown = EventAccumulator(str(run/"tensorboard"), size_guidance=dict(scalars=0)).Reload()
    return {k: [(e.step, e.value) for e in shown.Scalars(k)] for k in shown.Tags()["scalars"] if "summary/" not in k}


def near(found, wanted): # event files hold float32
    assert set(found) == set(wanted)
    for k, v in wanted.items():
        assert [s for s, _ in found[k]] == [s for s, _ in v], k
        assert [x for _, x in found[k]] == pytest.approx([x for _, x in v], rel=1e-6), k


@pytest.mark.more
def test_tensorboard_shows_each_step_once(lab, forks):
    "After several deaths, a start over, and a run that is trained longer."
    pytest.importorskip("tensorboard")
    (lab/"killed.py").write_text(KILLED)
    args = dict(pattern="A", name="boarded", tensorboard=True, schedule="constant", warmup_steps=2, checkpoint_every=4,
                save_best=False, eval_every=5, log_every=1)
    run = lab/"runs"/"default"/"boarded"
    def killed(step): assert forks.run(["killed.py", str(step), *flags(**args, steps=10)])[0].returncode != 0
    killed(7)
    (run/"metrics.jsonl").open("a").write('{"step": 8, "tim') # half a line
    next((run/"tensorboard").iterdir()).open("ab").write(b"half a record")
    killed(9)
    assert command(*flags(**args, steps=10)) == 0
    near(events(run), curves(metrics(run)))
    assert [s for s, _ in events(run)["train_loss"]] == list(range(1, 11))
    assert command(*flags(**args, steps=15, extend=True)) == 0
    near(events(run), curves(metrics(run)))
    assert [s for s, _ in events(run)["train_loss"]] == list(range(1, 16))
    assert command(*flags(**args, steps=3, restart=True)) == 0
    near(events(run), curves(metrics(run)))
    assert [s for s, _ in events(run)["train_loss"]] == [1, 2, 3]
    assert b"summary/final_val_loss" in next((run/"tensorboard").iterdir()).read_bytes()


@pytest.mark.more
def test_tensorboard_late_and_beside_wandb(lab, monkeypatch):
    "Asked for when a run is continued, it shows the whole run; and its place does not depend on W&B."
    pytest.importorskip("tensorboard")
    offline(monkeypatch)
    args = dict(pattern="A", name="late", steps=6, log_every=1)
    run = lab/"runs"/"default"/"late"
    assert command(*flags(**args, stop_at=3)) == 0 and not (run/"tensorboard").exists()
    assert command(*flags(**args, tensorboard=True, wandb="offline")) == 0
    near(events(run), curves(metrics(run)))


def offline(monkeypatch):
    "No account and no network."
    pytest.importorskip("wandb")
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR", "WANDB_SERVICE"): monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9") # nothing answers there


def offline_files(run): return list((run/"wandb").glob("offline-run-*/*.wandb"))


def records(path):
    "The records in an offline file of W&B: blocks of 32 KiB, in which each piece has a checksum, a length and a kind."
    from wandb.proto.wandb_internal_pb2 import Record
    data, at, whole = path.read_bytes(), 7, b"" # after the head of the file
    while at < len(data):
        if 2**15 - at % 2**15 < 7: at += 2**15 - at % 2**15 # filled up
        size, kind = struct.unpack("<HB", data[at + 4:at + 7])
        whole, at = whole + data[at + 7:at + 7 + size], at + 7 + size
        if kind in (1, 4): # a whole one, or its last piece
            yield Record.FromString(whole)
            whole = b""


def logged(path):
    "name -> [(step, value)] of the history in an offline file, and the values of the summary."
    history, summary = [], {}
    for r in records(path):
        if r.WhichOneof("record_type") == "history":
            items = {i.key or i.nested_key[0]: json.loads(i.value_json) for i in r.history.item}
            history.append({k: v for k, v in items.items() if not k.startswith("_")})
        if r.WhichOneof("record_type") == "summary":
            summary |= {i.key or i.nested_key[0]: json.loads(i.value_json) for i in r.summary.update}
    return curves(history), summary


def test_wandb_offline(lab, monkeypatch):
    "The run is in the run folder, each step once; the last attempt has all of it, as `wandb sync` takes only one."
    offline(monkeypatch)
    args = dict(pattern="A", name="watched", use_wandb=True, wandb="offline", schedule="constant", warmup_steps=2,
                eval_every=4, log_every=1)
    run = lab/"runs"/"default"/"watched"
    assert command(*flags(**args, steps=8, stop_at=3)) == 0
    id = (run/"wandb_id").read_text()
    assert command(*flags(**args, steps=8)) == 0
    [file] = offline_files(run)
    history, summary = logged(file)
    want = json.loads((run/"summary.json").read_text())
    assert history == curves(metrics(run)) and [s for s, _ in history["train_loss"]] == list(range(1, 9))
    assert {k: v for k, v in want.items() if k in numbers(want)}.items() <= summary.items()
    assert b"hidden_size" in file.read_bytes() and b"summary.json" in file.read_bytes()
    assert command(*flags(**args, steps=12, extend=True)) == 0
    [file] = offline_files(run)
    assert logged(file)[0] == curves(metrics(run)) and file.stem == f"run-{id}" == f"run-{(run/'wandb_id').read_text()}"
    # started over, it is another run there
    assert command(*flags(**args, steps=2, restart=True)) == 0
    [file] = offline_files(run)
    assert logged(file)[0] == curves(metrics(run)) and len(metrics(run)) == 2
    assert (run/"wandb_id").read_text() != id and file.stem == f"run-{(run/'wandb_id').read_text()}"


class Server:
    "What W&B's server does with the lines of runs: those of steps that it has are dropped."
    def __init__(self): self.runs, self.refuses = {}, False

    def init(self, id, dir, **_):
        if self.refuses: raise ConnectionError("no such user")
        rows = self.runs.setdefault(id, [])
        def log(record, step, commit):
            assert not rows or step > rows[-1]["step"], "Tried to log to a step before the current one"
            rows.append(record)
        folder = Path(dir)/"wandb"/f"run-{len(list(Path(dir).glob('wandb/run-*')))}-{id}"/"files"
        folder.mkdir(parents=True)
        return types.SimpleNamespace(starting_step=rows[-1]["step"] + 1 if rows else 0, dir=str(folder), log=log,
                                     summary={}, log_artifact=lambda made: None, finish=lambda: None)


def test_wandb_online(lab, monkeypatch):
    "Continued, a run gives the server what it does not have; one whose lines would be others is a new run there."
    pytest.importorskip("wandb")
    import wandb
    server = Server()
    monkeypatch.setattr(wandb, "init", server.init)
    args = dict(pattern="A", name="online", wandb="online", schedule="wsd", decay_share=.5, warmup_steps=1,
                eval_every=4, checkpoint_every=2, save_best=False, log_every=1)
    run = lab/"runs"/"default"/"online"
    def shown(): return [(r["step"], r["train_loss"]) for r in server.runs[(run/"wandb_id").read_text()]]
    def lines(): return [(r["step"], r["train_loss"]) for r in metrics(run)]
    log = trackers.WandbLog.log
    def dies(self, record):
        log(self, record)
        if record["step"] == 7: raise MemoryError
    with monkeypatch.context() as mp: # after the line of a step that will be taken again
        mp.setattr(trackers.WandbLog, "log", dies)
        assert command(*flags(**args, steps=8)) == 1
    assert command(*flags(**args, steps=8)) == 0 and shown() == lines() and len(server.runs) == 1
    server.runs[(run/"wandb_id").read_text()][4:] = [] # lines that never arrived
    (run/"summary.json").unlink()
    shutil.rmtree(run/"checkpoints"/"step_00000008")
    assert command(*flags(**args, steps=8)) == 0 and shown() == lines() and len(server.runs) == 1
    assert command(*flags(**args, steps=16, extend=True)) == 0 # from step 4, before the rate went down
    assert shown() == lines() and [s for s, _ in lines()] == list(range(1, 17)) and len(server.runs) == 2
    before, server.refuses = (run/"summary.json").read_text(), True
    assert command(*flags(**args, steps=16, restart=True)) == 1
    assert (run/"summary.json").read_text() == before and shown() == lines()
    server.refuses = False
    assert command(*flags(**args, steps=2, restart=True)) == 0
    assert shown() == lines() and len(lines()) == 2 and len(server.runs) == 3
    assert [p.name[6:] for p in (run/"wandb").iterdir()] == [(run/"wandb_id").read_text()]
