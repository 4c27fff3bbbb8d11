"""The data pipeline on real text, in several processes, and when things go wrong."""
import json, lzma, os, random, shutil, signal, subprocess, sys, time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
import numpy as np, pytest, torch
from hybrid_nb import data as D
from hybrid_nb.data import DataConfig, load_data

SHARED = Path(__file__).parents[2]/"shared"/"data"
def shared(name):
    if not (SHARED/name).exists(): pytest.skip(f"{SHARED/name} is not there")
    return str(SHARED/name)

def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)

def some_texts(n=200, words=60, seed=0):
    r = random.Random(seed)
    vocabulary = ["".join(r.choices("abcdefghij", k=r.randint(2, 7))) for _ in range(300)]
    return [" ".join(r.choices(vocabulary, k=words)) for _ in range(n)]

@pytest.fixture
def cfg(tmp_path):
    file = write_jsonl(tmp_path/"some.jsonl", [dict(text=t) for t in some_texts()])
    return DataConfig(corpus=file, vocab_size=400, length=32, cache_dir=str(tmp_path/"cache"))

def load(cfg, **kw): return load_data(cfg, progress=False, **kw)
def documents(**kw): return list(D.Documents(D.resolve_corpus(DataConfig(**kw))))
def python(code, **kw): return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kw)

# real text

def test_books(tmp_path):
    cfg = DataConfig(corpus=shared("books/small.jsonl.xz"), val_fraction=0.15, vocab_size=1000, length=128, stride=0.8, cache_dir=str(tmp_path))
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
    train = D.train_bpe([texts[i] for i in data.train.records["row"]], 1000)
    assert D.tokenizer_key(train) == D.tokenizer_key(data.tokenizer)

def test_wikitext_articles():
    for name in ("valid", "test"):
        found = documents(corpus=shared(f"wikitext-2/{name}.txt"))
        assert len(found) == 60   # as published
        assert all(d["text"].lstrip().startswith("= ") for d in found)
        lines = sum(d["text"].split("\n") != [""] and len([l for l in d["text"].split("\n") if l.strip()]) for d in found)
        with open(shared(f"wikitext-2/{name}.txt")) as f: assert lines == sum(bool(l.strip()) for l in f)

def test_wikitext_declaration_on_local_files(tmp_path):
    cfg = DataConfig(corpus="wikitext-2", files=shared("wikitext-2/test.txt"), val_files=shared("wikitext-2/valid.txt"), vocab_size=500, cache_dir=str(tmp_path))
    data = load(cfg)
    assert (data.train.n_documents, data.val.n_documents) == (60, 60)
    assert "Homarus gammarus" in data.tokenizer.decode(data.val.document(0))
    assert load(replace(cfg, val_files=None, val_fraction=.2)).val.n_documents < 30

def test_wikitext_declaration_on_parquet_lines(tmp_path):
    import pandas as pd
    def rows(name):   # as on the hub: a row is a line with its line break
        with open(shared(f"wikitext-2/{name}.txt")) as f: return [l if l.strip() else "" for l in f]
    for name, there in dict(train="test", validation="valid").items(): pd.DataFrame(dict(text=rows(there))).to_parquet(tmp_path/f"{name}-0.parquet")
    parquet = documents(corpus="wikitext-2", files=str(tmp_path/"train*.parquet"), val_files=str(tmp_path/"validation*.parquet"))
    plain = documents(corpus="wikitext-2", files=shared("wikitext-2/test.txt"), val_files=shared("wikitext-2/valid.txt"))
    assert [(d["hash"], d["val"]) for d in parquet] == [(d["hash"], d["val"]) for d in plain] and len(plain) == 120

