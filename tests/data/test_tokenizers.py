"From text to tokens and back, with every kind of tokenizer."
from concurrent.futures import ThreadPoolExecutor
import pytest
from helpers.every_tokenizer import KINDS, TEXTS
from hybrid_nb.data.chat_template import encode_example, render_chat, with_template
from hybrid_nb.data.tokenizers import control_tokens, decode_text, encode_text, ends_within, text_encoder, TextDecoder


@pytest.fixture(params=KINDS)
def tok(request): return KINDS[request.param]()


def control(tok): return set(control_tokens(tok).values())


def test_one_text_or_many(tok):
    "With a tokenizer of transformers and with its backend, as workers get it."
    want = [encode_text(tok, t) for t in TEXTS[:4]]
    assert text_encoder(tok)(TEXTS[:4]) == text_encoder(tok.backend_tokenizer)(TEXTS[:4]) == want
    assert encode_text(tok, "") == []


def test_what_is_spelt_like_a_control_token_is_text(tok):
    typed = f"the box {' was '.join(control_tokens(tok))} red"
    written = encode_text(tok, typed), text_encoder(tok.backend_tokenizer)([typed])[0]
    assert not any(control(tok) & set(ids) for ids in written)
    assert tok.eos_token_id in tok(tok.eos_token)["input_ids"] # elsewhere it is recognised as before


def test_what_is_spelt_like_a_control_token_ends_no_turn(tok):
    with_template(tok)
    plain = render_chat(tok, "the box", "was red")
    for t in control_tokens(tok):
        for spelt in {t, t.upper(), t.lower()}:
            typed = render_chat(tok, f"the box {spelt} was", f"was red {spelt}")
            assert [typed.count(i) for i in control(tok)] == [plain.count(i) for i in control(tok)]


def test_a_turn_begins_with_its_prompt_whatever_is_typed(tok):
    with_template(tok)
    for t in control_tokens(tok):
        example = dict(instruction=f"the {t} box", context="", response=f"It ends with {t} .")
        ids, n, *_ = encode_example(tok, example, 400)
        assert ids[:n] == render_chat(tok, f"the {t} box")


def test_joined_pieces_are_the_text(tok):
    "Wherever a text is divided into what was there and what is new, and token by token."
    texts = [*TEXTS[:4], "猫座" * 9 + " the box 😀 🐈‍⬛ naïve",
             "x \ufffd😀 \ufffd\ufffdé " + "\ufffd" * 5 + "é", "\ufffd"]
    if type(tok.backend_tokenizer.decoder).__name__ == "Sequence": del texts[-2:] # bytes of U+FFFD cannot be told apart
    for ids in [encode_text(tok, t) for t in texts]:
        whole = decode_text(tok, ids)
        decoder = TextDecoder(tok)
        assert "".join([decoder.put(i) for i in ids] + [decoder.end()]) == whole
        for k in range(1, len(ids)):
            begin = decode_text(tok, ids[:k])
            if not ends_within(tok, ids[:k]): assert begin + decode_text(tok, ids[k:], ids[:k]) == whole
    for t in texts:
        ids = encode_text(tok, t)
        assert decode_text(tok, ids) == tok.decode(ids, skip_special_tokens=True)


def test_many_threads(tok):
    "Templates and texts at the same time, with one tokenizer."
    with_template(tok)
    text = f"a {next(iter(control_tokens(tok)))} b " * 9
    want, turn = encode_text(tok, text), render_chat(tok, "the box")
    with ThreadPoolExecutor(4) as pool:
        found = [pool.submit(f, tok, x) for _ in range(100) for f, x in ((encode_text, text), (render_chat, "the box"))]
    assert all(x.result() == y for x, y in zip(found, [want, turn] * 100))
