"Tokenizers of a corpus: trained in any number of threads, large, written in Python, and of words."
import os
from dataclasses import replace
import numpy as np
from hybrid_nb.data.corpora import DataConfig
from hybrid_nb.data.tokenizers import tokenizer_key
from helpers.preparing import documents, grown, load, python, shared_shards
from helpers.texts import some_texts

def test_tokenizer_does_not_depend_on_threads(cfg, tmp_path):
    keys = set()
    for threads in "1 3".split():
        code = f"""
from hybrid_nb.data.corpora import DataConfig
from hybrid_nb.data.loading import load_data
from hybrid_nb.data.tokenizers import tokenizer_key
cfg = DataConfig(**{vars(replace(cfg, cache_dir=str(tmp_path/threads)))!r})
print(tokenizer_key(load_data(cfg, progress=False).tokenizer))"""
        keys.add(python(code, env={**os.environ, "RAYON_NUM_THREADS": threads}).communicate()[0].strip())
    assert len(keys) == 1 and keys != {""}

def test_large_vocabulary(cfg, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    words = sorted({w for t in some_texts() for w in t.split()})
    vocab = {f"<{i}>": i for i in range(70_000)} | {w: 70_000 + i for i, w in enumerate(words)}
    t = Tokenizer(models.WordLevel(vocab, unk_token="<0>")); t.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=t, unk_token="<0>", eos_token="<1>").save_pretrained(tmp_path/"words")
    data = load(replace(cfg, tokenizer=str(tmp_path/"words")))
    assert data.train.tokens.dtype == np.uint32 and data.vocab_size == len(vocab)
    assert data.tokenizer.decode(data.train.document(5)) == some_texts()[data.train.records["row"][5]]
    assert data.train_batch(0, 0, 4).max() > 2**16

def test_python_tokenizer(cfg, tmp_path):
    from transformers import ByT5Tokenizer   # has no form in the tokenizers library
    ByT5Tokenizer().save_pretrained(tmp_path/"byt5")
    data = load(replace(cfg, tokenizer=str(tmp_path/"byt5")))
    assert data.tokenizer.decode(data.train.document(3)) == some_texts()[data.train.records["row"][3]]
    assert load(replace(cfg, tokenizer=str(tmp_path/"byt5"))).folder == data.folder

def test_a_trained_tokenizer_changes_with_its_corpus(fixed, tmp_path, small_shards):
    trained = replace(fixed, tokenizer="bpe")
    first = load(trained)
    second = load(grown(trained, tmp_path))
    assert tokenizer_key(first.tokenizer) != tokenizer_key(second.tokenizer)
    assert not shared_shards(first.folder, second.folder)
    third = load(replace(trained, tokenizer=first.tokenizer.name_or_path))   # so the first tokenizer is named
    assert shared_shards(first.folder, third.folder)

def test_words(tmp_path):
    "The vocabulary is as large as asked, and unknown words cost what it takes to spell them."
    cfg = DataConfig(max_documents=400, length=64, stride=.8, tokenizer="word", cache_dir=str(tmp_path/"cache"))
    few, many = (load(replace(cfg, vocab_size=n)) for n in (100, 3000))
    assert (few.vocab_size, few.tokenizer.eos_token_id, few.tokenizer.unk_token_id) == (100, 0, 1)
    assert few.unknown_bits > 10 * many.unknown_bits and load(replace(cfg, tokenizer="bpe")).unknown_bits == 0
    assert load(few.cfg).unknown_bits == few.unknown_bits
    known = few.tokenizer.get_vocab()
    held = [d for d in documents(max_documents=400) if d["val"]]
    unknown = sum(len(w) + 1 for d in held for w in d["text"].split() if w not in known)
    assert 1 < few.unknown_bits / unknown < 6
    few.tokenizer.save_pretrained(tmp_path/"words")   # as a checkpoint brings it: no bits are lost
    assert load(replace(cfg, tokenizer=str(tmp_path/"words"))).unknown_bits == few.unknown_bits