def test_cosmopedia_declaration_on_local_files(tmp_path):
    import pandas as pd
    texts = [f"{i} " + "long "*2000 for i in range(300)]
    for k in range(2): pd.DataFrame(dict(prompt="p", text=texts[k*150:(k+1)*150], token_length=1)).to_parquet(tmp_path/f"part{k}.parquet")
    found = D.Documents(D.resolve_corpus(DataConfig(corpus="cosmopedia-v2", files=str(tmp_path/"*.parquet"))))
    assert [d["text"] for d in found] == [t[:4000] for t in texts]
    assert found.counts["truncated"] == 300 and 20 < sum(d["val"] for d in found) < 70
    assert len(documents(corpus="cosmopedia-v2", files=str(tmp_path/"*.parquet"), max_documents=10)) == 10

# the hub

@pytest.mark.parametrize("name", ["cosmopedia-v2", "wikitext-2"])
def test_offline_hub(name, tmp_path):
    code = f"from hybrid_nb.data import *\nload_data(DataConfig(corpus={name!r}, cache_dir={str(tmp_path)!r}), progress=False)"
    p = python(code, env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)})
    error = p.communicate()[1].strip().splitlines()[-1]
    assert error.startswith("RuntimeError: corpus") and repr(name) in error and "files=" in error and D.corpora[name].hub in error
    assert ("val_files=" in error) == bool(D.corpora[name].val_split)

@pytest.mark.parametrize("streaming", [True, False])
def test_streamed_or_not(cfg, streaming, monkeypatch, tmp_path):
    import datasets
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path/"hf")
    c = replace(D.resolve_corpus(cfg), streaming=streaming)
    assert [d["text"] for d in D.Documents(c)] == some_texts()

def test_zstandard(tmp_path):
    raw = "".join(json.dumps(dict(text=t)) + "\n" for t in some_texts(20)).encode()
    file = tmp_path/"a.jsonl.zst"
    file.write_bytes(b"")
    if not find_spec("zstandard"):
        with pytest.raises(ValueError, match="pip install zstandard"): documents(corpus=str(file))
        pytest.skip("the package zstandard is not installed; only the error was tested")
    import zstandard
    file.write_bytes(zstandard.compress(raw))
    assert [d["text"] for d in documents(corpus=str(file))] == some_texts(20)

# documents

def test_duplicates_never_straddle(tmp_path):
    texts = some_texts(300)
    copies = [t.replace(" ", "\n", 3) + "  " for t in texts]
    rows = [dict(text=t) for t in texts + copies]
    random.Random(1).shuffle(rows)
    found = D.Documents(D.resolve_corpus(DataConfig(corpus=write_jsonl(tmp_path/"a.jsonl", rows), val_fraction=0.3)))
    words = [" ".join(d["text"].split()) for d in found]
    assert len(words) == len(set(words)) == 300 and found.counts["duplicates"] == 300
    # neither the order of rows nor the number of files changes a document's side
    side = {" ".join(d["text"].split()): d["val"] for d in found}
    for k in range(3): write_jsonl(tmp_path/f"b{k}.jsonl", rows[k::3])
    assert {" ".join(d["text"].split()): d["val"] for d in documents(corpus=str(tmp_path/"b*.jsonl"), val_fraction=0.3)} == side

# the cache

def test_key(cfg):
    first = load(cfg)
    for same in (dict(length=16), dict(stride=.5), dict(corpus=os.path.relpath(cfg.corpus))): assert load(replace(cfg, **same)).folder == first.folder
    for other in (dict(vocab_size=300), dict(val_fraction=.2), dict(max_chars=50), dict(max_documents=100), dict(text_field="{text}!")):
        assert load(replace(cfg, **other)).folder != first.folder, other
    texts = some_texts()
    texts[0] = texts[0][::-1]   # the same size
    os.utime(write_jsonl(Path(cfg.corpus), [dict(text=t) for t in texts]))
    assert load(cfg).folder != first.folder

