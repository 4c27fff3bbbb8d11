"""Measure the token cache: tokenization rate against the tokenizer library, peak memory on a large file, time to open.

    python reports/benchmarks/tokens.py ../shared/data/books/large.jsonl.xz

writes reports/benchmarks/tokens.json. Every number of one run is measured on the same machine, one after the other.
"""
import argparse, importlib, json, os, statistics, subprocess, sys, tempfile, threading, time
from dataclasses import replace
from pathlib import Path
import numpy as np, psutil
from hybrid_nb.core.runs import environment
from hybrid_nb.data import loading
from hybrid_nb.core.files import save_checksums, save_json, size_and_crc32
from hybrid_nb.data.preparation import write_tokens
from hybrid_nb.data.shards import RECORD, TokenWriter
from hybrid_nb.data.corpora import DataConfig, resolve_corpus
from hybrid_nb.data.documents import Documents
from hybrid_nb.data.tokenizer_cache import corpus_tokenizer
from hybrid_nb.data.loading import load_data

def seconds(f):
    t = time.perf_counter()
    f()
    return time.perf_counter() - t

class PeakMemory:
    "Largest resident memory of this process and its children together, sampled 20 times a second."
    def __enter__(self):
        self.peak, self.stop = 0, threading.Event()
        self.thread = threading.Thread(target=self._watch); self.thread.start()
        return self
    def _watch(self):
        me = psutil.Process()
        while not self.stop.wait(0.05):
            rss = 0
            for p in (me, *me.children(recursive=True)):
                try: rss += p.memory_info().rss
                except psutil.NoSuchProcess: pass
            self.peak = max(self.peak, rss)
    def __exit__(self, *e): self.stop.set(); self.thread.join()

def rates(file, vocab_size, cache, n=3_000, repeats=7):
    """Characters a second: the library on texts in memory, our tokens from the same, `load_data` from a file of them.

    The machine may be shared, so the four take turns, and the shares are medians over the turns. CPU time (all threads)
    is beside the wall time."""
    cfg = DataConfig(corpus=file, vocab_size=vocab_size, max_documents=n, cache_dir=cache)
    documents = Documents(resolve_corpus(cfg))
    tok = corpus_tokenizer(cfg, documents, progress=False)
    texts = [d["text"] for d in documents]
    chars, cfg = sum(map(len, texts)), replace(cfg, tokenizer=tok.name_or_path)
    sample = Path(cache)/"sample.jsonl"
    sample.write_text("".join(json.dumps(dict(text=t)) + "\n" for t in texts))
    backend = tok.backend_tokenizer
    def library(encode, size=1000):
        for i in range(0, len(texts), size): [e.ids for e in encode(texts[i:i+size], add_special_tokens=False)]
    def ours():
        with tempfile.TemporaryDirectory(dir=cache) as tmp: write_tokens(Path(tmp), documents, tok, progress=False)
    def load(): load_data(replace(cfg, corpus=str(sample), max_documents=None), rebuild=True, progress=False)
    runs = dict(encode_batch=lambda: library(backend.encode_batch),
                encode_batch_fast=lambda: library(backend.encode_batch_fast), write_tokens=ours, load_data=load)
    for f in runs.values(): f()   # warm up
    took, cpu = ({name: [] for name in runs} for _ in range(2))
    for _ in range(repeats):
        for name, f in runs.items():
            c = time.process_time()
            took[name].append(seconds(f))
            cpu[name].append(time.process_time() - c)
    def share(times, ours):
        return {lib: statistics.median(a/o for a, o in zip(times[lib], times[ours]))
                for lib in ("encode_batch", "encode_batch_fast")}
    return dict(characters=chars, documents=len(texts), repeats=repeats, load_average=os.getloadavg()[0],
                seconds=took, cpu_seconds=cpu,
                characters_per_second={name: chars / statistics.median(t) for name, t in took.items()},
                share_of_library={name: share(took, name) for name in ("write_tokens", "load_data")},
                share_of_library_by_cpu_time={name: share(cpu, name) for name in ("write_tokens", "load_data")})

def prepare(file, vocab_size, cache):
    "Everything from the compressed file on: train the tokenizer, tokenize; in this (fresh) process, watched."
    cfg = DataConfig(corpus=file, vocab_size=vocab_size, cache_dir=cache)
    marks, write = {}, loading.write_tokens
    def timed(*a, **k): marks["tokenize_seconds"] = seconds(lambda: write(*a, **k))
    loading.write_tokens = timed
    with PeakMemory() as memory: total = seconds(lambda: marks.update(data=load_data(cfg)))
    data = marks.pop("data")
    tokens = len(data.train) + len(data.val)
    stats = data.stats()
    return dict(file=Path(file).name, seconds=total, **marks, bytes=stats["bytes"], tokens=tokens,
                vocab_size=data.vocab_size, tokenize_bytes_per_second=stats["bytes"]/marks["tokenize_seconds"],
                peak_memory_bytes=memory.peak, stats=stats)

