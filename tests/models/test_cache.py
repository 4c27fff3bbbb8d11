"Generation with a cache is generation without one, and windows that hand their state on are one long window."
import pytest, torch
from transformers import CompileConfig, DynamicCache, GenerationConfig, StaticCache
from hybrid_nb.models.cache import WindowState
from hybrid_nb.models.config import HybridConfig
from hybrid_nb.models.context_config import ContextConfig
from hybrid_nb.models.context_vector import ContextForCausalLM
from hybrid_nb.models.modeling import HybridForCausalLM
from hybrid_nb.models.registry import mixers, register
from hybrid_nb.core.patterns import blocks

# random weights that do not just repeat a token
LIVELY = dict(vocab_size=100, hidden_size=32, num_attention_heads=4, state_size=4, ssd_state_size=8, ssd_head_dim=16,
              ssd_groups=2, dropout=0., q_lora_rank=12, kv_lora_rank=16, qk_rope_head_dim=4, qk_nope_head_dim=6,
              sliding_window=7, initializer_range=0.3, tie_word_embeddings=False, scale_embedding=False)
YARN = dict(rope_type="yarn", rope_factor=4., rope_original_length=8)
CASES = [("AMAM", {}), ("M2", {}), ("S2", {}), ("GAMSWFL", {}), ("W2", {}), ("L2", {}),
         ("LMA", dict(qk_nope_head_dim=0, attention_bias=True)), ("LAW", YARN)]


def lively(pattern, **settings):
    torch.manual_seed(0)
    return HybridForCausalLM(HybridConfig(pattern=pattern, **(LIVELY | settings))).eval()

def random_ids(length=30):
    "Two texts; 0 is padding."
    return torch.randint(1, 100, (2, length), generator=torch.Generator().manual_seed(1))

def generate(m, ids, **kw): return m.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0, **kw)


@pytest.mark.parametrize("pattern", ["AMAM", "M2", "S2", "A2", "G2", "GAMSWFL", "W2", "F", "L2", "(LF)2"])
def test_cached_generation_is_uncached_generation(pattern):
    m, prompt = lively(pattern), random_ids(9)
    assert torch.equal(generate(m, prompt), generate(m, prompt, use_cache=False))
    assert torch.equal(generate(m, prompt, num_beams=3), generate(m, prompt, num_beams=3, use_cache=False))
    assert len(generate(m, prompt)[0, 9:].unique()) > 2
    if set(pattern) & set("AMSL"): # which see beyond the last few tokens
        assert not torch.equal(generate(m, prompt)[:, 9:], generate(m, prompt[:, 4:])[:, 5:])


@torch.no_grad()
@pytest.mark.parametrize("pattern, settings", CASES)
def test_several_tokens_at_once_continue_a_cache(pattern, settings):
    m, ids = lively(pattern, **settings), random_ids()
    full, cache, at = m(ids).logits, None, 0
    for n in 11, 1, 6, 12:
        out = m(ids[:, at:at+n], past_key_values=cache, use_cache=True)
        torch.testing.assert_close(out.logits, full[:, at:at+n], atol=1e-4, rtol=0)
        cache, at = out.past_key_values, at + n


@torch.no_grad()
@pytest.mark.parametrize("pattern, settings", CASES)
def test_left_padding_changes_nothing(pattern, settings):
    m, ids = lively(pattern, **settings), random_ids()
    padded = torch.cat([torch.zeros(2, 5, dtype=torch.long), ids], 1)
    mask = torch.cat([torch.zeros(2, 5), torch.ones(2, 30)], 1).long()
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = m(padded, attention_mask=mask, position_ids=positions).logits
    torch.testing.assert_close(logits[:, 5:], m(ids).logits, atol=1e-4, rtol=0)
    assert torch.equal(generate(m, padded, attention_mask=mask)[:, 35:], generate(m, ids)[:, 30:])


@torch.no_grad()
@pytest.mark.parametrize("pattern", ["AMAM", "M2", "S2", "GAMSWFL", "L2"])
def test_a_cache_is_kept_and_continued(pattern):
    "By a second call of `generate` too."
    m, ids = lively(pattern), random_ids()
    kept = m(ids[:, :20], use_cache=True).past_key_values
    assert kept.get_seq_length() == 20
    assert torch.equal(generate(m, ids, past_key_values=kept), generate(m, ids))
    kept.reset()
    assert kept.get_seq_length() == 0