@pytest.mark.parametrize("harm", ["flip", "truncate", "remove", "append"])
def test_damage_is_named_and_repaired(cfg, harm):
    good = load(cfg)
    batch, folder = good.train_batch(0, 0, 8), good.folder
    tokenizer = Path(good.tokenizer.name_or_path)
    for f in [*sorted(folder.iterdir()), *sorted(tokenizer.iterdir())]:
        raw = f.read_bytes()
        if harm == "remove": f.unlink()
        else: f.write_bytes({"flip": raw[:-3] + bytes([raw[-3] ^ 4]) + raw[-2:], "truncate": raw[:-9], "append": raw + b" "}[harm])
        if f.name == "checksums.json" and harm == "append": continue   # a space after JSON harms nothing
        with pytest.warns(UserWarning, match=f.name.replace(".", r"\.") if harm != "flip" or f.name != "checksums.json" else "damaged"):
            again = load(cfg)
        assert torch.equal(again.train_batch(0, 0, 8), batch)
        assert not D.broken_file(folder) and not D.broken_file(tokenizer)

def test_many_processes_prepare_once(cfg):
    code = f"""
from hybrid_nb import data as D
write = D.write_tokens
def counted(*a, **k): print("wrote"); write(*a, **k)
D.write_tokens = counted
data = D.load_data(D.DataConfig(**{vars(cfg)!r}), progress=False)
print(data.folder, data.train_batch(0, 3, 8).sum().item())"""
    outs = [p.communicate() for p in [python(code) for _ in range(3)]]
    assert all(o for o, _ in outs), outs
    assert sum(o.count("wrote") for o, _ in outs) == 1
    assert len({o.strip().splitlines()[-1] for o, _ in outs}) == 1
    assert not [f for f in Path(cfg.cache_dir, "tokens").iterdir() if f.name.startswith(".")]

def test_read_only_cache(cfg):
    batch = load(cfg).train_batch(0, 0, 4)
    root = Path(cfg.cache_dir)
    for d in (root/"tokens", root/"tokenizers"): d.chmod(0o555)
    try: assert torch.equal(load(cfg).train_batch(0, 0, 4), batch)
    finally:
        for d in (root/"tokens", root/"tokenizers"): d.chmod(0o755)

def test_environment_variable(cfg, monkeypatch, tmp_path):
    monkeypatch.setenv("HYBRID_NB_CACHE", str(tmp_path/"elsewhere"))
    assert (tmp_path/"elsewhere") in load(replace(cfg, cache_dir=None)).folder.parents

def test_tokenizer_does_not_depend_on_threads(cfg, tmp_path):
    keys = set()
    for threads in "1 3".split():
        code = f"from hybrid_nb import data as D\nprint(D.tokenizer_key(D.load_data(D.DataConfig(**{vars(replace(cfg, cache_dir=str(tmp_path/threads)))!r}), progress=False).tokenizer))"
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

def test_opens_40_million_tokens(cfg):
    small = load(cfg)
    folder = small.folder
    writer = D.TokenWriter(folder, "train", 0, "<u2")
    ids = np.random.default_rng(0).integers(1, 400, 4_000, dtype="<u2")
    for i in range(10_000): writer.add(ids, np.array([(4_000, 16_000, i, i, np.nan)], D.RECORD))
    writer.close()
    meta = json.loads((folder/"meta.json").read_text())
    meta["shards"]["train"] = writer.shards
    (folder/"meta.json").write_text(json.dumps(meta))
    sums = {f.name: [f.stat().st_size, D.checksum(f)] for f in folder.iterdir() if f.name != "checksums.json"}
    (folder/"checksums.json").write_text(json.dumps(sums))
    assert len(load(cfg).train) > 40_000_000

# workers, interruptions, growth

@pytest.fixture
def small_blocks(monkeypatch): monkeypatch.setattr(D, "BLOCK_CHARS", 4_000)

