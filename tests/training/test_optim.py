"Optimisers in a run."
import shutil
from hybrid_nb.training.runner import train
from hybrid_nb.training.settings import split_settings


def test_muon(outcome, settings, data):
    "Another optimiser, another result, not a worse one; and it goes on from a checkpoint as the same run."
    adamw, (want, _, run) = outcome(dropout=0.)[0]["final_val_loss"], outcome(dropout=0., optimizer="muon")
    want = want["final_val_loss"]
    assert abs(want - adamw) < .5 and want != adamw
    (run/"summary.json").unlink(); shutil.rmtree(run/"checkpoints"/"step_00000012")
    short = dict(pattern="A", steps=12, eval_every=4, checkpoint_every=4, recall_documents=0)
    configs = split_settings(**settings | short | dict(dropout=0., optimizer="muon"))
    assert train(*configs, run, progress=False, data=data)["final_val_loss"] == want
