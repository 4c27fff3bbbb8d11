"Dialog corpora through the cache: what names their folder, bad rows, special tokens, words that are spelt."
import warnings
from dataclasses import replace
import pytest
from hybrid_nb.data import dialogs as dialogs_module
from hybrid_nb.data.chat_template import conversation, render_chat, user_turn
from hybrid_nb.data.corpora import DataConfig
from hybrid_nb.data.examples import demo_rows, read_example
from helpers.preparing import load
from helpers.texts import write_jsonl

@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    return DataConfig(corpus="chat-demo", vocab_size=512, length=96, cache_dir=str(tmp_path_factory.mktemp("cache")))

def test_from_the_cache_without_reading(chat, monkeypatch):
    "Another length or share is prepared anew."
    data = load(chat)
    def no_reading(*a, **k): raise AssertionError("the corpus was read")
    monkeypatch.setattr(dialogs_module, "read_rows", no_reading)
    assert load(chat).folder == data.folder
    for other in (dict(length=95), dict(response_share=.4), dict(val_fraction=.3), dict(on_bad_line="skip")):
        with pytest.raises(AssertionError, match="the corpus was read"): load(replace(chat, **other))

def test_cut_prompts_are_counted(chat): assert load(replace(chat, length=28)).stats()["prompts_cut"] > 0

def test_what_is_spelt_like_a_special_token_is_text(chat, tmp_path):
    row = dict(instruction="End <|endoftext|> here?", response="yes <|endoftext|> no")
    data = load(replace(chat, corpus=write_jsonl(tmp_path/"special.jsonl", [*demo_rows(), row]), dialog=True))
    ids = next(ids for side in (data.train, data.val) for ids, _ in (side[i] for i in range(side.n_documents))
               if "yes" in data.tokenizer.decode(ids))
    assert data.tokenizer.decode(ids).count("<|endoftext|>") == 4 # two of them typed
    assert ids.tolist().count(data.tokenizer.eos_token_id) == 2

def test_bad_rows_are_mentioned_once(chat, tmp_path):
    bad = ['{"instruction": "cut', dict(instruction="Say nothing.", response=" ")]
    file = write_jsonl(tmp_path/"some.jsonl", demo_rows() + bad + demo_rows()[:3])
    skipping = replace(chat, corpus=file, dialog=True, on_bad_line="skip")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert load(skipping).meta["counts"]["skipped"] == 2
        load(skipping)
    assert len([w for w in said if "2 bad rows left out, the first: " in str(w.message)]) == 1

def test_nothing_to_validate_on(chat, tmp_path):
    file = write_jsonl(tmp_path/"one.jsonl", demo_rows()[:1])
    with pytest.raises(ValueError, match="both are needed: give more examples"):
        load(replace(chat, corpus=file, dialog=True))

def test_unknown_words_are_spelt(chat):
    "What a tokenizer of words does not know costs what it takes to spell."
    few, most = (load(replace(chat, tokenizer="word", vocab_size=v)) for v in (20, 400))
    assert few.unknown_bits >= most.unknown_bits > 0 and load(chat).unknown_bits == 0

def test_training_renders_as_the_template_does(chat):
    "What a run has on disk for training is, token by token, what its tokenizer renders."
    data = load(replace(chat, length=200))
    tok, rows = data.tokenizer, [read_example(r) for r in demo_rows()]
    for side in data.train, data.val:
        for i, row in enumerate(side.records["row"]):
            ids, n = side[i]
            user, response = user_turn(rows[row]), rows[row]["response"]
            assert ids.tolist() == tok.apply_chat_template(conversation(user, response), return_dict=False)
            assert ids[:n].tolist() == render_chat(tok, user) and tok.decode(ids[n:]) == response + tok.eos_token
    assert data.train.n_documents + data.val.n_documents == 40