@pytest.fixture
def fixed(cfg, tmp_path, small_blocks):
    "A corpus of three files with copies and empty documents, and a tokenizer that is not trained on it."
    D.train_bpe(some_texts(), 400).save_pretrained(tmp_path/"tok")
    texts = some_texts(600, seed=1)
    for i in range(0, 600, 7): texts[i] = texts[i*5 % 600]
    for i in range(3, 600, 50): texts[i] = " "
    for k in range(3): write_jsonl(tmp_path/f"part{k}.jsonl", [dict(text=t) for t in texts[k*200:(k+1)*200]])
    return replace(cfg, corpus=str(tmp_path/"part*.jsonl"), tokenizer=str(tmp_path/"tok"))

def contents(folder): return {f.name: f.read_bytes() for f in Path(folder).iterdir()}
def elsewhere(cfg, tmp_path): return replace(cfg, cache_dir=str(tmp_path/"elsewhere"))   # prepared from nothing
def hidden(cfg): return [f for f in Path(cfg.cache_dir, "tokens").iterdir() if f.name.startswith(".")]
def parts_of(cfg): return sorted(Path(cfg.cache_dir, "tokens").glob(".parts-*/*.npz"))
def script(cfg, body, **kw):
    return python(f"""
import os, signal, time
from hybrid_nb import data as D
D.BLOCK_CHARS = 4_000
cfg = D.DataConfig(**{vars(cfg)!r})
{body}
D.load_data(cfg, progress=False, workers={kw.pop("workers", 2)})""", **kw)

def expected_stream(cfg):
    "Both sides of the split, by the rules and nothing else."
    tok, seen, sides = D.load_tokenizer(cfg.tokenizer), set(), {False: [], True: []}
    for file in D.find_files(cfg.corpus):
        for line in open(file):
            text = json.loads(line)["text"]
            h = D.document_hash(text)
            if not text.strip() or h in seen: continue
            seen.add(h)
            side = sides[h / 2**64 < 0.1]
            side += [tok.eos_token_id] * (not side) + tok(text, add_special_tokens=False)["input_ids"] + [tok.eos_token_id]
    return sides

def test_workers_change_nothing(fixed, tmp_path, monkeypatch):
    found = []
    for workers in (0, 1, 2, 3):
        data = load(replace(fixed, cache_dir=str(tmp_path/f"w{workers}")), workers=workers)
        found.append(contents(data.folder))
        assert found[-1] == found[0]
    stream = expected_stream(fixed)
    assert data.train.tokens.tolist() == stream[False] and data.val.tokens.tolist() == stream[True]
    s = data.stats()
    assert (s["read"], s["empty"]) == (600, 12) and s["duplicates"] > 60 and s["documents"] + s["duplicates"] + s["empty"] == 600
    # other blocks, the same files
    monkeypatch.setattr(D, "BLOCK_CHARS", 50_000)
    assert contents(load(elsewhere(fixed, tmp_path)).folder) == found[0]

def test_workers_of_the_environment(fixed, monkeypatch):
    monkeypatch.setenv("HYBRID_NB_WORKERS", "two")
    with pytest.raises(ValueError, match="workers 'two': must be a whole number, 0 or more"): load(fixed)
    with pytest.raises(ValueError, match="workers -1"): load(fixed, workers=-1)
    started, init = [], D.Worker.__init__
    monkeypatch.setattr(D.Worker, "__init__", lambda self, job: (started.append(self), init(self, job))[1])
    monkeypatch.setenv("HYBRID_NB_WORKERS", "2")
    load(fixed)
    assert len(started) == 2 and all(w.process.returncode is not None for w in started)   # and none is left

