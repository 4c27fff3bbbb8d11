"Files of any kind against what was written into them: the same documents, or file and line of what is wrong."
import bz2, gzip, json, lzma, tempfile
from collections import namedtuple
from pathlib import Path
import pytest, zstandard
from hypothesis import given, HealthCheck, settings, strategies as st
from hybrid_nb.data.corpora import DataConfig, resolve_corpus
from hybrid_nb.data.documents import document_hash, read_documents

PACK = dict(plain=bytes, gz=gzip.compress, bz2=bz2.compress, xz=lzma.compress, zst=zstandard.compress)
Line = namedtuple("Line", "raw text") # bytes of a line without its end; the document, or None if it is bad

words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"), max_size=12)
odd = st.sampled_from(["\u2028", "\x85", "\x0b", "\ufeff", "e\u0301", "é", "<|endoftext|>", "2021-03-04", "12:30",
                       "null", "1e5", "\U0001f408\u200d\u2b1b", "{text}", '"', "\\", "\t"])
texts = st.lists(st.one_of(words, odd), max_size=4).map("".join)
values = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), texts,
                   st.lists(st.integers(), max_size=2), st.just(dict(a=1)),
                   st.just("\ud83d"))
others = st.dictionaries(st.sampled_from(["score", "source", "when", "tags"]), values, max_size=3)


separators = st.sampled_from([None, (",", ":"), ("\t, ", " : ")])

@st.composite
def json_lines(draw):
    bad = ["half", "no field", "list", "cut", "latin", "array"]
    kind = draw(st.sampled_from(["good"] * 12 + ["null", "number"] + bad))
    row = draw(others)
    how = dict(ensure_ascii=draw(st.booleans()) or "\ud83d" in row.values(), separators=draw(separators))
    def dump(x): return Line(json.dumps(row | x, **how).encode(), str(x["text"]))
    if kind == "good": return dump(dict(text=draw(texts)))
    if kind == "null": return dump(dict(text=None))._replace(text="")
    if kind == "number": return dump(dict(text=draw(st.one_of(st.integers(-10**20, 10**20), st.booleans()))))
    if kind == "no field": return Line(json.dumps(row).encode(), None)
    return Line({"half": b'{"text": "x \\ud83d"}', "list": b'{"text": ["a"]}', "cut": b'{"text": "a',
                 "latin": b'{"text": "caf\xe9"}', "array": b'[{"text": "a"}]'}[kind], None)

@st.composite
def text_lines(draw):
    if draw(st.integers(0, 9)) == 0:
        return Line(draw(st.sampled_from([b"caf\xe9", b"\xed\xa0\xbd", b"\xf0\x9f"])) + b" x", None)
    text = draw(texts)
    return Line(text.encode(), text)

@st.composite
def files(draw):
    kind = draw(st.sampled_from(["jsonl", "txt"]))
    out = []
    for _ in range(draw(st.integers(1, 3))):
        lines = draw(st.lists(json_lines() if kind == "jsonl" else text_lines(), max_size=5))
        end = draw(st.sampled_from([b"\n", b"\r\n", b"\r"]))
        out.append(dict(lines=lines, pack=draw(st.sampled_from(list(PACK))), mark=draw(st.booleans()), end=end,
                        last=draw(st.booleans()), blank=draw(st.booleans()) and kind == "jsonl",
                        cut=draw(st.sampled_from([None] * 9 + [.3, .6, .95]))))
    return kind, out


def write(folder, kind, made):
    "The files, and what is in them: (document, place or None) for each line; the name of the first that is cut."
    found, cut = [], None
    for k, f in enumerate(made):
        between = f["end"] * (2 if f["blank"] else 1)
        raw = between.join(line.raw for line in f["lines"]) + (f["end"] if f["last"] and f["lines"] else b"")
        if f["mark"] or raw.startswith(b"\xef\xbb\xbf"): raw = b"\xef\xbb\xbf" + raw # or a text would lose its first
        name = folder/(f"{k}.{kind}" + ("" if f["pack"] == "plain" else "." + f["pack"]))
        packed = PACK[f["pack"]](raw)
        if f["cut"] and f["pack"] != "plain" and cut is None:
            packed, cut = packed[:int(len(packed) * f["cut"])], name
        name.write_bytes(packed)
        step = len(between) // len(f["end"])
        lines = [(line.text, f"{name}, line {1 + i * step}") for i, line in enumerate(f["lines"])]
        # a last line that is empty is none
        if kind == "txt" and lines and not f["last"] and not f["lines"][-1].raw: lines.pop()
        if cut != name and (cut is None): found += lines
    return found, cut


def check(case):
    kind, made = case
    with tempfile.TemporaryDirectory() as folder:
        want, cut = write(Path(folder), kind, made)
        unit = dict(text_unit="line") if kind == "txt" else {}
        def read(on_bad_line):
            c = resolve_corpus(DataConfig(corpus=f"{folder}/*.{kind}*", on_bad_line=on_bad_line, **unit))
            return list(read_documents(c))
        good, bad = [t for t, _ in want if t is not None], [p for t, p in want if t is None]
        try: found = read("stop")
        except ValueError as e:
            if not bad and not cut and kind == "jsonl" and "no field 'text' (fields present" in str(e):
                return # no row has the field
            assert bad and bad[0] in str(e) or cut and str(cut) in str(e) or "no field 'text'" in str(e)
        else:
            assert not cut and not bad and [d["text"] for d in found] == good
            assert all(document_hash(d["text"]) for d in found)
        try: found = read("skip")
        except ValueError as e: assert cut and str(cut) in str(e) or "no field 'text'" in str(e) and not good
        else:
            assert not cut and [d["text"] for d in found if "bad" not in d] == good
            assert [d["where"] for d in found if "bad" in d] == bad


@pytest.mark.parametrize("cases", [200, pytest.param(10_000, marks=pytest.mark.more)])
def test_documents_are_what_was_written(cases):
    quiet = dict(deadline=None, derandomize=cases < 1000, suppress_health_check=list(HealthCheck))
    settings(max_examples=cases, **quiet)(given(files())(check))()