def in_windows(m, ids, sizes):
    "Logits window by window, and the state after the last."
    left, logits = {}, []
    for x in ids.split(sizes, 1):
        window = WindowState(left)
        h = m.model(x, past_key_values=window, use_cache=False).last_hidden_state
        logits.append(m.lm_head(h))
        left = window.left
    return torch.cat(logits, 1), left

def apart(m, ids, size):
    "Logits of windows that know nothing of each other."
    return torch.cat([m.lm_head(m.model(x).last_hidden_state) for x in ids.split(size, 1)], 1)


@pytest.mark.parametrize("sizes", [[15, 15], [2, 1, 20, 7]], ids=["even", "shorter than the convolution"])
@pytest.mark.parametrize("pattern", ["M2", "S2", "MSGF", "G2"])
def test_windows_are_one_long_window(pattern, sizes):
    m, ids = lively(pattern).train(), random_ids()
    got, left = in_windows(m, ids, sizes)
    torch.testing.assert_close(got, m.lm_head(m.model(ids).last_hidden_state), atol=1e-4, rtol=0)
    assert left and not any(v.requires_grad for v in left.values())


@pytest.mark.parametrize("pattern", ["M2", "S2", "MSGF", "G2"])
def test_a_windows_gradient_ends_at_its_first_token(pattern):
    m, ids = lively(pattern).train(), random_ids()
    x = m.model.embed_tokens(ids).detach().requires_grad_()
    first, second = WindowState(), WindowState()
    m.model(inputs_embeds=x[:, :15], past_key_values=first, use_cache=False)
    second.kept = first.left
    h = m.model(inputs_embeds=x[:, 15:], past_key_values=second, use_cache=False).last_hidden_state
    reach = torch.autograd.grad(h.square().sum(), x)[0].abs().sum((0, 2))
    assert (reach[:15] == 0).all() and (reach[15:] > 0).all()


@torch.no_grad()
def test_attention_sees_its_window_only():
    m, ids = lively("AW").train(), random_ids()
    logits, left = in_windows(m, ids, [15, 15])
    torch.testing.assert_close(logits, apart(m, ids, [15, 15]), atol=1e-5, rtol=0)
    assert left == {}
    m = lively("AM").train() # and a recurrent block carries what it found further
    assert (in_windows(m, ids, [15, 15])[0] - apart(m, ids, [15, 15]))[:, 15:].abs().max() > .01


@torch.no_grad()
def test_a_letter_without_a_cache_is_generated_without_one():
    class RunningMean(torch.nn.Module):
        def __init__(self, config, layer_idx):
            super().__init__()
            self.out = torch.nn.Linear(config.hidden_size, config.hidden_size)
        def forward(self, x, **context):
            return self.out(x.cumsum(1) / torch.arange(1, x.shape[1]+1, device=x.device)[:, None])
    register("X", "running mean")(RunningMean)
    try:
        m, ids = lively("(XM)2"), random_ids()
        assert m.config.use_cache is False and m(ids).past_key_values is None
        want = ids[:, :9]
        for _ in range(12): want = torch.cat([want, m(want).logits[:, -1:].argmax(-1)], 1)
        assert torch.equal(generate(m, ids[:, :9]), want)
        with pytest.raises(ValueError, match="X keeps no state"): m(ids, use_cache=True)
    finally: del mixers["X"], blocks["X"]
    with pytest.raises(ValueError, match="unknown block 'X'"): HybridConfig(pattern="XM")


PATTERNS = ["A", "W", "L", "M", "S", "G", "AM", "MF", "MASGWLF"]
GREEDY = dict(max_new_tokens=6, do_sample=False, pad_token_id=0)


