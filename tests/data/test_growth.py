"Corpora that grow: what is the same is linked, what is not is prepared again, and the result is that of a fresh cache."
import os, shutil
from dataclasses import replace
import numpy as np, pandas as pd, pytest
from hybrid_nb.core.files import find_corruption
from helpers.preparing import elsewhere, expected_stream, grown, load, parts_of, rows_read, script, shared_shards
from helpers.texts import contents, some_texts, write_jsonl

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
    full = sum(s["tokens"] >= 3_000 for x in first.meta["shards"].values() for s in x)
    assert len(shared_shards(first.folder, second.folder)) == full
    whole = load(elsewhere(more, tmp_path))
    assert contents(second.folder) == contents(whole.folder)
    stream = expected_stream(more)
    assert np.asarray(second.train.tokens).tolist() == stream[False]
    assert np.asarray(second.val.tokens).tolist() == stream[True]
    assert second.stats()["duplicates"] > first.stats()["duplicates"] + 30
    # a folder that is gone leaves its shards to the other
    shutil.rmtree(first.folder)
    assert load(more).folder == second.folder and not find_corruption(second.folder)

def test_larger_and_smaller_limits(fixed, tmp_path, monkeypatch, small_shards):
    "From the cache with most in common: whole files, and the rows of one where its reading stopped."
    cases = [(250, range(250)), (330, range(250, 330)), (None, range(330, 600)), (450, range(400, 450)),
             (600, range(600, 600)), (200, range(200, 200)), (100, range(100))]
    for limit, read in cases:
        with monkeypatch.context() as m:
            rows = rows_read(m)
            some = load(replace(fixed, max_documents=limit))
        assert rows == list(read), (limit, rows[:1], rows[-1:])
        anew = load(elsewhere(replace(fixed, max_documents=limit), tmp_path/str(limit)))
        assert contents(some.folder) == contents(anew.folder)

@pytest.mark.parametrize("change, read", [
    ("between", range(200, 790)), ("first", range(790)), ("touched", range(400, 600)), ("damaged", range(790)),
    ("side", range(600))])
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
    texts = some_texts(60, seed=3) + some_texts(20, seed=2)   # the last are in the new file, too
    cfg = replace(fixed, val_files=write_jsonl(tmp_path/"val.jsonl", [dict(text=t) for t in texts]))
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
write = loading.write_tokens
loading.write_tokens = lambda *a, **k: write(*a, **{"shard_tokens": 3_000} | k)
def pause(*a): print("now", flush=True); time.sleep(1000)
preparation.mark_kept = pause""")
    assert p.stdout.readline().strip() == "now"
    p.kill(); p.wait()
    assert 3 < len(parts_of(more)) < 20   # of the new file only
    second = load(more)
    assert shared_shards(first.folder, second.folder)
    assert contents(second.folder) == contents(load(elsewhere(more, tmp_path)).folder)

def test_growing_parquet(fixed, tmp_path, monkeypatch, small_shards):
    for k in range(3):
        pd.read_json(tmp_path/f"part{k}.jsonl", lines=True).to_parquet(tmp_path/f"part{k}.parquet", row_group_size=30)
    load(replace(fixed, corpus=str(tmp_path/"part[01].parquet")))
    more = replace(fixed, corpus=str(tmp_path/"part*.parquet"))
    with monkeypatch.context() as m:
        rows = rows_read(m)
        second = load(more)
    assert rows == list(range(400, 600)) and second.train.tokens.shape == (len(expected_stream(fixed)[False]),)
    assert contents(second.folder) == contents(load(elsewhere(more, tmp_path)).folder)
