"Bad settings and bad files are one line that says what is wrong, where, and what would be right."
import lzma
from dataclasses import replace
import pytest
from hybrid_nb.data.corpora import DataConfig
from helpers.preparing import load

@pytest.mark.parametrize("change, words", [
    (dict(corpus="storis"), ["'storis'", "did you mean 'stories'"]),
    (dict(corpus="no/such/file.txt"), ["no/such/file.txt", "no such file"]),
    (dict(corpus="no/*.jsonl"), ["no/*.jsonl", "no file matches"]),
    (dict(corpus="someone/stories"), ["someone/stories", "corpus('mine', hub='someone/stories')"]),
    (dict(corpus="{tmp}"), ["a folder", "*.jsonl"]),
    (dict(corpus="{tmp}/a.doc"), ["a.doc", "unknown kind", ".parquet"]),
    (dict(corpus="{tmp}/*.*"), ["kind"]),
    (dict(corpus="{tmp}/broken.jsonl"), ["broken.jsonl, line 3", "not valid JSON"]),
    (dict(corpus="{tmp}/list.jsonl"), ["list.jsonl, line 2", "not valid JSON"]),
    (dict(corpus="{tmp}/latin.txt"), ["latin.txt, line 2", "UTF-8"]),
    (dict(corpus="{tmp}/cut.jsonl.xz"), ["cut.jsonl.xz"]),
    (dict(corpus="{tmp}/not.parquet"), ["not.parquet"]),
    (dict(corpus="{tmp}/empty.jsonl"), ["empty.jsonl", "no documents in it"]),
    (dict(corpus="{tmp}/blank.jsonl"), ["blank.jsonl", "no documents"]),
    (dict(corpus="{tmp}/one.jsonl"), ["one.jsonl", "training and", "validation documents"]),
    (dict(text_field="body"), ["'body'", "fields present: text"]),
    (dict(text_field="{text} {title}"), ["'title'", "fields present: text"]),
    (dict(tokenizer="no-such-tokenizer-folder"), ["no-such-tokenizer-folder"]),
    (dict(val_files="no/such.jsonl"), ["no/such.jsonl"]),
    (dict(text_unit="line"), ["text_unit 'line'", ".txt"]),
    (dict(length=10**6), ["length 1000000", "1,000,001 tokens"]),
])
def test_bad_input(cfg, tmp_path, change, words, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import huggingface_hub.constants
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    (tmp_path/"a.doc").write_text("x")
    (tmp_path/"broken.jsonl").write_text('{"text": "a"}\n\n{"text": "b"\n{"text": "c"}\n')
    (tmp_path/"list.jsonl").write_text('{"text": "a"}\n[1, 2]\n')
    (tmp_path/"latin.txt").write_bytes("fine\ncaf\xe9\n".encode("latin-1"))
    (tmp_path/"cut.jsonl.xz").write_bytes(lzma.compress(b'{"text": "a"}\n'*1000)[:60])
    (tmp_path/"not.parquet").write_text("PAR0")
    (tmp_path/"empty.jsonl").write_text("")
    (tmp_path/"blank.jsonl").write_text('{"text": " "}\n{"text": null}\n')
    (tmp_path/"one.jsonl").write_text('{"text": "only one"}\n')
    change = {k: v.replace("{tmp}", str(tmp_path)) if isinstance(v, str) else v for k, v in change.items()}
    with pytest.raises(ValueError) as e: load(replace(cfg, **change))
    assert "\n" not in str(e.value) and all(w in str(e.value) for w in words), str(e.value)

@pytest.mark.parametrize("change", [
    dict(length=0), dict(stride=0), dict(stride=-1), dict(stride=0.001), dict(val_fraction=0), dict(val_fraction=1),
    dict(vocab_size=256), dict(max_documents=1), dict(max_chars=-1), dict(text_unit="chapter")])
def test_bad_numbers(change):
    with pytest.raises(ValueError, match=f"{next(iter(change))} .*must be"): DataConfig(**change)
