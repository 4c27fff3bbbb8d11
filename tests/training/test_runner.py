"One call: locks, broken files, runs of earlier versions."
import json, shutil, warnings
import numpy as np, pytest
from helpers.lab import lines
from hybrid_nb.core.files import read_json
from hybrid_nb.core.runs import list_checkpoints, load_windows, old_names
from hybrid_nb.training.runner import measure_windows, train
from hybrid_nb.training.settings import split_settings


class PowerCut(Exception): pass


def test_two_trainings_never_write_to_one_folder(settings, tmp_path):
    configs = split_settings(pattern="A", **settings | dict(steps=1, recall_documents=0))
    refused = []
    def again(trainer):
        with pytest.raises(RuntimeError, match="b: another process is training this run") as e:
            train(*configs, tmp_path/"b", progress=False)
        refused.append(e)
    train(*configs, tmp_path/"b", progress=False, on_step=again)
    assert len(refused) == 1


def test_broken_config(calm, configs):
    (calm/"summary.json").unlink()
    (calm/"config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json: Expecting"): train(*configs, calm, progress=False)


def test_measure_windows(outcome, data):
    "The sums of a run from its last checkpoint, if its corpus is the one it was."
    summary, _, run = outcome()
    kept = load_windows(run)
    (run/"val_windows.npz").unlink()
    again = measure_windows(run, data)
    assert np.allclose(again["nats"], kept["nats"], rtol=0, atol=1e-4) and set(load_windows(run)) == set(kept)
    (run/"summary.json").write_text(json.dumps(summary | dict(final_val_loss=summary["final_val_loss"] + .1)))
    with pytest.raises(ValueError, match="the corpus is not the one it was"): measure_windows(run, data)
    shutil.rmtree(run/"checkpoints"/"step_00000012")
    with pytest.raises(ValueError, match="no checkpoint of its last step, 12"): measure_windows(run, data)


def as_earlier(run):
    "Make the folder of a run one as an earlier version would have left it: other names of settings and of a corpus."
    config, old = read_json(run/"config.json"), {new: old for old, new in old_names.items()}
    for part in "data", "train": config[part] = {old.get(k, k): v for k, v in config[part].items()}
    if config["data"]["corpus"] == "stories": config["data"]["corpus"] = "world"
    (run/"config.json").write_text(json.dumps(config))
    if (run/"init_from").exists(): (run/"init_from").rename(run/"start")


def test_run_of_an_earlier_version(settings, tmp_path):
    "Interrupted there, it is resumed here, under the old names or the new ones, to the numbers of an undisturbed run."
    new = dict(pattern="AM", steps=12, eval_every=4, checkpoint_every=4, recall_documents=10, stateful=True,
               gradient_accumulation_steps=2, max_grad_norm=.5, grad_spike_factor=50., max_skipped_steps=2)
    back = {new: old for old, new in old_names.items()}
    old = {back.get(k, k): v for k, v in new.items()} | dict(corpus="world")
    def cut_at_7(trainer):
        if trainer.state.step == 7: raise PowerCut
    want = train(*split_settings(**settings | new), tmp_path/"calm", progress=False)
    for name, given in dict(new=new, old=old).items():
        with pytest.raises(PowerCut):
            train(*split_settings(**settings | new), tmp_path/name, progress=False, on_step=cut_at_7)
        as_earlier(tmp_path/name)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "setting .* is now called")
            configs = split_settings(**settings | given)
        got = train(*configs, tmp_path/name, progress=False)
        assert got["final_val_loss"] == want["final_val_loss"] and lines(tmp_path/name) == lines(tmp_path/"calm")
        assert len(list_checkpoints(tmp_path/name)) == 3
    as_earlier(tmp_path/"calm") # a finished one is read
    assert train(*split_settings(**settings | new), tmp_path/"calm", progress=False) == want
    with pytest.raises(ValueError, match="max_grad_norm 0.5 there, 2.0 now"):
        train(*split_settings(**settings | new | dict(max_grad_norm=2.)), tmp_path/"calm", progress=False)
