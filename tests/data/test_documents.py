"Documents: declarations on local files, the split, duplicates, and how many there will be."
import bz2, gzip, lzma
import pandas as pd, pytest
from hybrid_nb.data.corpora import DataConfig, resolve_corpus
from hybrid_nb.data.documents import Documents, expected_documents
from helpers.preparing import documents, shuffled
from helpers.texts import shared, some_texts, write_jsonl

def test_wikitext_declaration_on_parquet_lines(tmp_path):
    def rows(name):   # as on the hub: a row is a line with its line break
        with open(shared(f"wikitext-2/{name}.txt")) as f: return [l if l.strip() else "" for l in f]
    for name, there in dict(train="test", validation="valid").items():
        pd.DataFrame(dict(text=rows(there))).to_parquet(tmp_path/f"{name}-0.parquet")
    def read(files, val_files): return documents(corpus="wikitext-2", files=files, val_files=val_files)
    parquet = read(str(tmp_path/"train*.parquet"), str(tmp_path/"validation*.parquet"))
    plain = read(shared("wikitext-2/test.txt"), shared("wikitext-2/valid.txt"))
    assert [(d["hash"], d["val"]) for d in parquet] == [(d["hash"], d["val"]) for d in plain] and len(plain) == 120

def test_cosmopedia_declaration_on_local_files(tmp_path):
    texts = [f"{i} " + "long "*2000 for i in range(300)]
    for k in range(2):
        part = dict(prompt="p", text=texts[k*150:(k+1)*150], token_length=1)
        pd.DataFrame(part).to_parquet(tmp_path/f"part{k}.parquet")
    found = Documents(resolve_corpus(DataConfig(corpus="cosmopedia-v2", files=str(tmp_path/"*.parquet"))))
    assert [d["text"] for d in found] == [t[:4000] for t in texts]
    assert found.counts["truncated"] == 300 and 20 < sum(d["val"] for d in found) < 70
    assert len(documents(corpus="cosmopedia-v2", files=str(tmp_path/"*.parquet"), max_documents=10)) == 10

def test_duplicates_never_straddle(tmp_path):
    texts = some_texts(300)
    copies = [t.replace(" ", "\n", 3) + "  " for t in texts]
    rows = shuffled(dict(text=t) for t in texts + copies)
    found = Documents(resolve_corpus(DataConfig(corpus=write_jsonl(tmp_path/"a.jsonl", rows), val_fraction=0.3)))
    words = [" ".join(d["text"].split()) for d in found]
    assert len(words) == len(set(words)) == 300 and found.counts["duplicates"] == 300
    # neither the order of rows nor the number of files changes a document's side
    side = {" ".join(d["text"].split()): d["val"] for d in found}
    for k in range(3): write_jsonl(tmp_path/f"b{k}.jsonl", rows[k::3])
    again = documents(corpus=str(tmp_path/"b*.jsonl"), val_fraction=0.3)
    assert {" ".join(d["text"].split()): d["val"] for d in again} == side

def expected(**kw): return expected_documents(resolve_corpus(DataConfig(**kw)))

@pytest.mark.parametrize("name, opener", [
    ("book.txt", open), ("book.txt.xz", lzma.open), ("book.txt.gz", gzip.open), ("book.txt.bz2", bz2.open)])
def test_expected_lines(tmp_path, name, opener):
    text = "\n\n".join(f"Paragraph {i} of a book. " + "It goes on. "*40 for i in range(30))
    with opener(tmp_path/name, "wt") as f: f.write(text)
    assert expected(corpus=str(tmp_path/name), text_unit="line") == text.count("\n")

def test_expected_documents(tmp_path):
    pd.DataFrame(dict(text=["one", "two"], other=[1, 2])).to_parquet(tmp_path/"t.parquet")
    for i in range(3): (tmp_path/f"note{i}.txt").write_text(f"Note {i}.\n\nMore.")
    tiny = write_jsonl(tmp_path/"tiny.jsonl", [dict(text=t) for t in ("It rained.", "It snowed.", "It hailed.")])
    (tmp_path/"book.txt").write_text("A book.\n\nOf two paragraphs.")
    assert expected(corpus=str(tmp_path/"t.parquet")) == 2 and expected(corpus=str(tmp_path/"note*.txt")) == 3
    assert expected() == 20_000 and expected(corpus=tiny, max_documents=2) == 2
    assert expected(corpus=str(tmp_path/"book.txt")) is None
