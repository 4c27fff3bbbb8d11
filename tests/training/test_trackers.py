"W&B without an account, and TensorBoard."
import shutil, time
import pytest
from helpers.lab import command, flags


def test_wandb_offline(lab, monkeypatch):
    "No account and no network: the run is in the run folder."
    pytest.importorskip("wandb")
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR", "WANDB_SERVICE"): monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9") # nothing answers there
    args = flags(pattern="A", name="watched", steps=4, use_wandb=True, wandb="offline")
    run = lab/"runs"/"default"/"watched"
    assert command(*args) == 0
    [log] = (run/"wandb").glob("offline-run-*/*.wandb")
    wanted, deadline = (b"train_loss", b"final_val_loss", b"hidden_size"), time.time() + 30
    def found(): return {k for k in wanted if k in log.read_bytes()}
    while len(found()) < 3 and time.time() < deadline: time.sleep(.1) # its own process writes it, maybe a moment later
    assert len(found()) == 3
    # continued, it is the same run there
    (run/"summary.json").unlink()
    shutil.rmtree(run/"checkpoints")
    assert command(*args) == 0
    logs = list((run/"wandb").glob("offline-run-*"))
    assert len(logs) >= 1 and {p.name.rsplit("-", 1)[1] for p in logs} == {(run/"wandb_id").read_text()}


@pytest.mark.more
def test_tensorboard(lab):
    pytest.importorskip("tensorboard")
    assert command(*flags(pattern="A", name="boarded", steps=4, tensorboard=True)) == 0
    [log] = (lab/"runs"/"default"/"boarded"/"tensorboard").glob("events.*")
    assert b"train_loss" in log.read_bytes() and b"final_val_loss" in log.read_bytes()