@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("moment", ["tokenizing", "shards", "checksums"])
def test_killed_preparation_goes_on(fixed, tmp_path, moment, workers):
    pause = """
def pause(*a, **k): print("now", flush=True); time.sleep(1000)
""" + dict(tokenizing="""
blocks = D.blocks
def some(documents):
    for i, b in enumerate(blocks(documents)):
        if i == 20: pause()
        yield b
D.blocks = some""", shards="D.mark_kept = pause", checksums="D.sums_of = pause")[moment]
    p = script(fixed, pause, workers=workers)
    assert p.stdout.readline().strip() == "now"
    children = [int(c) for t in Path(f"/proc/{p.pid}/task").glob("*/children") for c in t.read_text().split()]
    assert len(children) == (workers if moment == "tokenizing" else 0)
    p.send_signal(signal.SIGKILL); p.wait()
    for c in children:
        while Path(f"/proc/{c}").exists() and Path(f"/proc/{c}/stat").read_text().rsplit(")")[-1].split()[0] != "Z": time.sleep(.01)   # a worker ends by itself
    tokens = Path(fixed.cache_dir)/"tokens"
    assert not [f for f in tokens.iterdir() if f.is_dir() and not f.name.startswith(".")]   # nothing that could be taken for a cache
    parts = parts_of(fixed)
    assert 5 < len(parts) <= 20 if moment == "tokenizing" else len(parts) > 20
    # one part damaged, one of another corpus: these two are written again, and what is missing, but nothing else
    raw = bytearray(parts[1].read_bytes()); raw[200] ^= 1; parts[1].write_bytes(raw)
    shutil.copy(parts[4], parts[3])
    again, write = [], D.tokenize_block
    D.tokenize_block = lambda job, encode, path, *block: (again.append(path), write(job, encode, path, *block))[1]
    try: data = load(fixed)
    finally: D.tokenize_block = write
    whole = load(elsewhere(fixed, tmp_path))
    written = {p.name for p in again}
    assert {parts[1].name, parts[3].name} <= written and not written & {p.name for i, p in enumerate(parts) if i not in (1, 3)}
    if moment != "tokenizing": assert len(written) == 2
    assert contents(data.folder) == contents(whole.folder) and not hidden(fixed)

def test_rebuild_trusts_no_parts(fixed):
    folder = load(fixed).folder
    p = script(fixed, """
def pause(*a): print("now", flush=True); time.sleep(1000)
D.mark_kept, load = pause, D.load_data
D.load_data = lambda cfg, **k: load(cfg, rebuild=True, **k)""")
    assert p.stdout.readline().strip() == "now"
    p.kill(); p.wait()
    before = {f: f.stat().st_mtime_ns for f in parts_of(fixed)}
    assert before and contents(folder)   # the finished folder is still there
    mark, seen = D.mark_kept, {}
    D.mark_kept = lambda *a: (seen.update({f: f.stat().st_mtime_ns for f in parts_of(fixed)}), mark(*a))[1]
    try: load(fixed, rebuild=True)
    finally: D.mark_kept = mark
    assert seen.keys() == before.keys() and all(seen[f] != before[f] for f in seen) and not hidden(fixed)

def test_parts_left_behind_are_removed(fixed):
    data = load(fixed)
    left = data.folder.with_name(f".parts-{data.folder.name}")   # killed just after the folder took its name
    left.mkdir(); (left/"000000.npz").write_bytes(b"x")
    load(fixed)
    assert not left.exists()

def test_a_killed_worker_is_replaced(fixed, tmp_path, monkeypatch):
    call, killed = D.Worker.__call__, []
    def kill_some(self, *block):
        if len(killed) < 3 and self.job is None:   # not before its second block
            killed.append(self)
            self.process.send_signal(signal.SIGKILL)
        return call(self, *block)
    monkeypatch.setattr(D.Worker, "__call__", kill_some)
    data = load(fixed, workers=2)
    assert len(killed) == 3 and all(w.process.returncode == -signal.SIGKILL for w in killed)
    assert contents(data.folder) == contents(load(elsewhere(fixed, tmp_path)).folder)

