"The model as files, and as one graph."
import pytest, torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from hybrid_nb.models.config import HybridConfig
from hybrid_nb.models.modeling import HybridForCausalLM
from hybrid_nb.training.objective import Objective


experiment9 = dict(q_lora_rank=12, kv_lora_rank=12, qk_rope_head_dim=8, qk_nope_head_dim=0, attention_bias=True)
yarn = dict(rope_type="yarn", rope_factor=4., rope_original_length=16)


def small(pattern, **settings):
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, num_attention_heads=4, vocab_size=300, sliding_window=9, ssd_head_dim=16, dropout=0.)
    return HybridConfig(pattern=pattern, **sizes | settings)


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("pattern", ["AMSGWFL", "M2", "S", "A", "L"])
def test_a_saved_model_is_the_same_model(tmp_path, pattern, tied):
    m = HybridForCausalLM(small(pattern, tie_word_embeddings=tied)).eval()
    ids = torch.randint(1, 300, (2, 30))
    m.save_pretrained(tmp_path)
    for load in HybridForCausalLM, AutoModelForCausalLM:
        back = load.from_pretrained(tmp_path).eval()
        assert type(back) is HybridForCausalLM and back.config.pattern == pattern.replace("M2", "MM")
        assert torch.equal(back(ids).logits, m(ids).logits)
    fresh = HybridForCausalLM(HybridConfig.from_pretrained(tmp_path))
    assert fresh.state_dict().keys() == m.state_dict().keys()
    hidden = AutoModel.from_pretrained(tmp_path)(ids).last_hidden_state
    assert torch.equal(hidden, m.model(ids).last_hidden_state)


@pytest.mark.parametrize("settings", [
    dict(pattern="AMAM", rope_theta=None, num_key_value_heads=2, norm="rmsnorm", dropout=0.),
    dict(pattern="L", rope_type="yarn", rope_factor=4., rope_original_length=64, q_lora_rank=9, v_head_dim=5,
         kv_lora_rank=128)], ids=["AM", "L"])
def test_a_saved_configuration_is_the_same_configuration(tmp_path, settings):
    HybridConfig(**settings).save_pretrained(tmp_path)
    back = AutoConfig.from_pretrained(tmp_path)
    assert back.auto_map["AutoModelForCausalLM"] == "modeling_hybrid_nb.HybridForCausalLM"
    assert {k: getattr(back, k) for k in settings} == settings


@pytest.mark.parametrize("pattern,settings", [
    ("AMS", {}), ("GWF", {}), ("LF", {}), ("L", experiment9), ("LAW", yarn),
    ("AL", dict(rope_type="linear", rope_factor=4.))])
def test_training_compiles_without_graph_breaks(pattern, settings):
    "Loss and gradients of the compiled objective are those of the plain one; `fullgraph` fails at a break."
    config = small(pattern, **settings)
    objective = Objective(HybridForCausalLM(config).train())
    x, y = torch.randint(300, (2, 2, 40))

    def values(f):
        objective.zero_grad()
        nats, right = f(x, y)
        nats.backward()
        return [nats.detach(), right, *(p.grad.clone() for p in objective.parameters())]

    compiled = torch.compile(objective, fullgraph=True, backend="aot_eager")
    for a, b in zip(values(compiled), values(objective)): torch.testing.assert_close(a, b)


@pytest.mark.parametrize("settings", [{}, dict(q_lora_rank=12), experiment9, yarn],
                         ids=["defaults", "query latent", "experiment 9", "yarn"])
def test_latent_attention_trains_under_autocast(settings):
    "In bf16 the loss falls, gradients are those of float32 to bf16's precision, and the weights stay float32."
    model = HybridForCausalLM(small("LFL", norm="rmsnorm", **settings)).train()
    objective, (x, y) = Objective(model), torch.randint(300, (2, 2, 40))

    def gradients(dtype):
        model.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
            nats, _ = objective(x, y)
        nats.backward()
        return nats.item(), torch.cat([p.grad.flatten() for p in model.parameters()])

    exact, g = gradients(torch.float32)
    nats, h = gradients(torch.bfloat16)
    assert abs(nats/exact - 1) < 0.01 and torch.cosine_similarity(g, h, dim=0) > 0.99 and h.dtype == torch.float32
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(20):
        nats, _ = gradients(torch.bfloat16)
        optimizer.step()
    assert nats < 0.7*exact


@pytest.mark.parametrize("pattern,settings", [("LMA", {}), ("L2", experiment9), ("AWL", yarn)])
def test_a_text_far_beyond_the_trained_length_is_read(pattern, settings):
    "Rotary positions have no last one: nothing turns to NaN at position 100,000, and cached is uncached there."
    model, ids = HybridForCausalLM(small(pattern, **settings)).eval(), torch.randint(300, (1, 12))
    at = torch.arange(100_000, 100_012)[None]
    with torch.no_grad():
        full = model(ids, position_ids=at).logits
        start = model(ids[:, :10], position_ids=at[:, :10], use_cache=True)
        rest = [model(ids[:, i:i+1], position_ids=at[:, i:i+1], past_key_values=start.past_key_values).logits
                for i in (10, 11)]
        torch.testing.assert_close(torch.cat([start.logits, *rest], 1), full)
        # distances alone count, to the precision of a float32 angle
        torch.testing.assert_close(full, model(ids).logits, atol=2e-3, rtol=0)
