"Checkpoints that are damaged, or cannot be written."
import warnings
import pytest, torch
from helpers.trained import flip_bit
from hybrid_nb.core.files import find_corruption
from hybrid_nb.core.runs import list_checkpoints
from hybrid_nb.training.runner import train


def test_damaged_checkpoint(calm, configs, summary):
    "It is named, the one before it used, and it is written again."
    damaged = list_checkpoints(calm)[-1]
    (calm/"summary.json").unlink()
    flip_bit(damaged/"model.safetensors", -5)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        again = train(*configs, calm, progress=False)
    says = f"checkpoint {damaged}: model.safetensors is not what was written; the one before it is used"
    assert says in [str(w.message) for w in caught]
    assert again["final_val_loss"] == summary["final_val_loss"] and find_corruption(damaged) is None
    (damaged/"trainer.pt").unlink()
    assert "trainer.pt" in find_corruption(damaged)


def test_full_disk(tmp_path, configs, monkeypatch):
    "The error names the checkpoint, and leaves no part of it."
    def full(*_): raise OSError(28, "No space left on device")
    monkeypatch.setattr(torch, "save", full)
    says = r"step_00000020: cannot be written \(\[Errno 28\] No space left"
    with pytest.raises(RuntimeError, match=says): train(*configs, tmp_path/"full", progress=False)
    assert list((tmp_path/"full"/"checkpoints").iterdir()) == []