def test_workers_that_die_again_and_again(fixed, monkeypatch):
    init = D.Worker.__init__
    def dying(self, job):
        init(self, job)
        self.process.send_signal(signal.SIGKILL)
    monkeypatch.setattr(D.Worker, "__init__", dying)
    with pytest.raises(RuntimeError, match="worker for documents 0 to .* was killed by signal 9, three times in a row; .*fewer workers"): load(fixed, workers=2)
    monkeypatch.undo()
    monkeypatch.setattr(D, "BLOCK_CHARS", 4_000)
    assert load(fixed, workers=2).stats()["read"] == 600

@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_wrong_in_a_worker_is_named(fixed, tmp_path, monkeypatch, workers):
    lines = Path(tmp_path/"part2.jsonl").read_text().splitlines()
    monkeypatch.setitem(D.corpora, "odd", D.Corpus("odd", text=lambda row: row["text"].replace("ODD", "\ud800")))
    odd = lines[:150] + ['{"text": "this is ODD"}'] + lines[150:]
    Path(tmp_path/"part2.jsonl").write_text("\n".join(odd))
    with pytest.raises(ValueError) as e: load(replace(fixed, corpus="odd", files=fixed.corpus), workers=workers)
    assert str(e.value).startswith(f"corpus 'odd': {tmp_path/'part2.jsonl'}, row 151: UnicodeEncodeError: ") and "\n" not in str(e.value)
    Path(tmp_path/"part2.jsonl").write_text("\n".join(lines[:150] + ['{"text": "cut'] + lines[150:]))
    with pytest.raises(ValueError, match="part2.jsonl, line 151: not valid JSON"): load(fixed, workers=workers)
    assert not hidden(fixed)   # the corrected corpus will be another

def test_full_disk_in_a_worker_keeps_parts(fixed, monkeypatch):
    call = D.Worker.__call__
    def no_folder(self, path, *block): return call(self, path if path.name < "000010" else Path("/dev/null")/path.name, *block)
    monkeypatch.setattr(D.Worker, "__call__", no_folder)
    with pytest.raises(RuntimeError, match="Error: .*/dev/null") as e: load(fixed, workers=2)
    assert "\n" not in str(e.value) and len(parts_of(fixed)) >= 10

def grown(fixed, tmp_path, name="part3.jsonl", seed=2, **kw):
    old = [json.loads(l) for l in open(tmp_path/"part0.jsonl")][:40]   # some copies of old documents
    write_jsonl(tmp_path/name, old + [dict(text=t) for t in some_texts(150, seed=seed)])
    return replace(fixed, **kw)

@pytest.fixture
def small_shards(monkeypatch):
    "Shards of 3,000 tokens."
    write = D.write_tokens
    monkeypatch.setattr(D, "write_tokens", lambda *a, **k: write(*a, **{"shard_tokens": 3_000} | k))

def rows_read(monkeypatch):
    "A list of the rows that are read from now on."
    read, rows = D.read_documents, []
    def counted(*a):
        for d in read(*a): rows.append(d["row"]); yield d
    monkeypatch.setattr(D, "read_documents", counted)
    return rows

def shared_shards(a, b): return [f.name for f in Path(a).glob("*.tokens") if (Path(b)/f.name).exists() and f.stat().st_ino == (Path(b)/f.name).stat().st_ino]

@pytest.mark.parametrize("workers", [0, 2])
def test_more_files(fixed, tmp_path, monkeypatch, small_shards, workers):
    first = load(fixed)
    before = contents(first.folder)
    assert len(first.meta["shards"]["train"]) > 5
    more = grown(fixed, tmp_path)
    with monkeypatch.context() as m:
        rows = rows_read(m)
        second = load(more, workers=workers)
    assert rows == list(range(600, 790))   # no old document was read
    assert second.folder != first.folder and contents(first.folder) == before
    assert len(shared_shards(first.folder, second.folder)) == sum(s["tokens"] >= 3_000 for x in first.meta["shards"].values() for s in x)
    whole = load(elsewhere(more, tmp_path))
    assert contents(second.folder) == contents(whole.folder)
    stream = expected_stream(more)
    assert np.asarray(second.train.tokens).tolist() == stream[False] and np.asarray(second.val.tokens).tolist() == stream[True]
    assert second.stats()["duplicates"] > first.stats()["duplicates"] + 30
    # a folder that is gone leaves its shards to the other
    shutil.rmtree(first.folder)
    assert load(more).folder == second.folder and not D.broken_file(second.folder)

