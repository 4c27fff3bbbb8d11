"A run that is started over or trained longer: what stays, what goes, and what is refused."
import json, shutil
import pytest, torch
from helpers.lab import command, flags, lines
from hybrid_nb.core.runs import list_checkpoints, run_lock, run_state
from hybrid_nb.data.loading import load_data
from hybrid_nb.training import record, trainer
from hybrid_nb.training.runner import train
from hybrid_nb.training.settings import split_settings
from hybrid_nb.training.trainer import Trainer

SHORT = dict(pattern="A", hidden_size=16, length=32, batch_size=4, eval_batches=2, recall_documents=0, steps=8,
             warmup_steps=2, eval_every=4, checkpoint_every=2, log_every=3)
CLOCK = "name finished runtime_seconds tokens_per_second peak_memory_bytes audit".split()


class PowerCut(Exception): pass


def cut_at(step):
    def cut(trainer):
        if trainer.state.step == step: raise PowerCut
    return cut


def state_of(run):
    "Every file of a run, but for its lock."
    files = (p for p in run.rglob("*") if p.is_file() and p.name != ".lock")
    return {str(p.relative_to(run)): p.read_bytes() for p in files}


@pytest.fixture
def go(settings, tmp_path, monkeypatch):
    "A function that trains in `tmp_path/name`, without audits."
    monkeypatch.setattr(trainer, "audit_start", lambda trainer: [])
    monkeypatch.setattr(record, "audit_end", lambda trainer, summary, parts: [])
    settings |= SHORT
    data = load_data(split_settings(**settings)[1], progress=False)
    def go(name="run", keywords=None, **more):
        known = None if "stateful" in more else data
        return train(*split_settings(**settings | more), tmp_path/name, progress=False, data=known, **keywords or {})
    return go


def same_run(*runs):
    "Lines, results, weights and optimiser of two folders are the same, to the last bit."
    a, b = map(lines, runs)
    assert a == b
    results = [json.loads((run/"summary.json").read_text()) for run in runs]
    a, b = ({k: v for k, v in r.items() if k not in CLOCK} for r in results)
    assert a == b
    configs = [json.loads((run/"config.json").read_text()) for run in runs]
    for part in "model", "data", "train", "corpus": assert configs[0][part] == configs[1][part]
    x, y = ({p.name: (p/"model.safetensors").read_bytes() for p in list_checkpoints(run)} for run in runs)
    assert x == y
    x, y = ((run/"checkpoints"/"best.json") for run in runs)
    assert x.exists() == y.exists() and (not x.exists() or x.read_text() == y.read_text())
    x, y = (list_checkpoints(run)[-1] for run in runs)
    x, y = (torch.load(folder/"trainer.pt", weights_only=True) for folder in (x, y))
    clock = dict(seconds=0, step_seconds=0, step_tokens=0)
    assert x["state"] | clock == y["state"] | clock
    for k, v in x["optimizer"]["state"].items():
        for name, value in v.items(): assert torch.equal(value, y["optimizer"]["state"][k][name])


def test_nothing_of_an_earlier_attempt_stays(go, tmp_path):
    "Whatever it was, but for a file of the user's."
    run = tmp_path/"run"
    want = go("other")
    go(steps=6)
    for name in ("stopped.json bad_steps.jsonl wandb_id train.ipynb .config.json.7.tmp start/config.json notes.md "
                 "tensorboard/events.out.tfevents.1.a wandb/run-1-a/x checkpoints/.step_2.tmp/x").split():
        (run/name).parent.mkdir(parents=True, exist_ok=True)
        (run/name).write_text("{}")
    seen = []
    def first(trainer): seen.append({p.name for p in run.iterdir()} - {".lock"})
    with pytest.raises(PowerCut): go(keywords=dict(resume=False, on_step=lambda t: (first(t), cut_at(1)(t))))
    assert seen == [{"config.json", "metrics.jsonl", "notes.md"}] and (run/"metrics.jsonl").read_text() == ""
    assert run_state(run)["status"] == "interrupted"
    assert go()["final_val_loss"] == want["final_val_loss"]
    same_run(run, tmp_path/"other")


def test_a_notebook_that_a_worker_writes_stays(go, tmp_path):
    run = tmp_path/"run"
    run.mkdir()
    (run/"train.ipynb").write_text("{}")
    with run_lock(run, ".worker.lock"): go(keywords=dict(resume=False), steps=2)
    assert (run/"train.ipynb").exists()


@pytest.mark.parametrize("keywords", [dict(resume=False), dict(extend=True)])
def test_a_refused_attempt_changes_nothing(go, tmp_path, keywords, monkeypatch):
    "Not until the first step is certain does the folder change."
    run, more = tmp_path/"run", dict(schedule="constant", steps=12)
    go(schedule="constant")
    before = state_of(run)
    with monkeypatch.context() as mp:
        mp.setattr(Trainer, "prepare", lambda self: 1/0) # such as memory that is not enough
        with pytest.raises(ZeroDivisionError): go(keywords=keywords, **more)
    with monkeypatch.context() as mp:
        mp.setattr(record, "start_wandb", lambda trainer: 1/0) # such as a server that knows no such user
        with pytest.raises(ZeroDivisionError): go(keywords=keywords, **more)
    with pytest.raises(ValueError): go(keywords=keywords, **more, eval_lengths="9999")
    with pytest.raises(ValueError, match="extend True: continues a run"): go(keywords=dict(extend=True, resume=False))
    assert state_of(run) == before


