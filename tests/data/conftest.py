"A small corpus of one file; one of three files in small blocks; shards of 3,000 tokens."
from dataclasses import replace
import pytest
from hybrid_nb.data import loading, tokenization
from hybrid_nb.data.corpora import DataConfig
from hybrid_nb.data.tokenizers import train_bpe
from helpers.texts import some_texts, write_jsonl

@pytest.fixture
def cfg(tmp_path):
    file = write_jsonl(tmp_path/"some.jsonl", [dict(text=t) for t in some_texts()])
    return DataConfig(corpus=file, vocab_size=400, length=32, cache_dir=str(tmp_path/"cache"))

@pytest.fixture
def small_blocks(monkeypatch): monkeypatch.setattr(tokenization, "BLOCK_CHARS", 4_000)

@pytest.fixture
def fixed(cfg, tmp_path, small_blocks):
    "A corpus of three files with copies and empty documents, and a tokenizer that is not trained on it."
    train_bpe(some_texts(), 400).save_pretrained(tmp_path/"tok")
    texts = some_texts(600, seed=1)
    for i in range(0, 600, 7): texts[i] = texts[i*5 % 600]
    for i in range(3, 600, 50): texts[i] = " "
    for k in range(3): write_jsonl(tmp_path/f"part{k}.jsonl", [dict(text=t) for t in texts[k*200:(k+1)*200]])
    return replace(cfg, corpus=str(tmp_path/"part*.jsonl"), tokenizer=str(tmp_path/"tok"))

@pytest.fixture
def small_shards(monkeypatch):
    "Shards of 3,000 tokens."
    write = loading.write_tokens
    monkeypatch.setattr(loading, "write_tokens", lambda *a, **k: write(*a, **{"shard_tokens": 3_000} | k))
