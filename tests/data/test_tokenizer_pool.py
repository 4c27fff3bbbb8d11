"Tokenizing in several processes: the same files, whatever is killed, and errors that say what is wrong."
import shutil, signal, time
from dataclasses import replace
from pathlib import Path
import pytest
from hybrid_nb.data import preparation, tokenization, tokenizer_pool
from hybrid_nb.data.corpora import corpora, Corpus, DataConfig
from hybrid_nb.data.tokenizer_pool import TokenizerProcess
from helpers.preparing import elsewhere, expected_stream, hidden, load, parts_of, script, tokens_folder
from helpers.texts import contents

def test_workers_change_nothing(fixed, tmp_path, monkeypatch):
    found = []
    for workers in (0, 1, 2, 3):
        data = load(replace(fixed, cache_dir=str(tmp_path/f"w{workers}")), workers=workers)
        found.append(contents(data.folder))
        assert found[-1] == found[0]
    stream = expected_stream(fixed)
    assert data.train.tokens.tolist() == stream[False] and data.val.tokens.tolist() == stream[True]
    s = data.stats()
    assert (s["read"], s["empty"]) == (600, 12) and s["duplicates"] > 60
    assert s["documents"] + s["duplicates"] + s["empty"] == 600
    # other blocks, the same files
    monkeypatch.setattr(tokenization, "BLOCK_CHARS", 50_000)
    assert contents(load(elsewhere(fixed, tmp_path)).folder) == found[0]

def test_workers_write_the_same_stories(tmp_path, monkeypatch):
    cfg = DataConfig(max_documents=400, vocab_size=1024, length=64, stride=.8, cache_dir=str(tmp_path/"one"))
    data = load(cfg)
    monkeypatch.setattr(tokenization, "BLOCK_CHARS", 100_000)
    assert contents(load(replace(cfg, cache_dir=str(tmp_path/"two")), workers=2).folder) == contents(data.folder)

def test_workers_of_the_environment(fixed, monkeypatch):
    monkeypatch.setenv("HYBRID_NB_WORKERS", "two")
    with pytest.raises(ValueError, match="workers 'two': must be a whole number, 0 or more"): load(fixed)
    with pytest.raises(ValueError, match="workers -1"): load(fixed, workers=-1)
    started, init = [], TokenizerProcess.__init__
    monkeypatch.setattr(TokenizerProcess, "__init__", lambda self, job: (started.append(self), init(self, job))[1])
    monkeypatch.setenv("HYBRID_NB_WORKERS", "2")
    load(fixed)
    assert len(started) == 2 and all(w.process.returncode is not None for w in started)   # and none is left

PAUSE = """
def pause(*a, **k): print("now", flush=True); time.sleep(1000)
"""
AT = dict(tokenizing="""
text_blocks = tokenizer_pool.text_blocks
def some(documents):
    for i, b in enumerate(text_blocks(documents)):
        if i == 20: pause()
        yield b
tokenizer_pool.text_blocks = some""", shards="preparation.mark_kept = pause", checksums="store.save_checksums = pause")

def children_of(p):
    return [int(c) for t in Path(f"/proc/{p.pid}/task").glob("*/children") for c in t.read_text().split()]

def wait_for_end(pid):
    while Path(f"/proc/{pid}").exists() and Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1].split()[0] != "Z":
        time.sleep(.01)

@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("moment", ["tokenizing", "shards", "checksums"])
def test_killed_preparation_goes_on(fixed, tmp_path, monkeypatch, moment, workers):
    p = script(fixed, PAUSE + AT[moment], workers=workers)
    assert p.stdout.readline().strip() == "now"
    children = children_of(p)
    assert len(children) == (workers if moment == "tokenizing" else 0)
    p.send_signal(signal.SIGKILL); p.wait()
    for c in children: wait_for_end(c)   # a worker ends by itself
    # nothing that could be taken for a cache
    assert not [f for f in tokens_folder(fixed).iterdir() if f.is_dir() and not f.name.startswith(".")]
    parts = parts_of(fixed)
    assert 5 < len(parts) <= 20 if moment == "tokenizing" else len(parts) > 20
    # one part damaged, one of another corpus: these two are written again, and what is missing, but nothing else
    raw = bytearray(parts[1].read_bytes()); raw[200] ^= 1; parts[1].write_bytes(raw)
    shutil.copy(parts[4], parts[3])
    again, write = [], tokenizer_pool.tokenize_block
    def noted(job, encode, path, *block): again.append(path); write(job, encode, path, *block)
    with monkeypatch.context() as m:
        m.setattr(tokenizer_pool, "tokenize_block", noted)
        data = load(fixed)
    whole = load(elsewhere(fixed, tmp_path))
    written = {p.name for p in again}
    kept = {p.name for i, p in enumerate(parts) if i not in (1, 3)}
    assert {parts[1].name, parts[3].name} <= written and not written & kept
    if moment != "tokenizing": assert len(written) == 2
    assert contents(data.folder) == contents(whole.folder) and not hidden(fixed)

