"Runs that start from the checkpoint of another."
import shutil
import pytest
from hybrid_nb.data.tokenizers import train_bpe
from hybrid_nb.models.config import HybridConfig
from hybrid_nb.training import runner
from hybrid_nb.training.config import TrainConfig
from hybrid_nb.training.runner import train
from hybrid_nb.training.settings import split_settings
from transformers import AutoModelForCausalLM


class PowerCut(Exception): pass


def cut_at_3(trainer):
    if trainer.state.step == 3: raise PowerCut


@pytest.fixture
def base(outcome):
    "A checkpoint to start from: one attention block, 64 wide, 512 tokens."
    return outcome(steps=8, checkpoint_every=8)[2]/"checkpoints"/"step_00000008"


@pytest.fixture
def tune(settings, base):
    "A function: train four steps from `base` in a folder."
    mine = {k: v for k, v in settings.items() if k not in ("hidden_size", "num_attention_heads", "vocab_size")}
    mine |= dict(init_from=str(base), steps=4, eval_every=2, checkpoint_every=2, warmup_steps=0, recall_documents=0,
                 length=64)
    def tune(run, on_step=None, family=None, **more):
        return train(*split_settings(family, run_dir=run, **mine | more), run, progress=False, on_step=on_step)
    return tune


@pytest.fixture
def refuses(tune, tmp_path):
    "A function: the settings are refused with a `ValueError` that says so."
    def refuses(says, **settings):
        with pytest.raises(ValueError) as e: tune(tmp_path/"refused", **settings)
        assert says in str(e.value), e.value
    return refuses


@pytest.fixture
def unread(monkeypatch):
    "No data are read."
    def load_data(*_, **__): raise AssertionError("data were read")
    monkeypatch.setattr(runner, "load_data", load_data)


def test_begins_with_its_weights(tune, base, data, tmp_path):
    fresh, seen = AutoModelForCausalLM.from_pretrained(base).state_dict(), []
    def first_weights(trainer):
        if trainer.state.step > 1: return
        moved = (trainer.model.lm_head.weight.detach() - fresh["lm_head.weight"]).abs().max().item()
        seen.append((trainer.model.config.hidden_size, trainer.data.folder, moved))
    tune(tmp_path/"a", first_weights, learning_rate=1e-6)
    assert seen[0][:2] == (64, data.folder) and seen[0][2] < 1e-5


@pytest.mark.parametrize("own", ["init_from", "start"]) # `start`: as earlier versions called it
def test_continued_without_the_folder(tune, base, tmp_path, own):
    "What a run needs of the checkpoint lies in its own folder."
    want = tune(tmp_path/"b")
    copied = shutil.copytree(base, tmp_path/"copy"/"base")
    with pytest.raises(PowerCut): tune(tmp_path/"c", cut_at_3, init_from=str(copied))
    shutil.rmtree(copied)
    (tmp_path/"c"/"init_from").rename(tmp_path/"c"/own)
    for _ in range(2): # continued, then read
        assert tune(tmp_path/"c", init_from=str(copied))["final_val_loss"] == want["final_val_loss"]
    kept = sorted(p.name for p in (tmp_path/"c"/own).iterdir() if "token" not in p.name)
    assert kept == ["config.json", "generation_config.json"]


def test_folders_that_are_refused(refuses, base, tmp_path, unread):
    refuses("no such folder", init_from=str(tmp_path/"none"))
    refuses("a run, not a checkpoint (its newest is ", init_from=str(base.parent.parent))
    refuses("not a checkpoint", init_from=str(tmp_path))
    hurt = shutil.copytree(base, tmp_path/"hurt")
    (hurt/"config.json").write_text((hurt/"config.json").read_text() + " ")
    refuses("config.json is not what was written", init_from=str(hurt))


def test_settings_that_are_refused(refuses, base, tmp_path, unread):
    refuses("hidden_size 32: the checkpoint that the run starts from has 64; leave it out", hidden_size=32)
    refuses("pattern 'AM': the checkpoint", pattern="AM")
    refuses("tokenizer 'word': would be", tokenizer="word")
    refuses("family 'context': the checkpoint that the run starts from is of the family 'hybrid'", family="context")
    refuses("dropout 1.5", dropout=1.5)


def test_configurations_that_are_refused(configs, base, tmp_path, unread):
    training = TrainConfig(init_from=str(base))
    with pytest.raises(ValueError, match="pattern 'AM': the checkpoint"):
        train(HybridConfig(pattern="AM"), configs[1], training, tmp_path/"d")
    with pytest.raises(ValueError, match="belongs to the run that would be deleted"):
        train(HybridConfig(), configs[1], training, base.parent.parent, resume=False)


def test_what_follows_from_the_checkpoint(base):
    model, data, _ = split_settings(init_from=str(base), dropout=.3)
    assert model.dropout == .3 and model.pattern == "A" and data.tokenizer == str(base)


def test_larger_tokenizer_is_refused(refuses, tmp_path):
    texts = ["many words of many kinds " + str(i) for i in range(3000)]
    train_bpe(texts, 900).save_pretrained(tmp_path/"big")
    refuses("the checkpoint that the run starts from 512", tokenizer=str(tmp_path/"big"))
