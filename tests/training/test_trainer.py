"The loop: accumulation, seeds, precision, which checkpoints stay, early stopping, dialogs."
import json, math, warnings
import pytest, torch
from hybrid_nb.data.loading import load_data
from hybrid_nb.training.config import TrainConfig
from hybrid_nb.training.runner import train
from hybrid_nb.training.settings import split_settings


def best(run): return json.loads((run/"checkpoints"/"best.json").read_text())["folder"]


def test_accumulation_seeds_and_dropout(outcome):
    "Parts change nothing; another seed and another dropout do."
    given = [dict(dropout=0.), dict(dropout=0., gradient_accumulation_steps=4, eval_batch_size=8),
             dict(dropout=0., seed=1), dict()]
    a, b, c, d = (outcome(**kw)[0]["final_val_loss"] for kw in given)
    assert abs(a - b) < 1e-5 and len({round(v, 4) for v in (a, c, d)}) == 3


def test_which_checkpoints_stay(outcome):
    assert outcome()[1] == [4, 8, 12]
    assert outcome(keep_checkpoints=1)[1] == [12] and outcome(checkpoint_every=0)[1] == [12]


def test_the_best_checkpoint_stays(outcome):
    worse = dict(learning_rate=1., warmup_steps=4, max_grad_norm=0, eval_every=2, checkpoint_every=2)
    _, steps, run = outcome(**worse, keep_checkpoints=1)
    assert best(run) == f"step_{steps[0]:08d}" and steps[-1] == 12
    summary, _, run = outcome(checkpoint_every=0, eval_every=5, save_best=True)
    assert summary["best_step"] == 12 and best(run) == "step_00000012"


def test_early_stopping(outcome):
    "A best that is not the last is kept."
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        s, steps, _ = outcome(steps=40, learning_rate=1., warmup_steps=20, max_grad_norm=0, patience=2, eval_every=2,
                              checkpoint_every=0, save_best=True)
    assert s["stopped_early"] and s["steps"] < 40 and s["best_step"] < s["steps"] and s["best_val_loss"] < s["val_loss"]
    assert steps == [s["best_step"], s["steps"]]


def test_precision(outcome):
    assert abs(outcome(precision="bf16")[0]["final_val_loss"] - outcome()[0]["final_val_loss"]) < .05
    if not torch.accelerator.is_available():
        with pytest.raises(ValueError, match="precision 'fp16': needs an accelerator"): outcome(precision="fp16")


def test_one_step(outcome): assert outcome(steps=1)[0]["tokens_per_second"] > 0


def test_dialogs(settings, tmp_path):
    "Only responses count, in whatever parts; the tokens of a batch are its targets."
    chat = dict(pattern="A", steps=4, eval_every=2, recall_documents=0, corpus="chat-demo", length=96,
                max_documents=None, dropout=0.)
    parts = [split_settings(**settings | chat | dict(gradient_accumulation_steps=n)) for n in (1, 4)]
    one, four = (train(*p, tmp_path/f"chat{k}", progress=False) for k, p in enumerate(parts))
    assert abs(one["final_val_loss"] - four["final_val_loss"]) < 1e-5
    data = load_data(parts[0][1], progress=False)
    assert one["tokens_seen"] == sum(data.targets(0, s, 8) for s in range(4))
    bits = one["final_val_loss"] / math.log(2) * data.val_targets / data.val.n_bytes
    assert one["bits_per_byte"] == pytest.approx(bits, abs=1e-6)
    with pytest.raises(ValueError, match="eval_lengths '2': the examples of a dialog corpus"):
        train(*parts[0][:2], TrainConfig(eval_lengths="2"), tmp_path/"e", progress=False)
