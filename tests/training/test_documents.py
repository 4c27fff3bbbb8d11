"Documents that share a window and do not see each other: every piece of a document counts as if it were alone."
from dataclasses import replace
import numpy as np, pytest, torch
from hybrid_nb.core.runs import list_checkpoints
from hybrid_nb.data.loading import load_data
from hybrid_nb.training.evaluation import val_parts
from hybrid_nb.training.objective import Objective
from hybrid_nb.training.runner import measure_windows, train
from hybrid_nb.training.settings import split_settings
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM


def pieces(row, targets, start):
    "The parts of a window that belong to one document each, as batches of one."
    begins = [0, *(np.flatnonzero(row[1:] == start) + 1), len(row)]
    return [(row[None, a:b], targets[None, a:b]) for a, b in zip(begins, begins[1:])]


def nats_alone(objective, x, y, start):
    with torch.no_grad():
        return sum(objective(a, b)[0].item() for row, t in zip(x, y) for a, b in pieces(row, t, start))


@pytest.mark.parametrize("family, kw", [("hybrid", dict(pattern="AMSGWLF", ssd_head_dim=16)),
    ("context", dict(depth=1, context_dim=16, network_size=32, embedding_size=16))])
def test_training_and_evaluation(settings, tmp_path, family, kw):
    apart = dict(documents="separate", dropout=0., initializer_range=.1, length=48, max_chars=90, steps=4, eval_every=2,
                 recall_documents=0)
    mine = {k: v for k, v in settings.items() if family == "hybrid" or k not in ("hidden_size", "num_attention_heads")}
    configs, losses = split_settings(family, **mine | apart | kw), []
    def compare(trainer):
        cfg, step = trainer.cfg, trainer.state.step - 1
        x, y = trainer.data.step_batch(cfg.seed, step, cfg.batch_size)
        assert (x[:, 1:] == trainer.data.document_start).any() # windows of several documents
        plain.append(Objective(trainer.model.eval()))
        found = [o(x, y)[0].item() for o in (trainer.plain, plain[-1])]
        losses.append((found[0], nats_alone(plain[-1], x, y, trainer.data.document_start), found[1]))
        trainer.model.train()
    plain = []
    summary = train(*configs, tmp_path/"run", progress=False, on_step=compare)
    assert len(losses) == 4
    for together, alone, joined in losses:
        assert abs(together - alone) < 1e-5 * alone and abs(joined - alone) > 1e-5 * alone, losses
    data = load_data(configs[1], progress=False)
    m = Objective(AutoModelForCausalLM.from_pretrained(list_checkpoints(tmp_path/"run")[-1]).eval())
    x, y = data.val_batch(0, data.n_val_windows)
    assert abs(summary["final_val_loss"] - nats_alone(m, x, y, data.document_start) / data.val_targets) < 1e-4
    kept = dict(np.load(tmp_path/"run"/"val_windows.npz"))
    assert np.array_equal(kept["tokens"], val_parts(data)["tokens"])
    (tmp_path/"run"/"val_windows.npz").unlink()
    again = measure_windows(tmp_path/"run")
    assert np.allclose(again["nats"], kept["nats"], rtol=0, atol=1e-3)


def test_rows_that_follow_their_documents_are_separate_anyway(settings, tmp_path):
    kw = dict(pattern="MSG", ssd_head_dim=16, stateful=True, steps=4, length=24, recall_documents=0, dropout=0.)
    summaries = [train(*split_settings(**settings | kw | dict(documents=d)), tmp_path/d, progress=False)
                 for d in ("joined", "separate")]
    assert abs(summaries[0]["final_val_loss"] - summaries[1]["final_val_loss"]) < 1e-6


def test_end_of_text_within_a_text(settings, monkeypatch):
    "Where the token in front of documents stands elsewhere, documents cannot be told apart by it."
    _, config, _ = split_settings(**settings)
    data = load_data(config, progress=False)
    tokens = np.array(data.val.tokens)
    tokens[5] = data.tokenizer.eos_token_id
    class Broken(type(data.val)):
        def __init__(self, *args):
            super().__init__(*args)
            if len(self.tokens) == len(tokens): self.tokens = tokens
    monkeypatch.setattr("hybrid_nb.data.batches.TokenSet", Broken)
    load_data(config, progress=False)
    with pytest.raises(ValueError, match="documents 'separate': .* end-of-text tokens for .* documents"):
        load_data(replace(config, documents="separate"), progress=False)


def test_models_that_are_not_told():
    llama = LlamaForCausalLM(LlamaConfig(vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                                         num_attention_heads=2))
    with pytest.raises(ValueError, match="documents 'separate': LlamaModel takes no segments"): Objective(llama, 0)
    Objective(llama)
