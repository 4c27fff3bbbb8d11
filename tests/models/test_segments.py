"""Packed rows and padding of any kind: each text as if it were alone, values, gradients and caches."""
import copy
import pytest, torch
from helpers.small_models import letters_restored
from transformers import DataCollatorWithFlattening, DynamicCache, StaticCache
from hybrid_nb.models.config import HybridConfig
from hybrid_nb.models.context_config import ContextConfig
from hybrid_nb.models.context_vector import ContextForCausalLM
from hybrid_nb.models.modeling import HybridForCausalLM
from hybrid_nb.models.registry import register
from hybrid_nb.mixers.recurrent import max_kept_states

LETTERS = "AMSGWLF"
PATTERNS = "A", "W", "L", "M", "S", "G", LETTERS, "MSGM", "context"
SIZES = dict(vocab_size=50, hidden_size=32, num_attention_heads=4, state_size=4, ssd_state_size=8, ssd_head_dim=16,
             kv_lora_rank=16, qk_rope_head_dim=4, sliding_window=4, ssd_chunk_size=8, dropout=0.,
             tie_word_embeddings=False) # tied, a model with random weights repeats its last token
LENGTHS = 7, 1, 12, 3, 2


def make(pattern, **kw):
    torch.manual_seed(0)
    if pattern == "context":
        sizes = dict(vocab_size=50, embedding_size=12, context_dim=10, context_blocks=[4, 6], network_size=16, depth=2)
        model = ContextForCausalLM(ContextConfig(**sizes, dropout=0., **kw))
    else: model = HybridForCausalLM(HybridConfig(pattern=pattern, **SIZES | kw))
    with torch.no_grad():
        for name, p in model.named_parameters(): # weights whose state matters: small ones would hide what is wrong
            if p.ndim > 1 and "A" not in name.split(".")[-1]: p.mul_(3)
    return model.eval()


def texts(lengths=LENGTHS, seed=1):
    g = torch.Generator().manual_seed(seed)
    return [torch.randint(50, (1, n), generator=g) for n in lengths]


def near(a, b, eps=1e-5):
    off = ((a - b).abs().max() / b.abs().max().clamp(min=1)).item()
    assert off <= eps, off


def packed(lengths=LENGTHS):
    "The ways in which callers say where the texts of a row are."
    n, ends = sum(lengths), torch.tensor([0, *lengths]).cumsum(0)
    number = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[None]
    blocks = ((number[:, :, None] == number[:, None]) & torch.ones(n, n).tril().bool())[:, None]
    return dict(position_ids=torch.cat([torch.arange(k) for k in lengths])[None], seq_idx=number.int(),
                segments=number % 2 + 1, cu_seq_lens_q=ends.int(), bool_mask=blocks,
                added_mask=torch.zeros(1, 1, n, n).masked_fill(~blocks, torch.finfo(torch.float32).min))


def call(model, ids, **said):
    "Logits, and gradients of a random projection of them."
    said = {k if "_mask" not in k or k == "attention_mask" else "attention_mask": v for k, v in said.items()}
    logits = model(ids, **said).logits
    g = torch.Generator().manual_seed(ids.shape[1])
    (logits * torch.randn(logits.shape, generator=g, dtype=torch.float64).to(logits.dtype)).sum().backward()
    return logits.detach()


def grads(model):
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("way", ("position_ids", "seq_idx", "segments", "cu_seq_lens_q", "bool_mask", "added_mask"))
@pytest.mark.parametrize("pattern", PATTERNS)
def test_packed_rows_equal_texts_alone(pattern, way):
    model, parts = make(pattern), texts()
    n = sum(LENGTHS)
    g = torch.Generator().manual_seed(n)
    weight = torch.randn(1, n, 50, generator=g, dtype=torch.float64).float()
    alone = [(model(t).logits * w).sum() for t, w in zip(parts, weight.split(LENGTHS, 1))]
    want_logits = torch.cat([model(t).logits.detach() for t in parts], 1)
    sum(alone).backward()
    want = grads(model)
    got_logits = call(model, torch.cat(parts, 1), **{way: packed()[way]})
    near(got_logits, want_logits)
    for name, g in grads(model).items(): near(g, want[name])


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16))
@pytest.mark.parametrize("backend", ("ref", "chunked", "auto"))
def test_every_form_of_the_kernels(backend, dtype):
    if dtype == torch.float64 and backend == "auto": pytest.skip("as chunked")
    model = make("MSG", scan_backend=backend).to(dtype)
    want = torch.cat([model(t).logits for t in texts()], 1)
    near(model(torch.cat(texts(), 1), segments=packed()["segments"]).logits, want, dict(
        float32=1e-5, float64=1e-12, bfloat16=2e-2)[str(dtype)[6:]])


