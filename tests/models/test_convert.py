"Models of transformers as patterns, and back: the same logits, the same weights, and refusals of one line."
import pytest, torch
from transformers import (
    LlamaConfig, LlamaForCausalLM, Mamba2Config, Mamba2ForCausalLM, MambaConfig, MambaForCausalLM, MistralConfig,
    MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM)
from helpers.mixers import need_grouped_norm
from hybrid_nb.models.config import HybridConfig
from hybrid_nb.models.context_config import ContextConfig
from hybrid_nb.models.context_vector import ContextForCausalLM
from hybrid_nb.models.convert import from_llama, from_mamba, from_mamba2, from_transformers, to_transformers
from hybrid_nb.models.modeling import HybridForCausalLM

SIZES = dict(vocab_size=100, hidden_size=32, num_hidden_layers=2)
HEADS = SIZES | dict(num_attention_heads=4, intermediate_size=48)
MISTRAL = HEADS | dict(head_dim=8)
SSD = SIZES | dict(state_size=8, head_dim=16, num_heads=4, n_groups=1, chunk_size=16)
YARN = dict(rope_type="yarn", factor=3., rope_theta=1e4, original_max_position_embeddings=16)
LLAMA3 = dict(rope_type="llama3", factor=8., low_freq_factor=1., high_freq_factor=4.,
              original_max_position_embeddings=64, rope_theta=1e4)

CASES = [(kind, settings, pattern) for kind, pattern, variants in [
    ("llama", "AFAF", [
        dict(num_key_value_heads=2, rms_norm_eps=1e-2), dict(num_key_value_heads=1, tie_word_embeddings=True),
        dict(attention_bias=True), dict(rope_parameters=dict(rope_type="default", rope_theta=5e5)),
        dict(rope_parameters=dict(rope_type="linear", factor=3., rope_theta=1e4)),
        dict(rope_parameters=YARN, max_position_embeddings=48)]),
    ("mistral", "AFAF", [dict(sliding_window=None, num_key_value_heads=2)]),
    ("mistral", "WFWF", [dict(sliding_window=7, num_key_value_heads=4)]),
    ("mamba", "MM", [
        dict(state_size=5, conv_kernel=3, expand=3, time_step_rank=7), dict(use_bias=True, use_conv_bias=False),
        dict(tie_word_embeddings=False, layer_norm_epsilon=1e-2)]),
    ("mamba2", "SS", [
        dict(n_groups=4, chunk_size=7, tie_word_embeddings=True), dict(use_bias=True, use_conv_bias=False),
        dict(layer_norm_epsilon=1e-2, conv_kernel=3), dict(expand=3, num_heads=6)])] for settings in variants]
CLASSES = dict(llama=(LlamaForCausalLM, LlamaConfig, HEADS), mistral=(MistralForCausalLM, MistralConfig, MISTRAL),
               mamba=(MambaForCausalLM, MambaConfig, SIZES), mamba2=(Mamba2ForCausalLM, Mamba2Config, SSD),
               qwen2=(Qwen2ForCausalLM, Qwen2Config, HEADS))


def peer(kind, seed=0, **settings):
    "A model of transformers with norms away from 1 and biases from 0."
    torch.manual_seed(seed)
    cls, config, common = CLASSES[kind]
    m = cls(config(**common | settings)).eval()
    with torch.no_grad():
        for p in m.parameters(): p.add_(0.02 * torch.randn_like(p))
    return m

def ours_of(pattern, **settings):
    torch.manual_seed(0)
    sizes = dict(vocab_size=100, hidden_size=32, num_attention_heads=4, intermediate_size=48, sliding_window=7,
                 ssd_head_dim=16, norm="rmsnorm")
    m = HybridForCausalLM(HybridConfig(pattern=pattern, **sizes | settings)).eval()
    with torch.no_grad():
        for p in m.parameters(): p.add_(0.02 * torch.randn_like(p))
    return m

@torch.no_grad()
def logits(m): return m(torch.randint(1, 100, (2, 40), generator=torch.Generator().manual_seed(1))).logits

def apart(a, b): return ((a - b).abs().max() / b.abs().max()).item()

def same_weights(a, b): return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


