"Evaluation in a run."
import numpy as np, pytest


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
    assert set(sums) == set("window document first tokens nats correct".split())