@pytest.mark.parametrize("pattern", ("M", "S", "G", LETTERS, "context"))
def test_modules_that_are_called(pattern):
    "With a hook on each module no kernel reads weights; borders are kept all the same."
    model = make(pattern)
    for m in model.modules():
        if not list(m.children()): m.register_forward_hook(lambda m, args, out: None)
    want = torch.cat([model(t).logits for t in texts()], 1)
    near(model(torch.cat(texts(), 1), segments=packed()["segments"]).logits, want)


def paddings(n):
    "Rows (mask) of `n` tokens with padding on the left, on the right, within, and everywhere."
    masks = [[0]*4 + [1]*n, [1]*n + [0]*4, [1]*2 + [0]*3 + [1]*(n - 2), ([0] + [1, 0]*n + [0])[:2*n + 1]]
    return {k: torch.tensor([m]) for k, m in zip(("left", "right", "within", "everywhere"), masks)}


def spread(ids, mask, fill=7):
    row = torch.full_like(mask, fill)
    row[mask.bool()] = ids[0]
    return row


@pytest.mark.parametrize("kind", ("left", "right", "within", "everywhere"))
@pytest.mark.parametrize("pattern", PATTERNS)
def test_padding_leaves_no_trace(pattern, kind):
    model, ids = make(pattern), texts((9,))[0]
    mask = paddings(9)[kind]
    n = mask.shape[1]
    w = torch.randn(1, 9, 50, generator=torch.Generator().manual_seed(0))
    (model(ids).logits * w).sum().backward()
    want_logits, want = model(ids).logits.detach(), grads(model)
    batch = torch.cat([spread(ids, mask), texts((n,), 5)[0]]) # beside a row without padding
    logits = model(batch, attention_mask=torch.cat([mask, torch.ones_like(mask)])).logits
    near(logits[:1][:, mask[0].bool()].detach(), want_logits)
    (logits[:1][:, mask[0].bool()] * w).sum().backward()
    got = grads(model)
    for name in want: near(got[name], want[name], 2e-5)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_padded_prompts_then_more_tokens(pattern):
    "Prompts of different length in a cache, padded in four ways, then a few tokens one by one and at once."
    model, ids, more = make(pattern), texts((9,))[0], texts((6,), 3)[0]
    want = model(torch.cat([ids, more], 1)).logits[:, 9:]
    for kind, mask in paddings(9).items():
        n = mask.shape[1]
        batch, masks = torch.cat([spread(ids, mask), texts((n,), 5)[0]]), torch.cat([mask, torch.ones_like(mask)])
        with torch.no_grad():
            cache, got = model.new_cache(), []
            model(batch, attention_mask=masks, past_key_values=cache)
            for step in more.split((1, 1, 3, 1), 1):
                masks = torch.cat([masks, torch.ones(2, step.shape[1], dtype=torch.long)], 1)
                got.append(model(step.expand(2, -1), attention_mask=masks, past_key_values=cache).logits[:1])
        near(torch.cat(got, 1), want, 2e-5), kind


