"Evaluation in a run."
import numpy as np, pytest
from helpers.trained import TINY
from hybrid_nb.core.runs import load_windows
from hybrid_nb.training.cli import describe_summary
from hybrid_nb.training.runner import train_run


def test_longer_windows(outcome, data):
    lengths = outcome(eval_lengths="2 4")[0]["lengths"]
    assert [(l["length"], l["positions"][-1]["position_to"]) for l in lengths] == [(128, 128), (256, 256), (512, 512)]
    whole = outcome(eval_batches=0, eval_lengths="1")[0]["lengths"][0]["val_loss"]
    assert abs(lengths[0]["val_loss"] - whole) < .2
    with pytest.raises(ValueError, match="eval_lengths 'x': must be whole numbers"): outcome(eval_lengths="x")
    with pytest.raises(ValueError, match="a window of 1,279,872 tokens is longer than the validation text"):
        outcome(eval_lengths="9999")
    assert data.step_batch(0, 0, 2)[0].shape == (2, 128)


def test_sums_of_the_final_evaluation(outcome):
    summary, _, run = outcome()
    sums = dict(np.load(run/"val_windows.npz"))
    assert abs(sums["nats"].sum() / sums["tokens"].sum() - summary["final_val_loss"]) < 1e-12
    assert abs(sums["correct"].sum() / sums["tokens"].sum() - summary["val_accuracy"]) < 1e-12
    assert set(sums) == set("window document first tokens source nats correct".split())


@pytest.mark.parametrize("settings", [{}, dict(stateful=True, pattern="M"), dict(corpus="chat-demo", length=96)])
def test_a_last_evaluation_of_some_documents(tmp_path, settings):
    "It reads whole documents, the same sums as the whole set has for them, and says what it read."
    settings = TINY | dict(pattern="AM", study="s", runs=tmp_path, steps=2, warmup_steps=1) | settings
    whole, part = train_run(name="whole", **settings), train_run(name="part", final_eval_tokens=60, **settings)
    all_parts, some = (load_windows(tmp_path/"s"/name) for name in ("whole", "part"))
    kept = np.isin(all_parts["document"], some["document"])
    assert 0 < kept.sum() < len(kept)
    for k, v in some.items(): np.testing.assert_allclose(v, all_parts[k][kept], atol=1e-3)
    assert (whole["final_val_share"], whole["final_val_tokens"]) == (1, all_parts["tokens"].sum())
    assert part["final_val_share"] * whole["final_val_tokens"] == pytest.approx(part["final_val_tokens"])
    assert part["final_val_tokens"] == some["tokens"].sum()
    assert part["final_val_loss"] == pytest.approx(some["nats"].sum() / some["tokens"].sum())
    assert "of the validation set" in describe_summary(part) and "of the validation set" not in describe_summary(whole)
