"Conversations that are stopped or fail; stop texts, half characters, contexts, templates; damaged files."
import copy
from dataclasses import asdict, replace
from unittest import mock
import pytest, torch
from transformers import LlamaConfig, LlamaForCausalLM
from helpers.trained import count_fed
from hybrid_nb.models.config import HybridConfig
from hybrid_nb.models.context_config import ContextConfig
from hybrid_nb.models.context_vector import ContextForCausalLM
from hybrid_nb.models.modeling import HybridForCausalLM
from hybrid_nb.use.conversation import Chat, default_sampling, joining_space, state_file, Turn
from hybrid_nb.use.generation import Answer, Generator

SHORT = replace(default_sampling, seed=4, max_new_tokens=12)
GREEDY = replace(default_sampling, temperature=0)


def said(pieces): return "".join(pieces)


def test_a_model_that_continues_text_has_one_text(tale):
    c = Chat(tale, SHORT)
    first, second = said(c.say("The door was")), said(c.say("In the morning"))
    assert c.text == "The door was" + first + joining_space(first, "In") + "In the morning" + second
    assert tale.tokenizer.decode(c.tokens) == c.text
    assert c.turns[0].text == str(tale.generate("The door was", **asdict(c.sampling)))
    third = said(c.say("")) # an empty line: go on
    assert third and c.text.endswith(second + third)
    with pytest.raises(ValueError, match="no text yet"): Chat(tale).say(" ")


@pytest.mark.parametrize("how", ["closed", "stopped"])
def test_what_was_shown_was_said(tale, how):
    "The state after it is kept, and at most one more token was computed."
    c = Chat(tale, replace(default_sampling, max_new_tokens=10000, seed=1))
    pieces = c.say("The door was")
    shown = next(pieces) + next(pieces)
    if how == "closed": pieces.close()
    else:
        c.stopping.set()
        list(pieces)
    assert c.turns[0].finish == "interrupted"
    assert c.turns[0].text.startswith(shown) and c.turns[0].tokens < 5000
    c.sampling = replace(c.sampling, max_new_tokens=3)
    with count_fed(tale) as fed: said(c.say("red"))
    assert sum(fed) == 1 + len(c.turns[1].added) + 2


def test_an_error_leaves_all_as_it_was(tale):
    c = Chat(tale, SHORT)
    said(c.say("The door was"))
    before = c.tokens
    out_of_memory = mock.patch.object(tale.model, "forward", side_effect=RuntimeError("out of memory"))
    with out_of_memory, pytest.raises(RuntimeError, match="out of memory"): said(c.say("A"))
    assert c.tokens == before


def test_a_stop_text_is_not_part_of_the_conversation(tale):
    c = Chat(tale, SHORT)
    whole = said(c.say("The door was"))
    c.reset()
    c.sampling = replace(SHORT, stop=(whole[4:7],))
    want = whole[:whole.index(whole[4:7])]
    assert (said(c.say("The door was")), c.turns[0].text) == (want, want)
    assert tale.tokenizer.decode(c.tokens) == c.text


def test_half_a_character_is_not_part_of_the_conversation(tale):
    half = tale.tokenizer("東京")["input_ids"][:-1]
    answer = Answer("", ids=half, tokens=3, seconds=1., finish="length", seed=0)
    t = Chat(tale).finish_turn(Turn("a", [5]), answer, [5])
    assert "\ufffd" not in t.text and t.text == tale.tokenizer.decode(t.ids)


@pytest.mark.parametrize("kind", ["tale", "tuned"])
def test_a_context_is_read_once(kind, request):
    g = request.getfixturevalue(kind)
    context = "The box was red and the door was green in the house by the river. " * 3
    c = Chat(g, replace(default_sampling, temperature=0, max_new_tokens=4), context=context)
    want = said(c.say("What colour was it?"))
    tokens = c.tokens
    c.reset()
    with count_fed(g) as fed: assert said(c.say("What colour was it?")) == want
    assert c.tokens == tokens and sum(fed) < 30 < len(tokens)
    anew = Chat(Generator(model=g.model, tokenizer=g.tokenizer, keep=0), c.sampling, context=context)
    assert want == said(anew.say("What colour was it?"))