@pytest.mark.parametrize("pattern", PATTERNS)
def test_padded_pieces_of_a_conversation(pattern):
    "Turns of different length, each padded on the right or left, into one cache."
    model, turns = make(pattern), texts((5, 2, 6), 4)
    want = model(torch.cat(turns, 1)).logits
    with torch.no_grad():
        cache, masks, got = model.new_cache(), torch.zeros(2, 0, dtype=torch.long), []
        for turn, side in zip(turns, ("right", "left", "right")):
            mask = paddings(turn.shape[1])[side]
            other = torch.ones_like(mask)
            masks = torch.cat([masks, torch.cat([mask, other])], 1)
            batch = torch.cat([spread(turn, mask), texts((mask.shape[1],), 6)[0]])
            out = model(batch, attention_mask=masks, past_key_values=cache).logits
            got.append(out[:1][:, mask[0].bool()])
    near(torch.cat(got, 1), want, 2e-5)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_cache_goes_on_with_the_last_text(pattern):
    model, (a, b, c) = make(pattern), texts((6, 5, 7))
    want_b, want_c = model(b).logits, model(c).logits
    with torch.no_grad():
        cache = model.new_cache()
        model(torch.cat([a, b[:, :3]], 1), segments=torch.tensor([[1]*6 + [2]*3]), past_key_values=cache)
        again = copy.deepcopy(cache)
        near(model(b[:, 3:], past_key_values=cache).logits, want_b[:, 3:]) # nothing said: goes on
        near(model(c, segments=torch.full((1, 7), 9), past_key_values=cache).logits, want_c)
        near(model(b[:, 3:], segments=torch.full((1, 2), 2), past_key_values=again).logits, want_b[:, 3:])
        row, positions = torch.cat([c], 1), torch.arange(7)[None]
        near(model(row, position_ids=positions, past_key_values=again).logits, want_c) # positions from 0: a new text
        for i in range(3): # one by one
            near(model(c[:, i:i+1], segments=torch.full((1, 1), 4), past_key_values=again).logits, want_c[:, i:i+1])


@pytest.mark.parametrize("pattern", (LETTERS, "context"))
def test_positions_and_a_mask_together(pattern):
    "Two packed texts with padding between and after them, as TRL and others make them."
    model, (a, b) = make(pattern), texts((6, 5))
    ids = torch.cat([a, torch.full((1, 2), 3), b, torch.full((1, 3), 3)], 1)
    mask = torch.tensor([[1]*6 + [0]*2 + [1]*5 + [0]*3])
    positions = torch.tensor([[*range(6), 0, 1, *range(5), 0, 1, 2]])
    logits = model(ids, attention_mask=mask, position_ids=positions).logits
    near(logits[:, :6], model(a).logits)
    near(logits[:, 8:13], model(b).logits)


@pytest.mark.parametrize("pattern", (LETTERS, "context"))
def test_collator_of_transformers(pattern):
    model, parts = make(pattern), texts()
    for options in ({}, dict(return_seq_idx=True), dict(return_flash_attn_kwargs=True)):
        batch = DataCollatorWithFlattening(**options)([dict(input_ids=t[0].tolist()) for t in parts])
        out = model(**batch)
        near(out.logits, torch.cat([model(t).logits for t in parts], 1))
        lost = [(model(t, labels=t).loss, t.shape[1] - 1) for t in parts if t.shape[1] > 1]
        near(out.loss, sum(l * n for l, n in lost) / sum(n for _, n in lost))


@pytest.mark.parametrize("pattern", (LETTERS, "context"))
@pytest.mark.parametrize("side", ("left", "right"))
def test_generation_of_padded_prompts(side, pattern):
    model, prompts = make(pattern), texts((9, 2, 5), 8)
    rows = [torch.nn.functional.pad(p, (9 - p.shape[1], 0) if side == "left" else (0, 9 - p.shape[1])) for p in prompts]
    masks = [torch.nn.functional.pad(p*0 + 1, (9 - p.shape[1], 0) if side == "left" else (0, 9 - p.shape[1]))
             for p in prompts]
    how = dict(max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=None)
    if side == "right": # generate itself reads the last column, so only the loop that people write
        cache, mask, tokens = model.new_cache(), torch.cat(masks), []
        with torch.no_grad():
            logits = model(torch.cat(rows), attention_mask=mask, past_key_values=cache).logits
            logits = logits.gather(1, (mask.sum(1) - 1)[:, None, None].expand(-1, 1, 50))
            for _ in range(8):
                tokens.append(logits.argmax(-1))
                mask = torch.cat([mask, torch.ones(3, 1, dtype=torch.long)], 1)
                logits = model(tokens[-1], attention_mask=mask, past_key_values=cache).logits
        got = torch.cat(tokens, 1)
    else: got = model.generate(torch.cat(rows), attention_mask=torch.cat(masks), **how)[:, 9:]
    for row, p in zip(got, prompts): assert row.tolist() == model.generate(p, **how)[0, p.shape[1]:].tolist()