@pytest.mark.parametrize("n", [1, 2, 3, 9]) # shorter than the convolution, and longer
@pytest.mark.parametrize("pattern", PATTERNS)
def test_caches_that_others_make(pattern, n):
    "The same tokens, or one line; in plain loops too, whose cache is filled in place."
    torch.manual_seed(0)
    m = HybridForCausalLM(HybridConfig(pattern=pattern, **LIVELY)).eval()
    ids = torch.randint(1, 100, (2, n), generator=torch.Generator().manual_seed(0))
    want = m.generate(ids, use_cache=False, **GREEDY)
    def same(**how): return torch.equal(m.generate(ids, **GREEDY | how), want)
    assert same() and same(cache_implementation="dynamic")
    assert same(past_key_values=DynamicCache()) and same(past_key_values=DynamicCache(config=m.config))
    for cache in DynamicCache(), DynamicCache(config=m.config):
        with torch.no_grad():
            logits = [m(t, past_key_values=cache, use_cache=True).logits for t in want[:, :-1].split(2, 1)]
            torch.testing.assert_close(torch.cat(logits, 1), m(want[:, :-1]).logits, rtol=1e-3, atol=1e-4)
    static = StaticCache(config=m.config, max_cache_len=32)
    if set(pattern) & set("AWL"): assert same(past_key_values=static) and same(cache_implementation="static")
    else:
        with pytest.raises(ValueError, match=f"a StaticCache cannot hold the state of pattern '{pattern}'"):
            m.generate(ids, past_key_values=static, **GREEDY)
        with pytest.raises(ValueError, match=f"cache_implementation 'static': the state of pattern '{pattern}'"):
            m.generate(ids, cache_implementation="static", **GREEDY)


@pytest.mark.parametrize("pattern", ("M2", "S2", "G2", "AMAM"))
def test_generate_does_not_compile_by_itself(pattern):
    "As transformers does on a GPU for caches that allow it; ours keep in Python what belongs to which text."
    m = lively(pattern)
    cache = m(random_ids(3), use_cache=True).past_key_values
    everywhere = CompileConfig()
    everywhere._compile_all_devices = True
    assert not m._valid_auto_compile_criteria(dict(past_key_values=cache), GenerationConfig(compile_config=everywhere))


@pytest.mark.parametrize("n", [1, 9])
def test_caches_that_others_make_for_a_context_vector(n):
    m, ids = random_model("C"), random_ids(n)
    want = generate(m, ids, use_cache=False)
    for how in dict(cache_implementation="dynamic"), dict(past_key_values=DynamicCache()):
        assert torch.equal(generate(m, ids, **how), want)
    cache = DynamicCache(config=m.config)
    with torch.no_grad():
        logits = [m(t, past_key_values=cache, use_cache=True).logits for t in want[:, :-1].split(2, 1)]
        torch.testing.assert_close(torch.cat(logits, 1), m(want[:, :-1]).logits, rtol=1e-3, atol=1e-4)
    static = StaticCache(config=m.config, max_cache_len=32)
    with pytest.raises(ValueError, match="a StaticCache cannot hold the context of this model"):
        generate(m, ids, past_key_values=static)
    full = DynamicCache()
    full.update(torch.ones(2, 1, 1, 1), torch.ones(2, 1, 1, 1), 0)
    with pytest.raises(ValueError, match="a DynamicCache with keys cannot hold"): m(ids, past_key_values=full)
    with pytest.raises(ValueError, match="cache_implementation 'static': what this model remembers has a fixed size"):
        generate(m, ids, cache_implementation="static")


def random_model(pattern, seed=0):
    "Of a pattern; C is the context vector."
    if pattern != "C":
        torch.manual_seed(seed)
        return HybridForCausalLM(HybridConfig(pattern=pattern, **LIVELY)).eval()
    torch.manual_seed(15 + seed)
    sizes = dict(vocab_size=100, embedding_size=12, context_dim=16, hidden_size=24, depth=2, initializer_range=.5)
    return ContextForCausalLM(ContextConfig(**sizes)).eval()


@pytest.mark.parametrize("n", [1, 2, 3, 9])
@pytest.mark.parametrize("pattern", [*PATTERNS, "C"])
def test_drafts_and_beams_change_no_token(pattern, n):
    "Assisted generation, in which tokens are taken back, and several beams write what they do without a cache."
    m, ids = random_model(pattern), random_ids(n)
    want = generate(m, ids[:1], use_cache=False)
    drafts = [m, random_model("AM", 3), random_model("SW", 3), random_model("GLF", 3), random_model("C", 3)]
    for draft in drafts: assert torch.equal(generate(m, ids[:1], assistant_model=draft), want)
    for k in 1, 3: assert torch.equal(generate(m, ids[:1], prompt_lookup_num_tokens=k), want)
    want = generate(m, ids, use_cache=False, num_beams=3)
    assert torch.equal(generate(m, ids, num_beams=3), want)
    assert torch.equal(generate(m, ids, num_beams=3, past_key_values=DynamicCache()), want)


