"All checks of a model, on models of every kind."
import math
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel
from helpers.small_models import small_model
from hybrid_nb.audit.checks import worst_verdict
from hybrid_nb.audit.model_audit import audit_model
from hybrid_nb.models.context_config import ContextConfig
import hybrid_nb.models.context_vector # noqa: F401  registers the model with transformers


def test_a_context_vector_model_passes():
    config = ContextConfig(vocab_size=50, embedding_size=16, context_dim=16, network_size=16, depth=2)
    assert {f.verdict for f in audit_model(AutoModelForCausalLM.from_config(config))} == {"pass"}


def test_any_other_model_of_transformers():
    strange = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=80))
    assert worst_verdict(audit_model(strange)[:3]) == "pass"


def test_a_model_that_cannot_be_run_is_not_checked():
    broken = small_model("A")
    broken.forward = None
    assert {f.verdict for f in audit_model(broken)} - {"pass"} == {"not checked"}


def test_half_precision():
    half = small_model("AFGLMSW").bfloat16()
    assert worst_verdict(f for f in audit_model(half) if f.check.startswith("causality")) == "pass"


def test_not_a_number_is_no_pass():
    poisoned = small_model("AM")
    with torch.no_grad(): poisoned.model.layers[0].mixer.o_proj.weight[0, 0] = math.nan
    assert audit_model(poisoned)[0].verdict == "fail"