def test_caches_move_with_their_texts():
    model, (a, b) = make(LETTERS), texts((4, 3))
    ids, segments = torch.cat([a, b], 1).expand(2, -1), torch.tensor([[1]*4 + [2]*3, [5]*7])
    with torch.no_grad():
        cache = model.new_cache()
        model(ids, segments=segments, past_key_values=cache)
        cache.reorder_cache(torch.tensor([1, 0]))
        cache.batch_repeat_interleave(2)
        cache.batch_select_indices(torch.tensor([0, 3]))
        more = texts((2,), 9)[0]
        out = model(more.expand(2, -1), past_key_values=cache).logits
        near(out[1:], model(torch.cat([b, more], 1)).logits[:, 3:])
        near(out[:1], model(torch.cat([a, b, more], 1)).logits[:, 7:])
        kept = model.new_cache()
        kept.load_tensors(cache.tensors())
        assert torch.equal(kept.texts, cache.texts)
        cache.reset()
        assert cache.texts is None


def test_segments_while_a_draft_is_on_trial():
    model, (a, b) = make(LETTERS), texts((4, 9))
    with torch.no_grad():
        cache = model.new_cache()
        cache.activate_past_recording()
        model(torch.cat([a, b[:, :7]], 1), segments=torch.tensor([[1]*4 + [2]*7]), past_key_values=cache)
        cache.crop(-3)
        near(model(b[:, 4:], past_key_values=cache).logits, model(b).logits[:, 4:])
    assert max_kept_states > 7


@pytest.mark.parametrize("pattern", (LETTERS, "context"))
def test_checkpointed_activations(pattern):
    model, said = make(pattern).train(), dict(segments=packed()["segments"], use_cache=False)
    row = torch.cat(texts(), 1)
    call(model, row, **said)
    want = grads(model)
    model.gradient_checkpointing_enable()
    call(model, row, **said)
    for name, g in grads(model).items(): near(g, want[name])


def test_compiled():
    model, row = make("MS", scan_backend="chunked"), torch.cat(texts(), 1)
    want = model(row, segments=packed()["segments"]).logits
    near(torch.compile(model, backend="eager")(row, segments=packed()["segments"]).logits, want)


@pytest.mark.parametrize("said, message", (
    (dict(segments=torch.ones(1, 3).int()), "segments: torch.int32 of shape (1, 3), must be integers of shape"),
    (dict(segments=torch.ones(1, 7)), "segments: torch.float32 of shape (1, 7)"),
    (dict(cu_seq_lens_q=torch.tensor([0, 4])), "cu_seq_lens: must rise from 0 to the tokens of one row; it ends at 4"),
    (dict(attention_mask=torch.ones(1, 1, 7, 7).bool()), "a recurrent mixer can follow a mask of four dimensions only"),
    (dict(attention_mask=torch.full((1, 1, 7, 7), -2.)), "attention_mask: "),
))
def test_what_cannot_be_followed_is_refused(said, message):
    with pytest.raises(ValueError) as e: make("AM")(texts((7,))[0], **said)
    assert message in str(e.value) and "\n" not in str(e.value)


def test_foreign_caches_hold_one_text():
    model, (a, b) = make("AW"), texts((4, 3))
    said = dict(segments=torch.tensor([[1]*4 + [2]*3]))
    with pytest.raises(ValueError, match="a StaticCache cannot hold several texts"):
        model(torch.cat([a, b], 1), past_key_values=StaticCache(config=model.config, max_cache_len=16), **said)
    with torch.no_grad(): out = model(torch.cat([a, b], 1), past_key_values=DynamicCache(), **said)
    near(out.logits[:, 4:], model(b).logits)


def S(*parts): return torch.tensor([[i for i, n in parts for _ in range(n)]])


@pytest.mark.parametrize("pattern", PATTERNS)
@torch.no_grad()
def test_a_cache_remembers_padding(pattern):
    "Padding that was read is no part of the text, also where later calls give no mask."
    model, (a, b) = make(pattern), texts((6, 5))
    want = model(torch.cat([a, b], 1)).logits[:, 6:]
    for kind, mask in paddings(6).items():
        cache = model.new_cache()
        model(spread(a, mask), attention_mask=mask, past_key_values=cache)
        copied = model.new_cache()
        copied.load_tensors(cache.tensors()) # with the room that a window needs
        for c in cache, copied:
            got = [model(b[:, :3], past_key_values=c).logits, model(b[:, 3:], past_key_values=c).logits]
            near(torch.cat(got, 1), want, 2e-5), kind