def test_contrastive_search_is_no_part_of_transformers_any_more():
    with pytest.raises(ValueError, match="Contrastive Search requires `trust_remote_code=True`"):
        generate(random_model("AM"), random_ids(3), penalty_alpha=.6, top_k=4)


def read(m, ids, moves, cache):
    "Read so many tokens, or take so many back; the logits of what is read are those of the whole text."
    with torch.no_grad(): at, full = 0, m(ids).logits
    for n in moves:
        if n > 0:
            with torch.no_grad(): logits = m(ids[:, at:at+n], past_key_values=cache, use_cache=True).logits
            torch.testing.assert_close(logits, full[:, at:at+n], atol=1e-4, rtol=1e-4)
        else: cache.crop(n)
        at += n
        assert cache.get_seq_length() == at


MOVES = [[12, -3, 4, -4, 5], [2, 1, 1, 1, -5, 6], [1, -1, 4], [12, 0, 1, -1, 3], [70, -64, 5]]

@pytest.mark.parametrize("moves", MOVES, ids=str)
@pytest.mark.parametrize("pattern", [*PATTERNS, "F", "C"])
def test_tokens_are_taken_back(pattern, moves):
    m, ids = random_model(pattern), random_ids(80)
    cache = m.new_cache()
    cache.activate_past_recording()
    read(m, ids, moves, cache)
    cache.reset()
    read(m, ids, [5, -5, 7], cache)
    if pattern != "C":
        theirs = DynamicCache(config=m.config)
        theirs.activate_past_recording()
        read(m, ids, moves, theirs)
    late = m.new_cache() # which begins to record later
    read(m, ids, [9], late)
    late.activate_past_recording()
    with torch.no_grad(): m(ids[:, 9:12], past_key_values=late, use_cache=True)
    late.crop(-3)
    with torch.no_grad(): got, want = m(ids[:, 9:], past_key_values=late, use_cache=True).logits, m(ids).logits[:, 9:]
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("pattern", [*PATTERNS, "F", "C"])
def test_what_cannot_be_taken_back(pattern):
    "One line says so, and the cache is as it was."
    m, ids = random_model(pattern), random_ids(80)
    def refused(cache, tokens, line):
        with pytest.raises((ValueError, RuntimeError), match=line): cache.crop(tokens)
        length = cache.get_seq_length()
        logits = m(ids[:, length:], past_key_values=cache, use_cache=True).logits
        torch.testing.assert_close(logits, m(ids).logits[:, length:], atol=1e-4, rtol=1e-4)
    def filled(n, record):
        cache = m.new_cache()
        if record: cache.activate_past_recording()
        m(ids[:, :n], past_key_values=cache, use_cache=True)
        return cache
    refused(filled(12, False), 3, "crop 3: give minus the number of tokens")
    if set(pattern) & set("MSGWC"): # which have a state of fixed size, or a window
        refused(filled(12, False), -3, "activate_past_recording")
        cache = filled(12, True)
        cache.crop(-2)
        refused(cache, -1, "crop: 1 tokens to take back, at most 0")
    if set(pattern) & set("MSGC"): refused(filled(70, True), -65, "crop: 65 tokens to take back, at most 64")


@torch.no_grad()
@pytest.mark.parametrize("pattern", [*PATTERNS, "C"])
def test_rows_of_a_cache_are_repeated_and_chosen(pattern):
    "As beams and contrastive search do."
    m, ids = random_model(pattern), random_ids(12)
    cache = m(ids[:, :9], use_cache=True).past_key_values
    cache.batch_repeat_interleave(3)
    more = torch.randint(1, 100, (6, 2), generator=torch.Generator().manual_seed(3))
    m(more, past_key_values=cache, use_cache=True)
    chosen = torch.tensor([1, 5, 3])
    cache.batch_select_indices(chosen)
    cache.reorder_cache(torch.tensor([2, 0, 1]))
    whole = torch.cat([ids[:, :9].repeat_interleave(3, 0), more], 1)[chosen][[2, 0, 1]]
    got = m(whole[:, :2], past_key_values=cache, use_cache=True).logits
    torch.testing.assert_close(got, m(torch.cat([whole, whole[:, :2]], 1)).logits[:, -2:], atol=1e-4, rtol=1e-4)