CHATML = ("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
          "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
FORGETFUL = "{% for m in messages %}{% if m.role == 'user' or loop.last %}{{ m.content }}\n{% endif %}{% endfor %}"


@pytest.mark.parametrize("template, extends", [(CHATML, True), (FORGETFUL, False)])
def test_other_templates(tuned, template, extends):
    "One that extends what was said, one that changes it."
    tok = copy.deepcopy(tuned.tokenizer)
    tok.chat_template = template
    sampling = replace(default_sampling, temperature=0, max_new_tokens=5)
    c = Chat(Generator(model=tuned.model, tokenizer=tok), sampling)
    said(c.say("One?")); said(c.say("Two?"))
    assert c.turns[1].fresh is not extends
    assert tok.decode(c.tokens[:-len(c.turns[1].ids)]) == c.render(c.turns[:1], "Two?")


@pytest.fixture
def held(tuned, taught, tmp_path):
    "A conversation of two turns, and its file."
    chat = Chat(tuned, GREEDY)
    for row in taught[:2]: said(chat.say(row["instruction"]))
    chat.save(tmp_path/"talk.json")
    return chat, tmp_path/"talk.json"


def test_the_state_that_is_saved_is_that_of_the_conversation_as_it_is(held, talkers, taught, tmp_path):
    "Also after a line was taken back."
    chat, _ = held
    said(chat.say(taught[2]["instruction"]))
    chat.undo()
    chat.save(tmp_path/"short.json")
    back = Chat(Generator(talkers/"runs/dialogs"))
    assert back.resume(tmp_path/"short.json") == f"2 turns, {len(chat.tokens)} tokens"
    state_file(tmp_path/"short.json").unlink()
    assert "to be read again" in Chat(Generator(talkers/"runs/dialogs")).resume(tmp_path/"short.json")


def test_a_model_of_another_kind_reads_the_same_texts_anew(held, tale, tuned):
    chat, path = held
    other = Chat(tale)
    assert "another model" in other.resume(path)
    assert [t.text for t in other.turns] == [t.text for t in chat.turns[:2]]
    said(other.say("and"))
    other.switch_model(tuned)
    last = other.turns[-1]
    assert tuned.tokenizer.decode(other.tokens) == other.render(other.turns[:-1], last.user) + last.text


@pytest.mark.parametrize("change, message", [
    (lambda s: "{}", "not a conversation"), (lambda s: b'{"a": "\xe9"}', "'utf-8' codec"),
    (lambda s: s[:-9], "Expecting"), (lambda s: s.replace('"turns"', '"trns"'), "damaged"),
    (lambda s: s.replace('"added": [', '"added": ["x", ', 1), "a turn of another form"),
    (lambda s: s.replace('"top_k": 50', '"top_k": -5'), "top_k -5"), (None, "no such file")])
def test_what_is_no_conversation_is_not_taken_for_one(held, tmp_path, change, message):
    chat, path = held
    bad = tmp_path/"bad.json"
    if change:
        new = change(path.read_text())
        bad.write_bytes(new if isinstance(new, bytes) else new.encode())
    with pytest.raises(ValueError, match=message): chat.resume(bad)
    assert len(chat.turns) == 2


def test_nothing_is_overwritten_that_is_not_ours(held, tuned, tmp_path):
    chat, _ = held
    (tmp_path/"notes.json").write_text("{}")
    with pytest.raises(ValueError, match="not a conversation"): chat.save(tmp_path/"notes.json")
    assert (tmp_path/"notes.json").read_text() == "{}"
    with pytest.raises(ValueError, match="nothing was said"): Chat(tuned).save(tmp_path/"x.json")
    with pytest.raises(ValueError, match="is a folder"): chat.save(tmp_path)


def test_a_model_that_cannot_be_taken_leaves_the_present_one(held, tale):
    chat, _ = held
    refused = mock.patch.object(Chat, "retokenize", side_effect=ValueError("no"))
    with refused, pytest.raises(ValueError, match="no"): chat.switch_model(tale)
    assert chat.gen is not tale and len(chat.turns) == 2


LLAMA = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
HYBRID = dict(hidden_size=16, num_attention_heads=2)
VECTOR = dict(embedding_size=8, context_dim=8, network_size=8, depth=2)
OTHERS = [(lambda n: LlamaForCausalLM(LlamaConfig(vocab_size=n, **LLAMA)), 8, "cannot be saved"),
          (lambda n: ContextForCausalLM(ContextConfig(vocab_size=n, **VECTOR)), 8, ", the state to"),
          (lambda n: HybridForCausalLM(HybridConfig(pattern="A", vocab_size=n, **HYBRID)), 0, "nothing is kept")]


@pytest.mark.parametrize("make, keep, note", OTHERS, ids=["another program's", "a context vector", "no states"])
def test_models_of_other_kinds(tale, tmp_path, make, keep, note):
    torch.manual_seed(0)
    model, path = make(tale.model.config.vocab_size), tmp_path/"kind.json"
    sampling = replace(default_sampling, max_new_tokens=4, seed=1)
    c = Chat(Generator(model=model, tokenizer=tale.tokenizer, keep=keep), sampling, context="The box was red")
    said(c.say("and"))
    ids = c.tokens
    said(c.retry())
    assert c.tokens == ids and note in c.save(path)
    back = Chat(Generator(model=model, tokenizer=tale.tokenizer))
    again = "again" in back.resume(path)
    assert (again, back.tokens, back.context) == ("state to" not in note, ids, c.context)
    assert said(back.say("so")) == said(c.say("so"))
