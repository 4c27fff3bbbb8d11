"`load_data` on real text and through the cache."
import json, lzma, random, warnings
from dataclasses import replace
import pytest, torch
from hybrid_nb.data import documents as documents_module
from hybrid_nb.data.corpora import DataConfig
from hybrid_nb.data.tokenizers import tokenizer_key, train_bpe
from helpers.preparing import load, python
from helpers.texts import shared

def test_books(tmp_path):
    cfg = DataConfig(corpus=shared("books/small.jsonl.xz"), val_fraction=0.15, vocab_size=1000, length=128, stride=0.8,
                     cache_dir=str(tmp_path))
    data = load(cfg)
    with lzma.open(cfg.corpus, "rt") as f: texts = [json.loads(l)["text"] for l in f]
    s = data.stats()
    assert (s["read"], s["documents"] + s["duplicates"]) == (1606, 1606)
    assert 0.12 < s["val_documents"] / s["documents"] < 0.18
    assert not set(data.train.records["hash"].tolist()) & set(data.val.records["hash"].tolist())
    for side in (data.train, data.val):
        for i in random.Random(0).sample(range(side.n_documents), 20):
            assert data.tokenizer.decode(side.document(i)) == texts[side.records["row"][i]]
        assert side.n_bytes == sum(len(texts[i].encode()) for i in side.records["row"])
    assert data.floor_bits_per_byte is None and data.recall_documents(5) == []
    # the tokenizer knows nothing of the validation documents
    train = train_bpe([texts[i] for i in data.train.records["row"]], 1000)
    assert tokenizer_key(train) == tokenizer_key(data.tokenizer)

def test_wikitext_declaration_on_local_files(tmp_path):
    cfg = DataConfig(corpus="wikitext-2", files=shared("wikitext-2/test.txt"), val_files=shared("wikitext-2/valid.txt"),
                     vocab_size=500, cache_dir=str(tmp_path))
    data = load(cfg)
    assert (data.train.n_documents, data.val.n_documents) == (60, 60)
    assert "Homarus gammarus" in data.tokenizer.decode(data.val.document(0))
    assert load(replace(cfg, val_files=None, val_fraction=.2)).val.n_documents < 30

@pytest.fixture(scope="module")
def stories(tmp_path_factory):
    return DataConfig(max_documents=400, vocab_size=1024, length=64, stride=0.8,
                      cache_dir=str(tmp_path_factory.mktemp("cache")))

def test_from_the_cache_without_reading(stories, monkeypatch):
    "Other lengths share the tokens, any other choice has its own."
    data = load(stories)
    def no_reading(*a, **k): raise AssertionError("the corpus was read")
    monkeypatch.setattr(documents_module, "read_rows", no_reading)
    assert load(stories).folder == data.folder
    assert load(replace(stories, length=32, stride=0.5)).folder == data.folder
    with pytest.raises(AssertionError, match="the corpus was read"): load(stories, rebuild=True)
    for change in (dict(max_documents=401), dict(corpus_seed=1), dict(val_fraction=.2), dict(vocab_size=1000),
                   dict(max_chars=100)):
        with pytest.raises(AssertionError, match="the corpus was read"): load(replace(stories, **change))

def test_an_old_name_of_a_corpus(stories, monkeypatch):
    data = load(stories)
    old = load(replace(stories, corpus="world"))
    assert torch.equal(old.train_batch(0, 0, 8), data.train_batch(0, 0, 8))
    assert tokenizer_key(old.tokenizer) == tokenizer_key(data.tokenizer)

def test_from_a_tokenizer_folder_the_tokens_are_the_same(stories, tmp_path):
    data = load(stories)
    data.tokenizer.save_pretrained(tmp_path/"tok")
    assert load(replace(stories, tokenizer=str(tmp_path/"tok"))).folder == data.folder

def test_a_damaged_shard_is_named_and_prepared_again(stories):
    data = load(stories)
    batch, f = data.train_batch(0, 0, 8), data.folder/"train-00000.tokens"
    raw = bytearray(f.read_bytes()); raw[1000] ^= 1; del data; f.write_bytes(raw)
    with warnings.catch_warnings(record=True) as w:
        warnings.simplefilter("always")
        data = load(stories)
    assert any("train-00000.tokens" in str(x.message) for x in w)
    assert torch.equal(data.train_batch(0, 0, 8), batch)

def test_import_is_light():
    heavy = ("datasets", "transformers", "pandas", "matplotlib", "pyarrow")
    code = f"import hybrid_nb.data.loading, sys; print([m for m in {heavy} if m in sys.modules])"
    assert python(code).communicate()[0].strip() == "[]"

def test_all_corpora_are_known_after_loading():
    code = "import hybrid_nb.data.loading; from hybrid_nb.data.corpora import corpora; print('chat-demo' in corpora)"
    assert python(code).communicate()[0].strip() == "True"