def with_workers(file, vocab_size, cache, n, workers):
    "Tokenize `n` documents with a tokenizer that is ready, in this (fresh) process and its workers, watched together."
    cfg = DataConfig(corpus=file, vocab_size=vocab_size, max_documents=3_000, cache_dir=cache)
    tok = corpus_tokenizer(cfg, Documents(resolve_corpus(cfg)), progress=False)
    cfg = replace(cfg, tokenizer=tok.name_or_path, max_documents=n)
    data, before = [], os.times()
    def load(): data.append(load_data(cfg, rebuild=True, progress=False, workers=workers))
    with PeakMemory() as memory: took = seconds(load)
    stats, after = data[0].stats(), os.times()
    return dict(workers=workers, documents=stats["documents"], bytes=stats["bytes"], seconds=took,
                cpu_seconds=sum(after[:4]) - sum(before[:4]), bytes_per_second=stats["bytes"]/took,
                peak_memory_bytes=memory.peak)

def large_cache(file, cache, tokens=42_000_000):
    "A corpus whose training stream is replaced by `tokens` random ones: opening it is as opening a large corpus."
    cfg = DataConfig(corpus=file, max_documents=200, vocab_size=2048, cache_dir=cache)
    folder = load_data(cfg, progress=False).folder
    writer = TokenWriter(folder, "train", 0, "<u2")
    ids = np.random.default_rng(0).integers(1, 2048, 1_000, dtype="<u2")
    for i in range(tokens // 1_000): writer.add(ids, np.array([(1_000, 4_000, i, i, np.nan)], RECORD))
    writer.close()
    meta = json.loads((folder/"meta.json").read_text())
    meta["shards"]["train"] = writer.shards
    save_json(meta, folder/"meta.json")
    (folder/"checksums.json").unlink()
    save_checksums(folder, size_and_crc32)
    return cfg

def open_again(file, cache):
    "Open a prepared corpus of 42 million tokens, checksums compared, in a fresh process; then again in the same one."
    imports = seconds(lambda: importlib.import_module("transformers"))
    cfg = DataConfig(corpus=file, max_documents=200, vocab_size=2048, cache_dir=cache)
    times = [seconds(lambda: load_data(cfg, progress=False)) for _ in range(4)]
    return dict(tokens=len(load_data(cfg, progress=False).train), import_seconds=imports, first_open_seconds=times[0],
                next_open_seconds=times[1:])

def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("file"); p.add_argument("--vocab_size", type=int, default=8192)
    p.add_argument("--only", default="prepare open rates",
                   help="parts to measure (there is also `workers`); the others stay as they are in the JSON")
    p.add_argument("--part", help=argparse.SUPPRESS); p.add_argument("--cache", help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.part == "prepare": return print(json.dumps(prepare(a.file, a.vocab_size, a.cache)))
    if a.part == "open": return print(json.dumps(open_again(a.file, a.cache)))
    if (a.part or "").startswith("workers"):
        return print(json.dumps(with_workers(a.file, a.vocab_size, a.cache, *map(int, a.part.split()[1:]))))
    out = Path(__file__).with_suffix(".json")
    result = json.loads(out.read_text()) if out.exists() else {}
    with tempfile.TemporaryDirectory() as cache:
        def part(name):
            flags = ["--part", name, "--vocab_size", str(a.vocab_size), "--cache", cache]
            done = subprocess.run([sys.executable, __file__, a.file, *flags], check=True, stdout=subprocess.PIPE)
            return json.loads(done.stdout) | dict(load_average=os.getloadavg()[0])
        if "prepare" in a.only: result["prepare"] = part("prepare")
        if "open" in a.only:
            large_cache(a.file, cache)
            result["open"] = [part("open") for _ in range(3)]
        if "workers" in a.only:
            result["workers"] = [part(f"workers {n} {w}") for n in (5_000, 10_000, 20_000) for w in (0, 1, 2)]
        if "rates" in a.only: result["rates"] = rates(a.file, a.vocab_size, cache)
    save_json(dict(result, environment=environment()), out)
    print(json.dumps(result, indent=1))

if __name__ == "__main__": main()
