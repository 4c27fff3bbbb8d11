"Rows from the hub that cannot be reached, streamed or not, and from compressed files."
import bz2, gzip, json, lzma, os
from dataclasses import replace
from importlib.util import find_spec
import pytest
from hybrid_nb.data.corpora import corpora, resolve_corpus
from hybrid_nb.data.documents import Documents
from helpers.preparing import documents, python
from helpers.texts import some_texts

@pytest.mark.parametrize("name", ["cosmopedia-v2", "wikitext-2"])
def test_offline_hub(name, tmp_path):
    code = f"""
from hybrid_nb.data.corpora import DataConfig
from hybrid_nb.data.loading import load_data
load_data(DataConfig(corpus={name!r}, cache_dir={str(tmp_path)!r}), progress=False)"""
    p = python(code, env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)})
    error = p.communicate()[1].strip().splitlines()[-1]
    assert error.startswith("RuntimeError: corpus") and repr(name) in error and "files=" in error
    assert corpora[name].hub in error and ("val_files=" in error) == bool(corpora[name].val_split)

@pytest.mark.parametrize("streaming", [True, False])
def test_streamed_or_not(cfg, streaming, monkeypatch, tmp_path):
    import datasets
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path/"hf")
    c = replace(resolve_corpus(cfg), streaming=streaming)
    assert [d["text"] for d in Documents(c)] == some_texts()

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

@pytest.mark.parametrize("end, opener", [("gz", gzip.open), ("xz", lzma.open), ("bz2", bz2.open)])
def test_compressed_text(tmp_path, end, opener):
    text = "\n\n".join(f"Paragraph {i} of a book. " + "It goes on. "*40 for i in range(30))
    for name, write in {"book.txt": open, f"book.txt.{end}": opener}.items():
        with write(tmp_path/name, "wt") as f: f.write(text)
    plain, packed = (documents(corpus=str(tmp_path/name)) for name in ("book.txt", f"book.txt.{end}"))
    assert [d["text"] for d in packed] == [d["text"] for d in plain] and len(plain) > 1

def test_parquet(tmp_path):
    import pandas as pd
    pd.DataFrame(dict(text=["one", "two"], other=[1, 2])).to_parquet(tmp_path/"t.parquet")
    for kw in (dict(corpus=str(tmp_path/"t.parquet")), dict(corpus="cosmopedia-v2", files=str(tmp_path/"t.parquet"))):
        assert [d["text"] for d in documents(**kw)] == ["one", "two"]
