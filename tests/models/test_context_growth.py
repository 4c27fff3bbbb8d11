"A context-vector model grows in a run: no output changes, only what is new is trained, and misuse is refused."
import json
import pytest, torch
from transformers import AutoModelForCausalLM
from hybrid_nb.models.config import HybridConfig
from hybrid_nb.models.modeling import HybridForCausalLM
from hybrid_nb.training.config import TrainConfig
from hybrid_nb.training.runner import train, train_run
from hybrid_nb.training.settings import split_settings

options = dict(corpus="stories", max_documents=60, vocab_size=300, length=24, steps=8, batch_size=20, eval_every=4,
               eval_batches=2, checkpoint_every=4, log_every=2, learning_rate=3e-3, warmup_steps=0,
               recall_documents=0, device="cpu", progress=False)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    "A trained model with 24 numbers of context: the folder of its checkpoint, and the loss it ended with."
    folder = tmp_path_factory.mktemp("start")
    summary = train_run(family="context", runs=folder, name="old", cache_dir=str(folder/"cache"), embedding_size=16,
                        context_dim=24, network_size=32, depth=2, **options)
    return folder/"default"/"old"/"checkpoints"/"step_00000008", summary

def grow(checkpoint, on_step=None, name="grown", **kw):
    "Grow it to 40 by a run; its folder and its summary."
    runs = checkpoint.parents[3]
    settings = options | dict(init_from=str(checkpoint), expand_context=40, cache_dir=str(runs/"cache")) | kw
    settings.pop("progress")
    return runs/"default"/name, train(*split_settings(**settings), runs/"default"/name, progress=False, on_step=on_step)

def weights(folder): return AutoModelForCausalLM.from_pretrained(folder).state_dict()

def test_growing_changes_no_output(checkpoint):
    "A run that grows a model and takes steps of no size ends with the loss it began with."
    folder, old = checkpoint
    run, summary = grow(folder, name="still", learning_rate=1e-30)
    assert summary["final_val_loss"] == pytest.approx(old["final_val_loss"], abs=1e-6)
    assert summary["parameters_trained"] == summary["parameters"] > old["parameters"]
    saved = weights(run/"checkpoints"/"step_00000008")
    # what is added writes from the start, and is not read yet
    assert saved["model.blocks.1.write.weight"].abs().max() > .1
    assert json.loads((run/"config.json").read_text())["model"]["context_blocks"] == [24, 16]

def test_only_what_is_new_is_trained(checkpoint):
    """With AdamW and a strong decay all else is bit for bit as it was, and without the setting it is not.

    Also in a run that stopped on the way and was continued."""
    folder, old = checkpoint
    class Stop(Exception): pass
    def stop(trainer):
        if trainer.state.step == 5: raise Stop
    new = dict(train_new_only=True, weight_decay=.5)
    run, summary = grow(folder, **new)
    with pytest.raises(Stop): grow(folder, stop, name="stopped", **new)
    stopped, _ = grow(folder, name="stopped", **new)
    before, after = weights(folder), weights(run/"checkpoints"/"step_00000008")
    again, early = weights(stopped/"checkpoints"/"step_00000008"), weights(run/"checkpoints"/"step_00000004")
    assert all(torch.equal(after[k], again[k]) for k in after) and all(torch.equal(after[k], before[k]) for k in before)
    added = {k for k in after if k.startswith("model.blocks.1.")}
    assert added == set(after) - set(before)
    n = sum(after[k].numel() for k in added)
    assert summary["parameters_trained"] == n == summary["parameters"] - old["parameters"]
    assert not any(torch.equal(after[k], early[k]) for k in added)
    assert summary["final_val_loss"] != old["final_val_loss"]
    run, _ = grow(folder, name="all", weight_decay=.5)
    moved = weights(run/"checkpoints"/"step_00000008")
    assert not any(torch.equal(moved[k], before[k]) for k in before)

def test_growing_refuses(checkpoint, tmp_path):
    "In a line, before anything is read."
    folder, _ = checkpoint
    hybrid = HybridConfig(pattern="A", hidden_size=32, num_attention_heads=2, vocab_size=300)
    HybridForCausalLM(hybrid).save_pretrained(tmp_path/"hybrid")
    for says, kw in [
            ("expand_context 24: must be above 24", dict(expand_context=24)),
            ("expand_context 16: must be above 24", dict(expand_context=16)),
            ("expand_context 32.5: must be int", dict(expand_context=32.5)),
            ("expand_context 40: goes with init_from", dict(init_from=None)),
            ("train_new_only True: goes with expand_context", dict(expand_context=None, train_new_only=True)),
            ("train_new_only 'yes': must be bool", dict(train_new_only="yes")),
            ("is of the family 'hybrid', which has no context vector", dict(init_from=str(tmp_path/"hybrid"))),
            ("context_dim 40: the checkpoint that the run starts from has 24", dict(context_dim=40)),
            ("family 'hybrid': the checkpoint", dict(family="hybrid"))]:
        with pytest.raises(ValueError) as e: split_settings(**options_of(folder) | kw)
        assert says in str(e.value) and "\n" not in str(e.value), e.value
    # made for a model that is not grown
    model, data, _ = split_settings(**options_of(folder) | dict(expand_context=None))
    with pytest.raises(ValueError, match="expand_context 40: the model's configuration was made with another"):
        train(model, data, TrainConfig(init_from=str(folder), expand_context=40), tmp_path/"run")
    assert not (tmp_path/"run").exists()

def options_of(folder):
    given = {k: v for k, v in options.items() if k != "progress"}
    return given | dict(init_from=str(folder), expand_context=40)