def test_larger_and_smaller_limits(fixed, tmp_path, monkeypatch, small_shards):
    for limit, read in [(250, range(250)), (330, range(250, 330)), (None, range(330, 600)), (450, range(400, 450)), (600, range(600, 600)), (200, range(200, 200)), (100, range(100))]:
        with monkeypatch.context() as m:
            rows = rows_read(m)
            some = load(replace(fixed, max_documents=limit))
        assert rows == list(read), (limit, rows[:1], rows[-1:])   # from the cache with most in common: whole files, and the rows of one where its reading stopped
        assert contents(some.folder) == contents(load(elsewhere(replace(fixed, max_documents=limit), tmp_path/str(limit))).folder)

@pytest.mark.parametrize("change, read", [("between", range(200, 790)), ("first", range(0, 790)), ("touched", range(400, 600)), ("damaged", range(0, 790)), ("side", range(0, 600))])
def test_what_is_not_the_same_is_prepared_again(fixed, tmp_path, monkeypatch, small_shards, change, read):
    first = load(fixed)
    new = fixed
    if change == "between": new = grown(fixed, tmp_path, "part0b.jsonl")
    if change == "first": new = grown(fixed, tmp_path, "part-0.jsonl")
    if change == "touched": os.utime(tmp_path/"part2.jsonl")
    if change == "side": new = replace(fixed, val_fraction=.2)
    if change == "damaged":
        new = grown(fixed, tmp_path)
        f = first.folder/"train-00001.tokens"
        f.write_bytes(f.read_bytes()[:-2] + b"xx")
    with monkeypatch.context() as m:
        rows = rows_read(m)
        second = load(new)
    assert rows == list(read)
    assert contents(second.folder) == contents(load(elsewhere(new, tmp_path)).folder)

def test_growing_with_published_validation(fixed, tmp_path, monkeypatch, small_shards):
    val = write_jsonl(tmp_path/"val.jsonl", [dict(text=t) for t in some_texts(60, seed=3) + some_texts(20, seed=2)])   # the last are in the new file, too
    cfg = replace(fixed, val_files=val)
    first = load(cfg)
    more = grown(cfg, tmp_path)
    with monkeypatch.context() as m:
        rows = rows_read(m)
        second = load(more)
    assert rows == list(range(600, 790)) and "val-00000.tokens" in shared_shards(first.folder, second.folder)
    assert contents(second.folder) == contents(load(elsewhere(more, tmp_path)).folder)
    assert second.stats()["duplicates"] == first.stats()["duplicates"] + 40 + 20 - 1   # one of the 40 is empty

def test_growing_after_a_kill(fixed, tmp_path, small_shards):
    first = load(fixed)
    more = grown(fixed, tmp_path)
    p = script(more, """
write = D.write_tokens
D.write_tokens = lambda *a, **k: write(*a, **{"shard_tokens": 3_000} | k)
def pause(*a): print("now", flush=True); time.sleep(1000)
D.mark_kept = pause""")
    assert p.stdout.readline().strip() == "now"
    p.kill(); p.wait()
    assert 3 < len(parts_of(more)) < 20   # of the new file only
    second = load(more)
    assert shared_shards(first.folder, second.folder) and contents(second.folder) == contents(load(elsewhere(more, tmp_path)).folder)