def test_rebuild_trusts_no_parts(fixed, monkeypatch):
    folder = load(fixed).folder
    p = script(fixed, PAUSE + """
preparation.mark_kept, load = pause, loading.load_data
loading.load_data = lambda cfg, **k: load(cfg, rebuild=True, **k)""")
    assert p.stdout.readline().strip() == "now"
    p.kill(); p.wait()
    before = {f: f.stat().st_mtime_ns for f in parts_of(fixed)}
    assert before and contents(folder)   # the finished folder is still there
    mark, seen = preparation.mark_kept, {}
    def noted(*a): seen.update({f: f.stat().st_mtime_ns for f in parts_of(fixed)}); return mark(*a)
    with monkeypatch.context() as m:
        m.setattr(preparation, "mark_kept", noted)
        load(fixed, rebuild=True)
    assert seen.keys() == before.keys() and all(seen[f] != before[f] for f in seen) and not hidden(fixed)

def test_parts_left_behind_are_removed(fixed):
    data = load(fixed)
    left = data.folder.with_name(f".parts-{data.folder.name}")   # killed just after the folder took its name
    left.mkdir(); (left/"000000.npz").write_bytes(b"x")
    load(fixed)
    assert not left.exists()

def test_a_killed_worker_is_replaced(fixed, tmp_path, monkeypatch):
    call, killed = TokenizerProcess.__call__, []
    def kill_some(self, *block):
        if len(killed) < 3 and self.job is None:   # not before its second block
            killed.append(self)
            self.process.send_signal(signal.SIGKILL)
        return call(self, *block)
    monkeypatch.setattr(TokenizerProcess, "__call__", kill_some)
    data = load(fixed, workers=2)
    assert len(killed) == 3 and all(w.process.returncode == -signal.SIGKILL for w in killed)
    assert contents(data.folder) == contents(load(elsewhere(fixed, tmp_path)).folder)

def test_workers_that_die_again_and_again(fixed, monkeypatch):
    init = TokenizerProcess.__init__
    def dying(self, job):
        init(self, job)
        self.process.send_signal(signal.SIGKILL)
    why = "worker for documents 0 to .* was killed by signal 9, three times in a row; .*fewer workers"
    with monkeypatch.context() as m:
        m.setattr(TokenizerProcess, "__init__", dying)
        with pytest.raises(RuntimeError, match=why): load(fixed, workers=2)
    assert load(fixed, workers=2).stats()["read"] == 600

@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_wrong_in_a_worker_is_named(fixed, tmp_path, monkeypatch, workers):
    lines = Path(tmp_path/"part2.jsonl").read_text().splitlines()
    monkeypatch.setitem(corpora, "odd", Corpus("odd", text=lambda row: row["text"].replace("ODD", "\ud800")))
    odd = lines[:150] + ['{"text": "this is ODD"}'] + lines[150:]
    Path(tmp_path/"part2.jsonl").write_text("\n".join(odd))
    with pytest.raises(ValueError) as e: load(replace(fixed, corpus="odd", files=fixed.corpus), workers=workers)
    assert str(e.value).startswith(f"corpus 'odd': {tmp_path/'part2.jsonl'}, line 151: half a character (\\ud800)")
    assert "\n" not in str(e.value)
    Path(tmp_path/"part2.jsonl").write_text("\n".join(lines[:150] + ['{"text": "cut'] + lines[150:]))
    with pytest.raises(ValueError, match="part2.jsonl, line 151: not valid JSON"): load(fixed, workers=workers)
    assert not hidden(fixed)   # the corrected corpus will be another

def test_full_disk_in_a_worker_keeps_parts(fixed, monkeypatch):
    call = TokenizerProcess.__call__
    def no_folder(self, path, *block):
        return call(self, path if path.name < "000010" else Path("/dev/null")/path.name, *block)
    monkeypatch.setattr(TokenizerProcess, "__call__", no_folder)
    with pytest.raises(RuntimeError, match="Error: .*/dev/null") as e: load(fixed, workers=2)
    assert "\n" not in str(e.value) and len(parts_of(fixed)) >= 10