@pytest.mark.parametrize("pattern", PATTERNS)
@torch.no_grad()
def test_masks_of_four_dimensions_and_a_cache(pattern):
    model, (a, b) = make(pattern), texts((6, 5))
    blocks, cache = packed((6, 5))["bool_mask"], model.new_cache()
    model(torch.cat([a, b[:, :3]], 1), attention_mask=blocks[..., :9, :9], past_key_values=cache)
    again = copy.deepcopy(cache)
    near(model(b[:, 3:], past_key_values=cache).logits, model(b).logits[:, 3:])
    near(model(b[:, 3:], attention_mask=blocks[..., 9:, :], past_key_values=again).logits, model(b).logits[:, 3:])


@pytest.mark.parametrize("pattern", PATTERNS)
@torch.no_grad()
def test_tokens_are_taken_back_where_there_is_padding(pattern):
    "Padding after the text is taken back with tokens of it; not where a text has begun since."
    model, (a, b) = make(pattern), texts((6, 5))
    cache = model.new_cache()
    cache.activate_past_recording()
    model(torch.cat([a, a[:, :3]*0], 1), attention_mask=torch.tensor([[1]*6 + [0]*3]), past_key_values=cache)
    cache.crop(-4)
    near(model(b, past_key_values=cache).logits, model(torch.cat([a[:, :5], b], 1)).logits[:, 5:])
    cache = model.new_cache()
    cache.activate_past_recording()
    model(torch.cat([a, b], 1), segments=S((1, 6), (2, 5)), past_key_values=cache)
    with pytest.raises(ValueError, match="crop: 7 tokens to take back, but the last text began after"): cache.crop(-7)
    cache.crop(-2)
    near(model(b[:, 3:], segments=S((2, 2)), past_key_values=cache).logits, model(b).logits[:, 3:])


@pytest.mark.parametrize("pattern", (LETTERS, "context"))
@torch.no_grad()
def test_numbers_of_texts_over_several_calls(pattern):
    model, (a, b) = make(pattern), texts((6, 5))
    def two(x, y): return torch.cat([x, y])
    cache = model.new_cache() # the first row pauses, then goes on
    model(two(a[:, :3], a[:, :3]), segments=S((3, 3)).expand(2, -1), past_key_values=cache)
    model(two(b[:, :2], a[:, 3:5]), segments=torch.tensor([[0, 0], [3, 3]]), past_key_values=cache)
    out = model(two(a[:, 3:], b[:, :3]), segments=two(S((3, 3)), S((4, 3))), past_key_values=cache).logits
    near(out, two(model(a).logits[:, 3:], model(b).logits[:, :3]))
    cache = model.new_cache() # seq_idx, a row in two pieces
    model(torch.cat([a, b[:, :3]], 1), seq_idx=S((0, 6), (1, 3)).to(torch.uint8), past_key_values=cache)
    near(model(torch.cat([b[:, 3:], a], 1), seq_idx=S((1, 2), (2, 6)), past_key_values=cache).logits,
         torch.cat([model(b).logits[:, 3:], model(a).logits], 1))
    for i in range(5): # positions from 0, one by one
        near(model(b[:, i:i+1], position_ids=torch.tensor([[i]]), past_key_values=cache).logits,
             model(b).logits[:, i:i+1])
    numbered = torch.tensor([[1]*6 + [2]*5]) # as some collators write a mask
    near(model(torch.cat([a, b], 1), attention_mask=numbered).logits, torch.cat([model(t).logits for t in (a, b)], 1))


@pytest.mark.parametrize("pattern", ("A", "M", LETTERS, "context"))
@torch.no_grad()
def test_generation_goes_on_with_the_last_text(pattern):
    model, (a, b) = make(pattern), texts((6, 5))
    how = dict(max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=None)
    want = model.generate(b, **how)[0, 5:].tolist()
    row, said = torch.cat([a, b], 1), dict(segments=S((1, 6), (2, 5)))
    assert model.generate(row, **said, **how)[0, 11:].tolist() == want
    cache = model.new_cache()
    model(row[:, :-1], segments=said["segments"][:, :-1], past_key_values=cache)
    assert model.generate(row, past_key_values=cache, **how)[0, 11:].tolist() == want