@pytest.mark.parametrize("kind, settings, pattern", CASES)
def test_a_peer_as_a_pattern(kind, settings, pattern):
    need_grouped_norm(settings.get("n_groups", 1))
    theirs = peer(kind, **settings)
    ours = from_transformers(theirs)
    assert ours.config.pattern == pattern and apart(logits(ours), logits(theirs)) < 2e-6


@pytest.mark.parametrize("kind, settings, pattern", CASES)
def test_a_peer_there_and_back(kind, settings, pattern):
    "Weights and settings are those of before; a Mistral without a window is a Llama."
    theirs = peer(kind, **settings)
    back = to_transformers(from_transformers(theirs))
    assert same_weights(back.state_dict(), theirs.state_dict())
    if (kind, pattern) == ("mistral", "AFAF"): assert isinstance(back, LlamaForCausalLM)
    else:
        assert type(back) is type(theirs)
        # these change no number: what cannot run longer than it was made for, and the size of a chunk
        free = {"max_position_embeddings", "chunk_size", "architectures", "dtype", "_name_or_path", "use_cache"}
        a, b = ({k: v for k, v in m.config.to_dict().items() if k not in free} for m in (back, theirs))
        assert a == b
    assert apart(logits(back), logits(theirs)) < 1e-6


@pytest.mark.parametrize("settings", [
    dict(), dict(tie_word_embeddings=False), dict(scale_embedding=False), dict(use_bias=True, use_conv_bias=False),
    dict(norm_eps=1e-3, num_key_value_heads=2, state_size=5, conv_kernel=3, time_step_rank=3, ssd_groups=2),
    dict(rope_theta=5e5), dict(rope_type="linear", rope_factor=3.),
    dict(rope_type="yarn", rope_factor=3., rope_original_length=16)], ids=lambda s: ", ".join(s) or "defaults")
@pytest.mark.parametrize("pattern, cls", [("(AF)2", LlamaForCausalLM), ("(WF)3", MistralForCausalLM),
                                          ("M3", MambaForCausalLM), ("S2", Mamba2ForCausalLM)])
def test_a_pattern_there_and_back(pattern, cls, settings):
    if pattern == "S2": need_grouped_norm(settings.get("ssd_groups", 1))
    ours = ours_of(pattern, **settings)
    theirs = to_transformers(ours)
    assert type(theirs) is cls and not theirs.training and apart(logits(theirs), logits(ours)) < 1e-6
    back = from_transformers(theirs)
    assert back.config.pattern == ours.config.pattern and torch.equal(logits(back), logits(ours))
    again = to_transformers(back)
    assert same_weights(again.state_dict(), theirs.state_dict())
    if not ours.config.scale_embedding: assert same_weights(back.state_dict(), ours.state_dict())


def test_attention_with_biases_becomes_a_llama():
    ours = ours_of("(AF)2", attention_bias=True)
    assert apart(logits(to_transformers(ours)), logits(ours)) < 1e-6


def test_the_model_given_stays_as_it_is():
    ours = ours_of("(AF)2")
    before = {k: v.clone() for k, v in ours.state_dict().items()}
    to_transformers(ours)
    assert same_weights(ours.state_dict(), before) and ours.config.tie_word_embeddings


def test_half_precision_is_kept():
    for pattern in "(AF)2", "S2":
        theirs = to_transformers(ours_of(pattern).bfloat16())
        assert theirs.dtype == torch.bfloat16 and from_transformers(theirs).dtype == torch.bfloat16


@pytest.mark.parametrize("kind, settings, message", [
    ("llama", dict(mlp_bias=True), "mlp_bias True, must be False"),
    ("llama", dict(head_dim=16), "head_dim 16, must be 8"),
    ("llama", dict(hidden_act="gelu"), "hidden_act 'gelu', must be 'silu'"),
    ("llama", dict(rope_parameters=LLAMA3), "rope_type 'llama3' in rope_parameters, must be default, linear or yarn"),
    ("llama", dict(rope_parameters=YARN | dict(beta_fast=16.), max_position_embeddings=48),
     "beta_fast 16.0 in rope_parameters, must be 32"),
    ("qwen2", dict(num_key_value_heads=4),
     "a model of type 'qwen2', which is no pattern (accepted: llama, mistral, mamba, mamba2)"),
    ("mamba", dict(hidden_act="gelu"), "hidden_act 'gelu', must be 'silu'"),
    ("mamba2", dict(hidden_act="gelu"), "hidden_act 'gelu', must be 'silu'"),
    ("mamba2", dict(time_step_limit=(0.01, 0.1)), "time_step_limit (0.01, 0.1), must be")])