def test_a_run_that_never_began_leaves_no_settings(go, tmp_path, monkeypatch):
    "They would refuse the next attempt with better ones."
    with monkeypatch.context() as mp:
        mp.setattr(Trainer, "prepare", lambda self: 1/0)
        with pytest.raises(ZeroDivisionError): go()
    go(steps=2)


def test_deletion_that_is_interrupted(go, tmp_path, monkeypatch):
    "Checkpoints go before the settings that say what they are."
    go()
    def dies(path, *_, **__): raise PowerCut(path)
    with monkeypatch.context() as mp, pytest.raises(PowerCut):
        mp.setattr(shutil, "rmtree", dies)
        go(keywords=dict(resume=False), learning_rate=1e-3)
    with pytest.raises(ValueError, match="learning_rate"): go(learning_rate=1e-3)


@pytest.mark.parametrize("more", [
    dict(schedule="constant"),
    dict(schedule="constant", stateful=True, optimizer="muon", dropout=.1, pattern="AM", gradient_accumulation_steps=2),
    dict(schedule="wsd", decay_share=.5, min_learning_rate_ratio=.1, save_best=True), # down from step 4, then 8
    dict(schedule="constant", eval_every=3, save_best=True), # the evaluation of step 8 is no part of the longer run
    dict(schedule="constant", eval_every=5, checkpoint_every=3, keep_checkpoints=1),
], ids=str)
def test_trained_longer(go, tmp_path, more):
    "The same as if it had had these steps from the beginning."
    go("longer", **more | dict(steps=16))
    go(**more)
    assert go(keywords=dict(extend=True), **more | dict(steps=16))["steps"] == 16
    same_run(tmp_path/"run", tmp_path/"longer")
    assert {p.name for p in (tmp_path/"run").iterdir()} == {p.name for p in (tmp_path/"longer").iterdir()}
    assert go(keywords=dict(extend=True), **more | dict(steps=16)) == go(**more | dict(steps=16)) # and is finished


def test_interrupted_while_trained_longer(go, tmp_path):
    more = dict(schedule="constant", steps=16)
    go("longer", **more)
    with pytest.raises(PowerCut): go(**more | dict(steps=6), keywords=dict(on_step=cut_at(5)))
    go(**more | dict(steps=8), keywords=dict(extend=True))
    for step in (9, 13):
        with pytest.raises(PowerCut): go(**more, keywords=dict(on_step=cut_at(step), extend=True))
        assert not (tmp_path/"run"/"summary.json").exists() and not (tmp_path/"run"/"val_windows.npz").exists()
    go(**more) # by now it is a run of 16 steps
    same_run(tmp_path/"run", tmp_path/"longer")


def test_a_constant_rate_is_given_a_descent(go, tmp_path):
    down = dict(schedule="wsd", steps=12, decay_share=.3)
    go("longer", **down)
    go(schedule="constant")
    with pytest.raises(ValueError, match="or train it longer with extend=True or --extend"): go(**down)
    go(**down, keywords=dict(extend=True))
    same_run(tmp_path/"run", tmp_path/"longer")


@pytest.mark.parametrize("more, longer, why", [
    (dict(schedule="cosine"), dict(steps=16), "schedule 'cosine', each learning rate depends on steps; instead, start"),
    (dict(schedule="constant", warmup_steps=.25), dict(steps=16),
     "its warm-up had 2 steps and would have 4; set warmup_steps 2"),
    (dict(schedule="wsd", decay_share=1., checkpoint_every=0), dict(steps=16),
     "after step 3 the learning rate went down, and it has no intact checkpoint up to step 3; instead, start"),
    (dict(schedule="constant", patience=1, learning_rate=1e-9, eval_every=1), dict(steps=16),
     "it stopped early after step [0-9]+, and would again"),
    (dict(schedule="constant"), dict(steps=4), "set steps higher"),
    (dict(schedule="constant"), dict(steps=16, learning_rate=1.), "holds a run with other settings: learning_rate"),
], ids=str)
def test_what_cannot_be_trained_longer(go, tmp_path, more, longer, why):
    "Refused in one line, before any work, and not advertised."
    go(**more)
    before = state_of(tmp_path/"run")
    with pytest.raises(ValueError, match=why) as e: go(keywords=dict(extend=True), **more | longer)
    assert "\n" not in str(e.value)
    with pytest.raises(ValueError, match="holds a run with other settings") as e: go(**more | longer)
    assert "--extend" not in str(e.value) and state_of(tmp_path/"run") == before


def test_on_the_command_line(lab, capsys):
    args = dict(pattern="A", name="longer", schedule="constant", warmup_steps=2, eval_every=4)
    assert command(*flags(**args, steps=4)) == 0
    assert command(*flags(**args, steps=8)) != 0 and "--extend" in capsys.readouterr().err
    assert command(*flags(**args, steps=8, extend=True)) == 0 and "8 steps" in capsys.readouterr().out
    assert command(*flags(**args, steps=8, extend=True, restart=True)) != 0
    assert [l["step"] for l in lines(lab/"runs"/"default"/"longer")] == [3, 4, 6, 8]
