"Caches, kept states and drafts change only the time: with random weights, where every token is a close decision."
import pytest, torch
from helpers.small_models import small_writer
from hybrid_nb.data.tokenizers import train_bpe
from hybrid_nb.models.context_config import ContextConfig
from hybrid_nb.models.context_vector import ContextForCausalLM
from hybrid_nb.use.generation import Generator

ALL = "MAGWSLF" # a block of every kind
PROMPTS = ["The door was", "In the morning", "She took the red box from the table and", "A"]
FIRST = "She took the red box from the table and the box was red"
GREEDY = dict(temperature=0)


@pytest.fixture(scope="module")
def tok(): return train_bpe([" ".join([*PROMPTS, FIRST])] * 20, 400)


@pytest.fixture
def gen(tok): return Generator(model=small_writer(ALL, tok), tokenizer=tok, chunk=4)


@pytest.fixture
def fresh(gen): return Generator(model=gen.model, tokenizer=gen.tokenizer, keep=0)


@pytest.mark.parametrize("way", [
    GREEDY, dict(top_k=20), dict(top_p=.7), dict(min_p=.05), dict(temperature=1.7),
    GREEDY | dict(repetition_penalty=1.3), GREEDY | dict(num_beams=3), GREEDY | dict(no_repeat_ngram_size=2)], ids=str)
def test_a_cache_changes_nothing(gen, way):
    "The prompt is read in chunks, and once more from a kept state."
    how = dict(way, seed=1, max_new_tokens=12, stop=["zzz"])
    want = gen.generate(PROMPTS[2], use_cache=False, **how)
    got, again = gen.generate(PROMPTS[2], **how), gen.generate(PROMPTS[2], **how)
    assert got.ids == again.ids == want.ids
    stop = want[3:6]
    cut = gen.generate(PROMPTS[2], **how | dict(stop=stop))
    assert (str(cut), cut.finish) == (str(want)[:str(want).index(stop)], "stop")


def conversation(gen):
    "Two lines and their answers; the tokens before the second line."
    first = gen.encode(FIRST, False)
    a = gen.generate(first, max_new_tokens=5, **GREEDY)
    gen.generate(first + a.ids + gen.encode("The door", False), max_new_tokens=5, **GREEDY)
    return first + a.ids


def test_a_changed_line_is_all_that_is_read(gen, fresh):
    before, line = conversation(gen), gen.encode("In the morning", False)
    fed = []
    def note(m, args, kw): fed.append(kw["input_ids"].shape[1])
    hook = gen.model.register_forward_pre_hook(note, with_kwargs=True)
    changed = gen.generate(before + line, max_new_tokens=5, **GREEDY)
    hook.remove()
    assert sum(fed) == 1 + len(line) + 4 # the last token of the answer, the new line, four tokens of the new answer
    assert changed.ids == fresh.generate(before + line, max_new_tokens=5, **GREEDY).ids
    assert len(gen.kept) <= gen.keep and not fresh.kept


def test_a_state_on_disk(gen, fresh, tok, tmp_path):
    path, talk = tmp_path/"talk.safetensors", conversation(gen) + gen.encode("In the morning", False)
    c = gen.generate(talk, max_new_tokens=5, **GREEDY)
    gen.save_state(path)
    later = Generator(model=gen.model, tokenizer=tok)
    ids = later.load_state(path)
    assert ids == talk + c.ids[:-1]
    more = ids + c.ids[-1:]
    want = fresh.generate(more, max_new_tokens=6, **GREEDY).ids
    assert later.generate(more, max_new_tokens=6, **GREEDY).ids == want
    other = Generator(model=small_writer(ALL, tok, seed=1), tokenizer=tok)
    with pytest.raises(ValueError, match="another model"): other.load_state(path)
    with pytest.raises(ValueError, match="none"): later.load_state(tmp_path/"none")
    with pytest.raises(ValueError, match="nothing"): fresh.save_state(path)


@pytest.mark.parametrize("way", [GREEDY, dict(seed=2, top_p=.9)], ids=str)
@pytest.mark.parametrize("draft", ["lookup", "another", "itself"])
def test_a_draft_changes_nothing(fresh, tok, way, draft):
    model = dict(lookup=3, another=small_writer("MA", tok, seed=5), itself=small_writer(ALL, tok))[draft]
    want = fresh.generate(PROMPTS[2], max_new_tokens=12, **way)
    assert fresh.generate(PROMPTS[2], max_new_tokens=12, draft=model, **way).ids == want.ids


def test_a_context_vector_model(tok, tmp_path):
    torch.manual_seed(0)
    config = ContextConfig(vocab_size=len(tok), embedding_size=16, context_dim=16, network_size=32, depth=2, dropout=0.)
    gen = Generator(model=ContextForCausalLM(config).eval(), tokenizer=tok, chunk=4)
    how = GREEDY | dict(max_new_tokens=8)
    want = gen.generate(PROMPTS[2], use_cache=False, **how)
    assert gen.generate(PROMPTS[2], **how).ids == gen.generate(PROMPTS[2], draft=3, **how).ids == want.ids
    together = [a.ids for a in gen.batch_generate(PROMPTS, **how)]
    assert together == [gen.generate(p, **how).ids for p in PROMPTS]
    gen.save_state(tmp_path/"state")
    assert gen.load_state(tmp_path/"state")
