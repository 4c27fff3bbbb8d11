"Runs that are told to stop, paused, or killed end as the undisturbed run does."
import os, signal
from dataclasses import replace
from pathlib import Path
import pytest, torch
from helpers.lab import command, flags, lines, SCRIPT
from hybrid_nb.core.files import read_json
from hybrid_nb.core.runs import list_checkpoints
from hybrid_nb.training.preemption import Paused, Preempted
from hybrid_nb.training.runner import train
from safetensors.torch import load_file

# scripts of the command that die or are told to stop at a certain moment
IN_A_STEP = """
import os, signal
from hybrid_nb.training.objective import Objective
forward, steps = Objective.forward, []
def dying(self, *args):
    steps.append(self.training)
    if sum(steps) == 29: os.kill(os.getpid(), signal.SIGKILL)
    return forward(self, *args)
Objective.forward = dying
"""
IN_A_CHECKPOINT = """
import os, signal, torch
save, calls = torch.save, []
def dying(*args):
    calls.append(1)
    if len(calls) == 2: os.kill(os.getpid(), signal.SIGKILL)
    save(*args)
torch.save = dying
"""
TOLD_TO_STOP = """
import os, signal
from hybrid_nb.training.trainer import Trainer
step = Trainer.train_step
def told(self):
    if self.state.step == 6: os.kill(os.getpid(), signal.SIGTERM)
    step(self)
Trainer.train_step = told
"""


def test_sigterm(tmp_path, configs, summary):
    "The step is finished and saved, and the run goes on from there."
    def terminate(trainer):
        if trainer.state.step == 7: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Preempted) as e: train(*configs, tmp_path/"stopped", progress=False, on_step=terminate)
    assert e.value.code == 75
    assert [p.name for p in list_checkpoints(tmp_path/"stopped")] == ["step_00000008"]
    assert train(*configs, tmp_path/"stopped", progress=False)["final_val_loss"] == summary["final_val_loss"]


def test_paused(tmp_path, configs, calm, summary):
    "Paused on the way, and again: the same run."
    model, data, training = configs
    for at in (14, 14, 30):
        with pytest.raises(Paused) as e:
            train(model, data, replace(training, stop_at=at), tmp_path/"paused", progress=False)
        assert (e.value.code, int(list_checkpoints(tmp_path/"paused")[-1].name[5:])) == (0, at)
    assert not (tmp_path/"paused"/"summary.json").exists()
    assert train(*configs, tmp_path/"paused", progress=False)["final_val_loss"] == summary["final_val_loss"]
    assert lines(tmp_path/"paused") == lines(calm)


def killed_runs(forks, args):
    "Start the command and kill it: once in a step, once while it writes a checkpoint."
    for death in IN_A_STEP, IN_A_CHECKPOINT:
        Path("dying").write_text(death + SCRIPT)
        yield forks.run(["dying", *args])[0].returncode


def test_sigkill(lab, forks):
    "A run killed twice ends with the weights and the lines of an undisturbed one."
    settings = dict(pattern="AM", steps=90, checkpoint_every=8, seed=3)
    calm, killed = lab/"runs"/"default"/"calm", lab/"runs"/"default"/"killed"
    args = flags(**settings, name="killed")
    for code in killed_runs(forks, args):
        assert code == -signal.SIGKILL
        assert not (killed/"summary.json").exists() and list((killed/"checkpoints").glob("step_*"))
    assert list((killed/"checkpoints").glob(".step_*.tmp")), "the second death was meant to be in a checkpoint"
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
    args = flags(pattern="A", name="evicted", steps=40, log_every=1, checkpoint_every=0, save_best=False)
    run = lab/"runs"/"default"/"evicted"
    Path("evicted").write_text(TOLD_TO_STOP + SCRIPT)
    [r] = forks.run(["evicted", *args])
    assert r.returncode == 75 and "stopped by SIGTERM after step 7" in r.stderr
    [saved] = (run/"checkpoints").glob("step_*")
    assert int(saved.name[5:]) == lines(run)[-1]["step"] == 7
    assert command(*args) == 0 and [l["step"] for l in lines(run)] == list(range(1, 41))
