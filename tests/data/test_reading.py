"Every document of the files is read as it is written there, or file and line are named, or it is skipped and counted."
import gzip, json, unicodedata
from dataclasses import replace
from functools import partial
from operator import itemgetter
import pandas as pd, pyarrow as pa, pyarrow.parquet as pq, pytest
from hybrid_nb.audit.contamination import search_streams
from hybrid_nb.data.corpora import corpora, Corpus, DataConfig, resolve_corpus
from hybrid_nb.data.dialogs import Dialogs
from hybrid_nb.data.documents import Documents
from helpers.preparing import documents, load
from helpers.texts import some_texts, write_jsonl


def texts(**kw): return [d["text"] for d in documents(**kw)]

def counts(**kw):
    found = Documents(resolve_corpus(DataConfig(**kw)))
    return [d["text"] for d in found], found.counts


@pytest.mark.parametrize("a, b", [
    (dict(), dict(source="x")), (dict(score=None), dict(score=.5)), (dict(score=1), dict(score="x")),
    (dict(tags=["a"]), dict(tags=dict(a=1))), (dict(when="2021-03-04"), dict(when=3)), (dict(n=2**70), dict(n=-1)),
    (dict(half="\ud83d"), dict(half=""))], ids=str)
def test_fields_that_are_not_used_do_not_matter(tmp_path, a, b):
    write_jsonl(tmp_path/"a.jsonl", [json.dumps(a | dict(text="The miller slept."))])
    write_jsonl(tmp_path/"b.jsonl", [b | dict(text="It rained."), dict(text="It snowed.")])
    assert texts(corpus=str(tmp_path/"*.jsonl")) == ["The miller slept.", "It rained.", "It snowed."]
    if {"half", "n"} & set(a): return # not in a table
    pd.DataFrame([a | dict(text="One.")]).to_parquet(tmp_path/"a.parquet")
    pd.DataFrame([dict(text="Two.", other=1)]).to_parquet(tmp_path/"b.parquet")
    assert texts(corpus=str(tmp_path/"*.parquet")) == ["One.", "Two."]


def test_what_looks_like_a_date_is_text(tmp_path):
    file = write_jsonl(tmp_path/"a.jsonl", [dict(date="2021-03-04", text="Rain."), dict(date="12:30:00", text="Sun.")])
    assert texts(corpus=file, text_field="{date}: {text}") == ["2021-03-04: Rain.", "12:30:00: Sun."]


def test_fields_of_some_rows_only(tmp_path):
    write_jsonl(tmp_path/"a.jsonl", [dict(text="One.")])
    write_jsonl(tmp_path/"b.jsonl", [dict(text="Two.", title="Second. "), dict(body="no text")])
    corpus = str(tmp_path/"*.jsonl")
    with pytest.raises(ValueError, match=r"b.jsonl, line 2: no field 'title' or 'text' \(fields present: body\)"):
        texts(corpus=corpus, text_field="{title}{text}")
    found, n = counts(corpus=corpus, text_field="{title}{text}", on_bad_line="skip")
    assert found == ["One.", "Second. Two."] and n["skipped"] == 1 and n["empty"] == 0 and n["read"] == 3
    with pytest.raises(ValueError, match="no field 'titel'"): texts(corpus=corpus, text_field="{titel}{text}")


@pytest.mark.parametrize("name", ["[2024] texts/a.jsonl", "[a]/[b].txt", "what?.jsonl", "a*b/c.parquet", "~.txt"])
def test_a_path_that_exists_is_that_file(tmp_path, monkeypatch, name):
    file = tmp_path/name
    file.parent.mkdir(exist_ok=True)
    if file.suffix == ".jsonl": write_jsonl(file, [dict(text="Here.")])
    elif file.suffix == ".txt": file.write_text("Here.")
    else: pd.DataFrame(dict(text=["Here."])).to_parquet(file)
    monkeypatch.chdir(tmp_path)
    for corpus in (str(file), name): assert texts(corpus=corpus) == ["Here."]
    assert texts(corpus=str(file.parent/f"*{file.suffix}")) == ["Here."] # a pattern in a folder that exists


