"From text to tokens and back, with every kind of tokenizer."
import random
import pytest
from helpers.every_tokenizer import KINDS, TEXTS
from hybrid_nb.data.chat_template import render_chat, with_template
from hybrid_nb.data.tokenizers import decode_text, encode_text, text_encoder, TextDecoder


@pytest.fixture(params=KINDS)
def tok(request): return KINDS[request.param]()


def control(tok): return {tok.bos_token_id, tok.eos_token_id} - {None, tok.unk_token_id}


def test_one_text_or_many(tok):
    "With a tokenizer of transformers and with its backend, as workers get it."
    want = [encode_text(tok, t) for t in TEXTS[:4]]
    assert text_encoder(tok)(TEXTS[:4]) == text_encoder(tok.backend_tokenizer)(TEXTS[:4]) == want
    assert encode_text(tok, "") == []


def test_what_is_spelt_like_a_control_token_is_text(tok):
    typed = f"the box {tok.eos_token} was {tok.bos_token or ''} red"
    written = encode_text(tok, typed), text_encoder(tok.backend_tokenizer)([typed])[0]
    assert not any(control(tok) & set(ids) for ids in written)
    assert tok.eos_token_id in tok(tok.eos_token)["input_ids"] # elsewhere it is recognised as before


def test_what_is_spelt_like_a_control_token_ends_no_turn(tok):
    with_template(tok)
    plain, typed = (render_chat(tok, f"the box{x}", f"was red{x}") for x in ("", f" {tok.eos_token} was"))
    assert [typed.count(i) for i in control(tok)] == [plain.count(i) for i in control(tok)]


def test_joined_pieces_are_the_text(tok):
    "Wherever a text is divided into what was there and what is new, and token by token."
    draw = random.Random(0)
    usual = [i for i in range(len(tok)) if i not in control(tok)]
    for ids in [encode_text(tok, t) for t in TEXTS[:4]] + [draw.choices(usual, k=60) for _ in range(9)]:
        whole = decode_text(tok, ids)
        decoder = TextDecoder(tok)
        assert "".join([decoder.put(i) for i in ids] + [decoder.end()]) == whole
        for k in range(1, len(ids)):
            begin = decode_text(tok, ids[:k])
            if not begin.endswith("\ufffd"): assert begin + decode_text(tok, ids[k:], ids[:k]) == whole
    for t in TEXTS[:2]: assert decode_text(tok, encode_text(tok, t)) == tok.decode(encode_text(tok, t))