def test_growing_parquet(fixed, tmp_path, monkeypatch, small_shards):
    import pandas as pd
    for k in range(3): pd.read_json(tmp_path/f"part{k}.jsonl", lines=True).to_parquet(tmp_path/f"part{k}.parquet", row_group_size=30)
    cfg = replace(fixed, corpus=str(tmp_path/"part[01].parquet"))
    load(cfg)
    more = replace(fixed, corpus=str(tmp_path/"part*.parquet"))
    with monkeypatch.context() as m:
        rows = rows_read(m)
        second = load(more)
    assert rows == list(range(400, 600)) and second.train.tokens.shape == (len(expected_stream(fixed)[False]),)
    assert contents(second.folder) == contents(load(elsewhere(more, tmp_path)).folder)

def test_a_trained_tokenizer_changes_with_its_corpus(fixed, tmp_path, monkeypatch, small_shards):
    trained = replace(fixed, tokenizer="bpe")
    first = load(trained)
    second = load(grown(trained, tmp_path))
    assert D.tokenizer_key(first.tokenizer) != D.tokenizer_key(second.tokenizer) and not shared_shards(first.folder, second.folder)
    third = load(replace(trained, tokenizer=first.tokenizer.name_or_path))   # so the first tokenizer is named
    assert shared_shards(first.folder, third.folder)

def test_copies_are_found_in_little_memory():
    import tracemalloc
    def peak(n):
        hashes, kept = np.random.default_rng(0).integers(0, 2**63, n).astype(np.uint64) * np.uint64(2), np.ones(n, bool)
        hashes[n//2:] = hashes[:n - n//2][::-1]
        tracemalloc.start()
        D.drop_copies(hashes, kept, 2**12)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert kept[:n//2].all() and not kept[n//2:].any()
        return peak
    assert peak(800_000) < 1.3*peak(200_000) < 5_000_000

# batches

def test_ranks_and_accumulation_share_a_batch(cfg):
    data = load(replace(cfg, stride=0.7))
    for step in range(5):
        whole = data.train_batch(7, step, 12)
        ids = data.batch_windows(7, step, 12)
        for ranks in (1, 2, 4):
            assert torch.equal(torch.cat([torch.stack([data.window(i) for i in part]) for part in np.split(ids, ranks)]), whole)
    assert torch.equal(load(replace(cfg, stride=0.7)).train_batch(7, 3, 12), data.train_batch(7, 3, 12))   # a fresh process has no state either
    assert data.train_batch(7, 0, 3).dtype == torch.long and data.train_batch(7, 0, 3).shape == (3, 33)

@pytest.mark.parametrize("length", [1, 2, 31, 32, 1000, 4000])
def test_validation_targets_once(cfg, length):
    data = load(replace(cfg, length=length))
    x, y = data.val_batch(0, data.n_val_windows)
    assert x.shape == y.shape == (data.n_val_windows, length)
    assert y[y != -100].tolist() == data.val.tokens[1:].tolist() and x[y != -100].tolist() == data.val.tokens[:-1].tolist()
    assert x.min() >= 0 and (y != -100).any(1).all()

# bad input

@pytest.mark.parametrize("change, words", [
    (dict(corpus="wrld"), ["'wrld'", "did you mean 'world'"]),
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
    with pytest.raises(ValueError) as e: load(replace(cfg, **{k: v.replace("{tmp}", str(tmp_path)) if isinstance(v, str) else v for k, v in change.items()}))
    assert "\n" not in str(e.value) and all(w in str(e.value) for w in words), str(e.value)

@pytest.mark.parametrize("change", [dict(length=0), dict(stride=0), dict(stride=-1), dict(stride=0.001), dict(val_fraction=0), dict(val_fraction=1),
                                    dict(vocab_size=256), dict(max_documents=1), dict(max_chars=-1), dict(text_unit="chapter")])
def test_bad_numbers(change):
    with pytest.raises(ValueError, match=f"{next(iter(change))} .*must be"): DataConfig(**change)

def test_import_is_light():
    code = "import hybrid_nb.data, sys; print([m for m in ('datasets', 'transformers', 'pandas', 'matplotlib', 'pyarrow') if m in sys.modules])"
    assert python(code).communicate()[0].strip() == "[]"
