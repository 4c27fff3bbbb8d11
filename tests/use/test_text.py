"Prompts, answers, streams and scores with every kind of tokenizer: nothing is lost between a text and its tokens."
import pytest, torch
from helpers.small_models import small_writer
from helpers.texts import some_texts, write_jsonl
from helpers.every_tokenizer import KINDS, TEXTS
from hybrid_nb.data.tokenizers import decode_text, encode_text
from hybrid_nb.training.runner import train_run
from hybrid_nb.use.generation import Generator


@pytest.fixture(params=KINDS)
def gen(request):
    tok = KINDS[request.param]()
    return Generator(model=small_writer("MA", tok), tokenizer=tok)


PROMPT = "The door was"
HOW = dict(seed=1, max_new_tokens=16)


def drain(stream):
    pieces = []
    while True:
        try: pieces.append(next(stream))
        except StopIteration as e: return pieces, e.value


def test_nothing_is_added_to_a_prompt(gen):
    ids = gen.encode(PROMPT, chat=False)
    assert ids == encode_text(gen.tokenizer, PROMPT) and gen.eos not in ids


def test_a_text_is_prompt_and_answer_and_joined_pieces(gen):
    prompt = gen.encode(PROMPT)
    answer = gen.generate(PROMPT, **HOW)
    ids = answer.ids[:-1] if answer.finish == "eos" else answer.ids
    assert decode_text(gen.tokenizer, prompt) + answer == decode_text(gen.tokenizer, prompt + ids)
    pieces, streamed = drain(gen.stream(PROMPT, **HOW))
    assert "".join(pieces) == streamed == answer and streamed.ids == answer.ids
    assert gen.batch_generate([PROMPT, "She took the red box"], **HOW)[0] == answer


@pytest.mark.parametrize("draft", [None, 3])
def test_stop_texts(gen, draft):
    whole = gen.generate(PROMPT, temperature=0, max_new_tokens=30)
    if len(whole) < 12: pytest.skip("the random model says little")
    stop = whole[5:9]
    how = dict(temperature=0, max_new_tokens=30, stop=[stop], draft=draft)
    cut = gen.generate(PROMPT, **how)
    assert (str(cut), cut.finish) == (whole[:whole.index(stop)], "stop") and cut.tokens < whole.tokens
    assert "".join(drain(gen.stream(PROMPT, **how))[0]) == cut
    assert gen.batch_generate([PROMPT, "She took the red box"], temperature=0, max_new_tokens=30, stop=[stop])[0] == cut
    if not draft: assert gen.generate(PROMPT, temperature=0, max_new_tokens=30, stop=[stop], num_beams=2).finish


def test_the_pieces_of_a_score_are_the_text(gen):
    eos = gen.tokenizer.eos_token
    for text in [*TEXTS[:4], f"The door {eos} was", "unheard words  and   spaces\n"]:
        s = gen.score(text)
        assert "".join(s.pieces) == text and len(s.nats) == len(encode_text(gen.tokenizer, text))


def test_a_score_begins_where_training_did(gen):
    "After the token between documents, whatever the tokenizer would put before a text."
    ids = encode_text(gen.tokenizer, TEXTS[0])
    x = torch.tensor([[gen.eos, *ids]])
    with torch.no_grad(): want = gen.model(x, labels=x).loss
    assert abs(gen.score(TEXTS[0]).loss - want) < 1e-5


def test_a_model_of_another_program_has_its_first_token():
    tok = KINDS["appending"]()
    gen = Generator(model=small_writer("MA", tok), tokenizer=tok)
    gen.model.config.bos_token_id = tok.bos_token_id
    assert gen.encode(PROMPT) == [tok.bos_token_id, *encode_text(tok, PROMPT)]
    assert "".join(gen.score(PROMPT).pieces) == PROMPT


def test_a_trained_model_knows_what_stood_before_a_text(tmp_path):
    "With a tokenizer whose first token is another than the one between documents."
    KINDS["appending"]().save_pretrained(tmp_path/"tok")
    corpus = write_jsonl(tmp_path/"a.jsonl", [dict(text=t) for t in some_texts(60)])
    train_run("M", runs=tmp_path, study="s", name="r", corpus=corpus, tokenizer=str(tmp_path/"tok"), steps=1, length=16,
              batch_size=2, hidden_size=16, num_attention_heads=2, recall_documents=0, progress=False,
              cache_dir=str(tmp_path/"cache"))
    gen = Generator(tmp_path/"s"/"r")
    assert gen.model.config.bos_token_id == gen.eos != gen.tokenizer.bos_token_id
    ids = encode_text(gen.tokenizer, "It rained.")
    assert gen.encode("It rained.") == ids
    x = torch.tensor([[gen.eos, *ids]])
    with torch.no_grad(): assert abs(gen.score("It rained.").loss - gen.model(x, labels=x).loss) < 1e-5
