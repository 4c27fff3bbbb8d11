"Windows that hand their state on: the loss of a row is that of its document so far, read at once."
from dataclasses import replace
import numpy as np, pytest, torch
from helpers.lab import lines
from hybrid_nb.core.runs import list_checkpoints
from hybrid_nb.data.loading import load_data
from hybrid_nb.training.evaluation import evaluate, val_parts
from hybrid_nb.training.objective import Objective
from hybrid_nb.training.runner import train
from hybrid_nb.training.settings import split_settings
from transformers import AutoModelForCausalLM


class PowerCut(Exception): pass


def document_so_far(trainer, step, row):
    "The nats of a row of a step, its document read at once from the beginning."
    cfg, d = trainer.cfg, trainer.data
    first = step
    while d.goes_on(cfg.seed, first, cfg.batch_size)[row]: first -= 1
    def targets(k): return np.stack(d.windows.targets(d.batch_windows(cfg.seed, k, cfg.batch_size)))[:, row]
    (a, _), (b, c) = targets(first), targets(step)
    text = torch.from_numpy(d.train.tokens[a-1:c].astype(np.int64))[None]
    with torch.no_grad(): return trainer.plain(text[:, :-1], text[:, 1:], each=True)[0][0, b-a:].sum().item()


def batched(arrays): return (torch.from_numpy(a.astype(np.int64))[None] for a in arrays)


@pytest.fixture(params=[dict(pattern="MSG", ssd_head_dim=16), dict(pattern="MF", gradient_accumulation_steps=3)],
                ids=["all mixers", "accumulated"])
def still(request, settings, tmp_path):
    "A run that hardly learns: its configurations, its summary, its folder, and losses in steps and of whole documents."
    hand_on = dict(stateful=True, dropout=0., initializer_range=.1, batch_size=6, length=24, learning_rate=1e-30,
                   log_every=100, eval_every=12, checkpoint_every=0, steps=12, recall_documents=0)
    configs, losses = split_settings(**settings | hand_on | request.param), []
    def compare(trainer):
        cfg, step = trainer.cfg, trainer.state.step - 1
        if step not in (0, 1, 4, 9, 10): return
        nats = sum(document_so_far(trainer, step, row) for row in range(cfg.batch_size))
        losses.append((trainer.pending[-1][1][0].item(), nats / trainer.data.targets(cfg.seed, step, cfg.batch_size)))
    summary = train(*configs, tmp_path/"still", progress=False, on_step=compare)
    return configs, summary, tmp_path/"still", losses


def test_training_and_evaluation(still):
    "The loss of a step, and that of the validation set, are those of whole documents, whatever the window."
    configs, summary, run, losses = still
    assert len(losses) == 5 and len({round(a, 3) for a, _ in losses}) > 3
    assert np.allclose(*zip(*losses), rtol=0, atol=1e-4)
    data = load_data(configs[1], progress=False)
    first, end = data.val.tokens[0], data.tokenizer.eos_token_id
    documents = [np.append(first, np.append(data.val.document(i), end)) for i in range(data.val.n_documents)]
    m = Objective(AutoModelForCausalLM.from_pretrained(list_checkpoints(run)[-1]).eval())
    with torch.no_grad(): want = [m(t[:, :-1], t[:, 1:])[0].item() for t in batched(documents)]
    assert abs(summary["final_val_loss"] - sum(want) / data.val_targets) < 1e-4
    kept = dict(np.load(run/"val_windows.npz"))
    packed = val_parts(load_data(replace(configs[1], stateful=False), progress=False))
    assert np.allclose(np.bincount(kept["document"], kept["nats"]), want, rtol=0, atol=1e-2)
    tokens = [np.bincount(p["document"], p["tokens"]) for p in (kept, packed)]
    assert np.array_equal(*tokens)
    whole = evaluate(m, data, data.val_documents(), rows=3)["val_loss"]
    assert abs(whole - summary["final_val_loss"]) < 1e-5
    assert abs(kept["correct"].sum() / kept["tokens"].sum() - summary["val_accuracy"]) < 1e-6


@pytest.mark.parametrize("family, kw", [("hybrid", dict(pattern="AMS", ssd_head_dim=16)),
    ("context", dict(depth=1, context_dim=16, network_size=32, embedding_size=16))])
def test_stopped_and_continued(settings, tmp_path, family, kw):
    "It is the same run, to the last bit; state and all."
    mine = {k: v for k, v in settings.items() if family == "hybrid" or k not in ("hidden_size", "num_attention_heads")}
    short = dict(steps=8, recall_documents=0, stateful=True, eval_every=4, checkpoint_every=4, length=32)
    configs = split_settings(family, **mine | short | kw)
    whole, parts = tmp_path/"whole", tmp_path/"parts"
    def cut_at_6(trainer):
        if trainer.state.step == 6: raise PowerCut
    first = train(*configs, whole, progress=False)
    with pytest.raises(PowerCut): train(*configs, parts, progress=False, on_step=cut_at_6)
    assert train(*configs, parts, progress=False) | dict(time=0) != first # clocks differ,
    assert lines(parts) == lines(whole) # nothing else
    saved = torch.load(parts/"checkpoints"/"step_00000004"/"trainer.pt", weights_only=True)["kept"]
    assert saved and all(len(v) == 8 and v.abs().max() > 0 for v in saved.values())


def test_too_large_a_batch(settings, tmp_path):
    configs = split_settings(**settings | dict(pattern="M", stateful=True, batch_size=10**6))
    with pytest.raises(ValueError, match="batch_size 1000000: with stateful each row"):
        train(*configs, tmp_path/"f", progress=False)


def test_patterns_without_a_state():
    with pytest.raises(ValueError, match=r"pattern 'AWF' has no recurrent block \(those are G, M, S\)"):
        split_settings(stateful=True, pattern="AWF")