def test_half_a_character_is_named(tmp_path):
    write_jsonl(tmp_path/"a.jsonl", [dict(text="fine")])
    (tmp_path/"b.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n{"text":"x \\ud83d"}\n{"text": "\\ud83d\\ude00"}\n')
    corpus = str(tmp_path/"*.jsonl")
    with pytest.raises(ValueError, match=r"b.jsonl, line 3: half a character \(\\ud83d\)"): texts(corpus=corpus)
    found, n = counts(corpus=corpus, on_bad_line="skip")
    assert found == ["fine", "a", "b", "\U0001f600"] and n["skipped"] == 1


@pytest.mark.parametrize("end", ["jsonl", "txt", "json"])
@pytest.mark.parametrize("on_bad_line", ["stop", "skip"])
def test_a_file_that_is_cut_is_named(tmp_path, end, on_bad_line):
    for k in range(3):
        rows = [dict(text=t) for t in some_texts(40, seed=k)]
        texts_of = "\n".join(r["text"] for r in rows)
        raw = dict(jsonl="\n".join(map(json.dumps, rows)), txt=texts_of, json=json.dumps(rows))
        packed = gzip.compress(raw[end].encode())
        (tmp_path/f"{k}.{end}.gz").write_bytes(packed[:len(packed) // 2] if k == 1 else packed)
    with pytest.raises(ValueError, match=f"corpus .*: .*1.{end}.gz: cut short"):
        texts(corpus=str(tmp_path/f"*.{end}.gz"), on_bad_line=on_bad_line)


def test_a_cut_parquet_file_is_named(tmp_path):
    for k in range(3): pd.DataFrame(dict(text=some_texts(40, seed=k))).to_parquet(tmp_path/f"{k}.parquet")
    whole = (tmp_path/"1.parquet").read_bytes()
    for cut in (whole[:-20], whole[:len(whole) // 2], b"", whole[:60] + bytes(60) + whole[120:]):
        (tmp_path/"1.parquet").write_bytes(cut)
        with pytest.raises(ValueError, match="1.parquet"): texts(corpus=str(tmp_path/"*.parquet"))


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path):
    for name, mark in {"a": "\ufeff", "b": ""}.items(): (tmp_path/f"{name}.txt").write_text(f"{mark}The miller slept.")
    found, n = counts(corpus=str(tmp_path/"*.txt"))
    assert found == ["The miller slept."] and n["duplicates"] == 1


def test_the_form_of_an_accent_does_not_matter(tmp_path):
    "One character or two: one document, for the split, for copies, and for the instruction of a dialog."
    words = ["déjà vu à la crémerie", "über Äpfel und Öl", "mañana señor", "naïve façade", "한국어", "ガラス"]
    rows = [dict(text=unicodedata.normalize(form, f"{w} {i}: {t}")) for form in ("NFC", "NFD")
            for i, (w, t) in enumerate(zip(words * 10, some_texts(60)))]
    found, n = counts(corpus=write_jsonl(tmp_path/"a.jsonl", rows))
    assert n["duplicates"] == 60 and found == [r["text"] for r in rows[:60]]
    found, _ = counts(corpus=write_jsonl(tmp_path/"b.jsonl", rows[60:]))
    assert found == [r["text"] for r in rows[60:]] # as it is written


def test_bad_lines_are_counted_through_the_cache(cfg, tmp_path, small_blocks):
    "With workers, in files that are added later, and mentioned once."
    good = [json.dumps(dict(text=t)) for t in some_texts(200)]
    lines = [x for i, g in enumerate(good) for x in ([g, '{"text": "cut'] if i % 50 == 7 else [g])]
    write_jsonl(tmp_path/"part0.jsonl", lines)
    c = replace(cfg, corpus=str(tmp_path/"part*.jsonl"), on_bad_line="skip")
    with pytest.warns(UserWarning, match="4 bad rows left out, the first: .*part0.jsonl, line 9: not valid JSON"):
        data = load(c, workers=2)
    assert data.stats()["skipped"] == 4 and data.stats()["read"] == 204 and data.stats()["documents"] == 200
    clean = load(replace(cfg, corpus=write_jsonl(tmp_path/"clean.jsonl", good)))
    assert data.train.tokens.tolist() == clean.train.tokens.tolist()


def test_bad_lines_of_text_files(tmp_path):
    (tmp_path/"a.txt").write_bytes(b"One.\n\nTwo.\n\ncaf\xe9\n\nThree.")
    for unit in "line", "paragraph", "passage":
        with pytest.raises(ValueError, match="a.txt, line 5: not valid UTF-8"):
            texts(corpus=str(tmp_path/"a.txt"), text_unit=unit)
        found, n = counts(corpus=str(tmp_path/"a.txt"), text_unit=unit, on_bad_line="skip")
        assert "".join(found).replace("\n", "") == "One.Two.Three." and n["skipped"] == 1


@pytest.mark.parametrize("dialog", [False, True])
def test_the_audit_knows_a_copy_in_another_form(tmp_path, dialog):
    "As if someone had split the corpus himself: the same words on both sides, with accents in two forms."
    words = [f"déjà vu à la crémerie {i}: {t}" for i, t in enumerate(some_texts(60))]
    def rows(form):
        texts_of = [unicodedata.normalize(form, w) for w in words]
        return [dict(instruction=t, response="oui") if dialog else dict(text=t) for t in texts_of]
    sides = []
    for form in "NFC", "NFD":
        file = write_jsonl(tmp_path/f"{form}.jsonl", rows(form))
        sides.append(load(DataConfig(corpus=file, dialog=dialog, val_fraction=.5, length=64, vocab_size=400,
                                     cache_dir=str(tmp_path/form))))
    a, b = sides
    assert sorted(a.train.records["hash"]) == sorted(b.train.records["hash"]) # the same split
    assert search_streams(a)["copies"] == 0
    a.val = b.train # has other tokens
    assert search_streams(a)["copies"] == a.train.n_documents


def test_columns_that_are_not_used_do_not_matter(tmp_path):
    "Nor does a cell that is no text stop more than its row."
    far = pa.array([2**50, 2**50, 2**50]).view(pa.timestamp("s")) # no date of Python
    raw = pa.array([b"fine", b"caf\xe9", b"good"]).cast(pa.large_binary()).view(pa.large_string()) # not UTF-8
    pq.write_table(pa.table(dict(text=["a", "b", "c"], far=far, raw=raw)), tmp_path/"a.parquet")
    pq.write_table(pa.table(dict(instruction=["a", "b", "c"], output=["x", "y", "z"], far=far)), tmp_path/"d.parquet")
    file = str(tmp_path/"a.parquet")
    assert texts(corpus=file) == ["a", "b", "c"]
    assert len(list(Dialogs(resolve_corpus(DataConfig(corpus=str(tmp_path/"d.parquet"), dialog=True))))) == 3
    for field, good in dict(raw=["fine", "good"], far=[]).items():
        with pytest.raises(ValueError, match="a.parquet, row "): texts(corpus=file, text_field=field)
        found, n = counts(corpus=file, text_field=field, on_bad_line="skip")
        assert found == good and n["skipped"] == 3 - len(good)


def test_a_file_without_the_field_says_what_it_has(tmp_path):
    pd.DataFrame(dict(text=["One."])).to_parquet(tmp_path/"a.parquet")
    pd.DataFrame(dict(body=["Two."], title=["x"])).to_parquet(tmp_path/"b.parquet")
    with pytest.raises(ValueError, match=r"b.parquet, row 1: no field 'text' \(fields present: body, title\)"):
        texts(corpus=str(tmp_path/"*.parquet"))


def test_messages_are_one_line_of_bounded_length(tmp_path):
    many = {f"field {i}\n": i for i in range(5000)}
    file = write_jsonl(tmp_path/"a.jsonl", [many | {"half \ud83d": 1} if 0 else many])
    with pytest.raises(ValueError) as e: texts(corpus=file)
    assert "\n" not in str(e.value) and len(str(e.value)) < 1000 and "and 4980 more" in str(e.value)


def test_functions_that_make_the_text_are_told_apart(cfg, tmp_path, monkeypatch):
    "By the values that they hold; one that cannot be told apart is refused."
    rows = [dict(a=t, b=t.upper()) for t in some_texts(60)]
    file = write_jsonl(tmp_path/"a.jsonl", rows)
    def make(k): return lambda row: row[k]
    def two(row, k): return row[k]
    found = []
    for text in make("a"), make("b"), partial(two, k="a"), partial(two, k="b"), itemgetter("a"), itemgetter("b"):
        monkeypatch.setitem(corpora, "own", Corpus("own", files=(file,), text=text))
        data = load(replace(cfg, corpus="own"))
        found.append(data.tokenizer.decode(data.train.tokens[1:40].tolist()))
    assert all(t.isupper() == (i % 2 == 1) for i, t in enumerate(found))
    class Odd:
        def __call__(self, row): return row["a"]
    monkeypatch.setitem(corpora, "own", Corpus("own", files=(file,), text=Odd()))
    with pytest.raises(ValueError, match="cannot be told from another function"): load(replace(cfg, corpus="own"))


@pytest.mark.parametrize("change, words", [
    (dict(files="a.parquet"), "files 'a.parquet': must be a tuple"),
    (dict(unit="lines"), "unit 'lines': must be one of"),
    (dict(on_bad_line="Stop"), "on_bad_line 'Stop': must be stop or skip")])
def test_bad_declarations(change, words):
    with pytest.raises(ValueError, match=f"corpus 'own': {words}"): Corpus("own", **change)


@pytest.mark.parametrize("change", [dict(text_field=""), dict(text_field="{}"), dict(text_field="{text"),
                                    dict(max_documents=2.5), dict(max_chars=2.5), dict(max_documents="3")], ids=str)
def test_bad_settings(change):
    with pytest.raises(ValueError, match=f"{next(iter(change))} .*must be"): DataConfig(**change)


def test_a_pattern_in_a_folder_with_odd_characters(tmp_path):
    (tmp_path/"[x] y"/"deep"/"er").mkdir(parents=True)
    (tmp_path/"[x] y"/"deep"/"er"/"a.txt").write_text("Here.")
    for pattern in "*/*/a.txt", "**/*.txt", "deep/e[r]/?.txt":
        assert texts(corpus=str(tmp_path/"[x] y"/pattern)) == ["Here."]


def test_json_lines_of_which_the_first_is_cut(tmp_path):
    (tmp_path/"a.json").write_text('{"text": "cut\n{"text": "b"}\n')
    found, n = counts(corpus=str(tmp_path/"a.json"), on_bad_line="skip")
    assert found == ["b"] and n["skipped"] == 1
