"Audits of a run: they change no number, and say what is wrong."
import pytest, torch.nn.functional as F
from helpers.lab import lines
from helpers.small_models import letters_restored
from hybrid_nb.mixers.attention import Attention
from hybrid_nb.models.registry import register
from hybrid_nb.training import record, trainer
from hybrid_nb.training.cli import describe_summary
from hybrid_nb.training.runner import train
from hybrid_nb.training.settings import split_settings


def test_verdicts(summary):
    found = {f["check"]: f["verdict"] for f in summary["audit"] if f["verdict"] != "pass"}
    assert found == {"better than a 5-gram": "warn"} | ({"repetition": "warn"} if summary["epochs"] > 4 else {})
    assert "hardly trained: " in describe_summary(summary)
    assert len(summary["audit"]) == 21 and "FAILED" not in describe_summary(summary)


def test_audits_change_no_number(tmp_path, configs, calm, summary, monkeypatch):
    monkeypatch.setattr(trainer, "audit_start", lambda trainer: [])
    monkeypatch.setattr(record, "audit_end", lambda trainer, summary, parts: [])
    plain = train(*configs, tmp_path/"plain", progress=False)
    assert plain["audit"] == [] and lines(tmp_path/"plain") == lines(calm)
    assert plain["final_val_loss"] == summary["final_val_loss"]


@pytest.fixture
def all_true_attention():
    "A block `X` whose attention sees the future, as experiment 9's did."
    with letters_restored():
        @register("X", "all-true attention", cache=None)
        class AllTrue(Attention):
            def __init__(self, c, layer_idx):
                super().__init__(c.hidden_size, c.num_attention_heads, layer_idx=layer_idx)

            def mix(self, q, k, v, mask): return F.scaled_dot_product_attention(q, k, v)
        yield


def test_a_leak_is_reported(tmp_path, settings, all_true_attention, capsys):
    configs = split_settings(**settings | dict(pattern="AX", steps=2, eval_every=2, recall_documents=0))
    leaky = train(*configs, tmp_path/"leaky", progress=False)
    found = {f["check"]: f for f in leaky["audit"]}
    checks = "causality (training)", "causality (evaluation)", "cached mode", "evaluation"
    assert [found[k]["verdict"] for k in checks] == ["fail", "fail", "not checked", "pass"]
    assert found["causality (training)"]["evidence"].count("block 1 (X all-true attention)") == 1
    assert capsys.readouterr().err.count("audit failed: causality (training): ") == 1
    assert "FAILED AUDIT: causality (training), causality (evaluation)" in describe_summary(leaky)
