"Gradients that are not finite or far too large, in a run."
import json, math
import pytest
from helpers.lab import lines
from hybrid_nb.core.runs import list_checkpoints
from hybrid_nb.training.runner import train
from hybrid_nb.training.settings import split_settings
from torch import nn


class PowerCut(Exception): pass


class Odd(nn.Module):
    "An objective whose loss is not a number at some steps, and a thousand times as large at another."
    odd_steps = {14: math.nan, 15: math.nan, 18: 1000.}

    def __init__(self, trainer): super().__init__(); self.trainer, self.inner = trainer, trainer.objective

    def forward(self, *args):
        loss, correct = self.inner(*args)
        return loss * self.odd_steps.get(self.trainer.state.step + 1 if self.training else 0, 1.), correct


def make_odd(trainer):
    if not isinstance(trainer.objective, Odd): trainer.objective = Odd(trainer)


@pytest.fixture
def odd_run(settings, data, tmp_path):
    "A function: the summary of a run of 24 steps, of which three go wrong."
    short = dict(pattern="A", steps=24, eval_every=8, checkpoint_every=8, log_every=1, recall_documents=0,
                 max_grad_norm=0., grad_spike_factor=20.)
    def odd_run(name, on_step=make_odd, **more):
        configs = split_settings(**settings | short | more)
        return train(*configs, tmp_path/name, progress=False, data=data, on_step=on_step)
    return odd_run


def test_loss_that_is_no_number(outcome):
    for kw, says in ({}, "step 2: training loss nan"), (dict(grad_spike_factor=10), "step 2: gradient norm nan."):
        with pytest.raises(RuntimeError, match=says): outcome(learning_rate=1e30, warmup_steps=0, **kw)


def test_bad_steps_are_left_out(odd_run, data, tmp_path):
    summary = odd_run("a", max_skipped_steps=2)
    assert summary["skipped_updates"] == 3
    noted = [json.loads(line) for line in (tmp_path/"a"/"bad_steps.jsonl").read_text().splitlines()]
    assert [n["step"] for n in noted] == [14, 15, 18] and noted[0]["what"] == "gradient norm nan"
    assert "times the usual one" in noted[2]["what"]
    assert noted[1]["windows"] == data.batch_windows(0, 14, 8).tolist()
    metrics = lines(tmp_path/"a")
    assert [l["skipped_updates"] for l in metrics][12:19] == [0, 1, 2, 2, 2, 3, 3] and metrics[13]["grad_norm"] is None


def test_too_many_bad_steps_end_the_run(odd_run, tmp_path):
    with pytest.raises(RuntimeError, match="step 15: gradient norm nan. Last good checkpoint: "):
        odd_run("b", max_skipped_steps=1)
    assert [p.name for p in list_checkpoints(tmp_path/"b")] == ["step_00000008"]


def test_bad_steps_of_a_resumed_run(odd_run, tmp_path):
    "Stopping and going on changes nothing, also where the last line of the record was cut."
    def cut_at_20(trainer):
        make_odd(trainer)
        if trainer.state.step == 20: raise PowerCut
    want = odd_run("a", max_skipped_steps=2)
    with pytest.raises(PowerCut): odd_run("c", cut_at_20, max_skipped_steps=2)
    records = [tmp_path/name/"bad_steps.jsonl" for name in "ac"]
    with records[1].open("a") as f: f.write('{"ste')
    assert odd_run("c", max_skipped_steps=2)["final_val_loss"] == want["final_val_loss"]
    assert records[0].read_text() == records[1].read_text()
