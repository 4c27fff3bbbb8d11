"Preparations of corpora for tests: in this process and in others, what they leave on disk, and what they should write."
import json, random, subprocess, sys
from dataclasses import replace
from pathlib import Path
from hybrid_nb.data import documents as documents_module
from hybrid_nb.data.corpora import DataConfig, find_files, resolve_corpus
from hybrid_nb.data.documents import document_hash, Documents
from hybrid_nb.data.loading import load_data
from hybrid_nb.data.tokenizers import load_tokenizer
from helpers.texts import some_texts, write_jsonl

def load(cfg, **kw): return load_data(cfg, progress=False, **kw)
def documents(**kw): return list(Documents(resolve_corpus(DataConfig(**kw))))

def python(code, **kw):
    "A process that runs `code`."
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", code], stdout=pipe, stderr=pipe, text=True, **kw)

def script(cfg, body, workers=2, **kw):
    "A process that prepares `cfg` in small blocks, after the lines of `body`."
    return python(f"""
import os, signal, time
from hybrid_nb.data import loading, preparation, store, tokenization, tokenizer_pool
from hybrid_nb.data.corpora import DataConfig
tokenization.BLOCK_CHARS = 4_000
cfg = DataConfig(**{vars(cfg)!r})
{body}
loading.load_data(cfg, progress=False, workers={workers})""", **kw)

def elsewhere(cfg, tmp_path): return replace(cfg, cache_dir=str(tmp_path/"elsewhere"))   # prepared from nothing
def tokens_folder(cfg): return Path(cfg.cache_dir, "tokens")
def hidden(cfg): return [f for f in tokens_folder(cfg).iterdir() if f.name.startswith(".")]
def parts_of(cfg): return sorted(tokens_folder(cfg).glob(".parts-*/*.npz"))

def shared_shards(a, b):
    "The names of the shards that are one file in two folders."
    return [f.name for f in Path(a).glob("*.tokens")
            if (Path(b)/f.name).exists() and f.stat().st_ino == (Path(b)/f.name).stat().st_ino]

def expected_stream(cfg):
    "Both sides of the split, by the rules and nothing else."
    tok, seen, sides = load_tokenizer(cfg.tokenizer), set(), {False: [], True: []}
    for file in find_files(cfg.corpus):
        for line in open(file):
            text = json.loads(line)["text"]
            h = document_hash(text)
            if not text.strip() or h in seen: continue
            seen.add(h)
            side = sides[h / 2**64 < 0.1]
            end = [tok.eos_token_id]
            side += end * (not side) + tok(text, add_special_tokens=False)["input_ids"] + end
    return sides

def grown(fixed, tmp_path, name="part3.jsonl", seed=2):
    "The corpus `fixed` with another file, which holds 40 copies of old documents."
    old = [json.loads(l) for l in open(tmp_path/"part0.jsonl")][:40]
    write_jsonl(tmp_path/name, old + [dict(text=t) for t in some_texts(150, seed=seed)])
    return replace(fixed)

def rows_read(monkeypatch):
    "A list of the rows that are read from now on."
    read, rows = documents_module.read_documents, []
    def counted(*a):
        for d in read(*a): rows.append(d["row"]); yield d
    monkeypatch.setattr(documents_module, "read_documents", counted)
    return rows

def shuffled(rows, seed=1):
    rows = list(rows)
    random.Random(seed).shuffle(rows)
    return rows