def test_a_peer_that_is_no_pattern(kind, settings, message):
    with pytest.raises(ValueError) as e: from_transformers(peer(kind, **settings))
    assert message in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("pattern, settings, message", [
    ("AMAM", {}, "pattern AMAM: no model of transformers (these are: (AF)n, (WF)n, Mn, Sn)"),
    ("AFWF", {}, "no model of transformers"), ("G2", {}, "no model of transformers"),
    ("(AF)2", dict(norm="layernorm"), "norm 'layernorm', must be 'rmsnorm' to be a llama"),
    ("M2", dict(norm="layernorm"), "norm 'layernorm', must be 'rmsnorm' to be a mamba"),
    ("(AF)2", dict(rope_theta=None), "rope_theta None, must be a number"),
    ("(WF)2", dict(attention_bias=True), "attention_bias True, must be False to be a mistral")])
def test_a_pattern_that_is_no_peer(pattern, settings, message):
    with pytest.raises(ValueError) as e: to_transformers(ours_of(pattern, **settings))
    assert message in str(e.value) and "\n" not in str(e.value)


def test_other_models_are_refused():
    model = ContextForCausalLM(ContextConfig(vocab_size=20, embedding_size=4, context_dim=4, network_size=8, depth=1))
    with pytest.raises(ValueError, match="'hybrid_nb_context': must be a HybridForCausalLM"): to_transformers(model)
    with pytest.raises(ValueError, match="a model of type 'hybrid_nb', which is no pattern"):
        from_transformers(ours_of("AM"))
    with pytest.raises(ValueError, match="a model of type 'mamba', which is no pattern .accepted: llama, mistral"):
        from_llama(peer("mamba"))


@torch.no_grad()
@pytest.mark.parametrize("kind, read, pattern, settings", [
    ("mamba", from_mamba, "MM", dict(state_size=4, use_bias=True)), ("llama", from_llama, "AFAF", dict()),
    ("mamba2", from_mamba2, "SS", dict(use_bias=True, use_conv_bias=False, tie_word_embeddings=True))])
def test_a_folder_is_read_and_generates(tmp_path, kind, read, pattern, settings):
    theirs = peer(kind, pad_token_id=0, **settings)
    theirs.save_pretrained(tmp_path)
    ids = torch.randint(1, 100, (2, 30))
    for f in read, from_transformers:
        ours = f(tmp_path)
        assert ours.config.pattern == pattern
        torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, atol=1e-5, rtol=0)
    text = [m.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0) for m in (ours, theirs)]
    assert torch.equal(*text)


@torch.no_grad()
@pytest.mark.parametrize("pattern", ["(AF)2", "(WF)2", "M2", "S2"])
def test_what_leaves_is_a_model_of_transformers(tmp_path, pattern):
    "Saved, loaded by its own class, and generating the same text."
    ours = ours_of(pattern, pad_token_id=0)
    theirs = to_transformers(ours)
    theirs.save_pretrained(tmp_path)
    back = type(theirs).from_pretrained(tmp_path).eval()
    assert torch.equal(logits(back), logits(theirs)) and not [*tmp_path.glob("*.py")]
    ids = torch.randint(1, 100, (1, 9))
    assert torch.equal(*(m.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0) for m in (ours, back)))


@pytest.mark.parametrize("pattern", ["(AF)2", "(WF)2"])
def test_scaled_positions_are_a_llamas(pattern):
    "YaRN against transformers; a window beyond the text is none, and without the scaling the logits differ."
    theirs = peer("llama", max_position_embeddings=48, rope_parameters=YARN)
    settings = dict(sliding_window=64, scale_embedding=False, tie_word_embeddings=False, dropout=0., norm_eps=1e-6)
    yarn = dict(rope_type="yarn", rope_factor=3., rope_original_length=16)
    weights = from_llama(theirs).state_dict()
    for rope, same in (yarn, True), ({}, False):
        ours = ours_of(pattern, **settings, **rope)
        ours.load_state_dict(weights)
        assert (apart(logits(ours), logits(theirs)) < 1e-4) == same