@pytest.mark.parametrize("pattern", (LETTERS, "context"))
@torch.no_grad()
def test_generation_from_embeddings_and_after_a_prefix(pattern):
    model, (a, b) = make(pattern), texts((6, 5))
    how = dict(max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=None)
    want = model.generate(torch.cat([a, b], 1), **how)[0, 11:].tolist()
    embeds = model.get_input_embeddings()(torch.cat([a, b], 1))
    assert model.generate(inputs_embeds=embeds, **how)[0].tolist() == want
    for more in dict(), dict(prompt_lookup_num_tokens=2), dict(assistant_model=make("AM")):
        given = after(model, a)
        assert model.generate(torch.cat([a, b], 1), **given, **how, **more)[0, 11:].tolist() == want


@torch.no_grad()
def test_attention_that_makes_its_masks_otherwise():
    model = make("LAW")
    model.config._attn_implementation = "eager"
    near(model(texts((9,))[0], use_cache=True).logits, make("LAW")(texts((9,))[0]).logits)


@pytest.fixture
def letters():
    with letters_restored(): yield

@torch.no_grad()
def test_a_mask_of_ones_says_nothing_where_code_is_compiled(letters):
    "For a mixer that takes no segments, and for a cache that holds one text a row."
    @register("Z", "a mean of two tokens")
    class Mean(torch.nn.Module):
        def __init__(self, config, layer_idx): super().__init__()
        def forward(self, x, **context): return x + torch.nn.functional.pad(x, (0, 0, 1, 0))[:, :-1]
    a, ones = texts((6,))[0], torch.ones(1, 6, dtype=torch.long)
    for pattern, cache in ("AZ", None), ("AW", StaticCache):
        model = make(pattern)
        given = dict(use_cache=False)
        if cache: given = dict(past_key_values=cache(config=model.config, max_cache_len=9))
        run = torch.compile(model, backend="eager")
        near(run(a, attention_mask=ones, **given).logits, model(a, use_cache=False).logits)
    with pytest.raises(ValueError, match="mixers of Z take no segments"):
        make("AZ")(a, attention_mask=ones * (torch.arange(6) > 1), use_cache=False)


def after(model, ids, **kw):
    cache = model.new_cache()
    model(ids, past_key_values=cache, **kw)
    return dict(past_key_values=cache)


@pytest.mark.parametrize("said, message", (
    (lambda m, t: dict(attention_mask=torch.ones(1, 5)), "attention_mask: Tensor of shape (1, 5), must be (batch,"),
    (lambda m, t: dict(attention_mask=torch.ones(1, 7), **after(m, t)), "must be (batch, past + length) = (1, 14)"),
    (lambda m, t: dict(attention_mask=torch.ones(1, 7, 7)), "attention_mask: Tensor of shape (1, 7, 7)"),
    (lambda m, t: dict(attention_mask=dict(a=1)), "attention_mask: dict of shape ()"),
    (lambda m, t: dict(attention_mask=torch.ones(1, 1, 7, 6).bool()), "attention_mask: Tensor of shape (1, 1, 7, 6)"),
    (lambda m, t: dict(attention_mask=torch.ones(1, 1, 7, 7).tril().bool(), segments=S((1, 7))), "segments: not"),
    (lambda m, t: dict(attention_mask=torch.ones(1, 1, 7, 7).tril().bool(),
                       position_ids=torch.tensor([[0, 1, 2, 0, 1, 2, 3]])), "position_ids: begin again where"),
    (lambda m, t: dict(cu_seq_lens_q=torch.tensor([0, 7]), **after(m, t)), "cu_seq_lens_q: there are tokens in"),
    (lambda m, t: dict(cu_seq_lens_q=[[0, 7]]), "cu_seq_lens: torch.int64 of shape (1, 2), must be whole numbers"),
    (lambda m, t: dict(attention_mask=torch.tensor([[0]*2 + [1]*12]), **after(m, t)), "hides tokens that the cache"),
))
@torch.no_grad()
def test_what_does_not_fit_is_named(said, message):
    model, ids = make(LETTERS), texts((7,))[0]
    with pytest.raises(ValueError) as e: model(ids, **said(model, ids))
    assert message in str(e.value) and "\n" not in str(e.value)


@torch.no_grad()
def test_masks_of_other_types_and_one_for_all_rows():
    model, ids = make(LETTERS), texts((9,))[0]
    mask = paddings(9)["within"]
    batch, want = spread(ids, mask).expand(2, -1), model(ids).logits
    for m in mask.bool(), mask.float(), mask.int(), mask.expand(2, -1):
        near(model(batch, attention_mask=m).logits[:, mask[0].bool()], want.expand(2, -1, -1))
