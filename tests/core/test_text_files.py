"Every line of a file is read as it is written, or named; a file that is cut is never taken for a whole one."
import bz2, gzip, lzma
import pytest, zstandard
from hybrid_nb.core.text_files import byte_blocks, json_rows, text_pieces

PACK = dict(gz=gzip.compress, bz2=bz2.compress, xz=lzma.compress, zst=zstandard.compress)
TEXT = "".join(f'{{"text": "Line {i} is here."}}\n' for i in range(300)).encode()


@pytest.mark.parametrize("end", PACK)
def test_a_cut_file_is_named(tmp_path, end):
    "Wherever it is cut, also where nothing is left; several members may follow one another."
    whole, file = PACK[end](TEXT[:3000]) + PACK[end](TEXT[3000:]), tmp_path/f"rows.jsonl.{end}"
    file.write_bytes(whole)
    assert b"".join(byte_blocks(file)) == TEXT
    between = len(PACK[end](TEXT[:3000])) # a file that ends with a member is whole
    for n in [0, 1, 2, 5, 9, *range(10, len(whole), 7), len(whole) - 1]:
        file.write_bytes(whole[:n])
        if n == between: continue
        with pytest.raises(ValueError, match=f"rows.jsonl.{end}: (cut|damaged)"): list(byte_blocks(file))


@pytest.mark.parametrize("end", PACK)
def test_a_file_that_is_not_what_its_name_says(tmp_path, end):
    (tmp_path/f"a.txt.{end}").write_bytes(TEXT)
    with pytest.raises(ValueError, match=f"a.txt.{end}: damaged"): list(text_pieces(tmp_path/f"a.txt.{end}"))


def test_padding_after_the_last_member(tmp_path):
    (tmp_path/"a.gz").write_bytes(gzip.compress(TEXT) + bytes(512))
    assert b"".join(byte_blocks(tmp_path/"a.gz")) == TEXT


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_line_ends_and_byte_order_mark(tmp_path, newline, mark):
    lines = ["first", "", " second \u2028 goes on", "\x0b\x0c\x1c\x85", "last"]
    (tmp_path/"a.txt").write_bytes(mark + newline.join(lines).encode())
    assert [t for _, t in text_pieces(tmp_path/"a.txt")] == lines
    assert [t for _, t in text_pieces(tmp_path/"a.txt", "")] == ["\n".join(lines)]


@pytest.mark.parametrize("block", [1, 2, 3, 7])
def test_small_blocks(tmp_path, monkeypatch, block):
    "Characters, line ends and marks that lie across the border of two blocks."
    monkeypatch.setattr("hybrid_nb.core.text_files.BLOCK", block)
    (tmp_path/"a.txt").write_bytes("\ufeffé\r\n\r\n日本\n\n\nx".encode())
    assert [t for _, t in text_pieces(tmp_path/"a.txt")] == ["é", "", "日本", "", "", "x"]
    assert list(text_pieces(tmp_path/"a.txt", "\n\n")) == [(1, "é"), (3, "日本"), (5, "\nx")]


def test_bytes_that_are_no_text_are_found_in_their_line(tmp_path):
    (tmp_path/"a.jsonl").write_bytes(b'{"text": "a"}\n{"text": "caf\xe9"}\n{"text": "\xed\xa0\xbd"}\n{"text": "b"}')
    rows = list(json_rows(tmp_path/"a.jsonl"))
    assert [place.split(", ")[1] for place, row in rows if isinstance(row, ValueError)] == ["line 2", "line 3"]
    assert [row["text"] for _, row in rows if isinstance(row, dict)] == ["a", "b"]
    for encoding in "utf-16", "utf-32":
        (tmp_path/"b.txt").write_bytes("a\nb".encode(encoding))
        with pytest.raises(ValueError, match="b.txt: UTF-16 or"): list(text_pieces(tmp_path/"b.txt"))


@pytest.mark.parametrize("text, good, bad", [
    ('{"a": 1}\n\n  \n{"a": 2}', 2, []), ('\ufeff{"a": 1}\n\ufeff{"a": 2}\r\n', 2, []),
    ('[1]\n3\nnull\n{"a": 1}', 1, [1, 2, 3]),
    ('{"a": 1}{"a": 2}', 0, [1]), ('{"a": ' + "9"*5000 + '}', 0, [1]), ("["*100_000, 0, [1]), ('{"a": "\t"}', 0, [1])],
    ids=range(7))
def test_lines_of_json(tmp_path, text, good, bad):
    (tmp_path/"a.jsonl").write_text(text)
    rows = list(json_rows(tmp_path/"a.jsonl"))
    assert sum(isinstance(row, dict) for _, row in rows) == good
    assert [place for place, row in rows if not isinstance(row, dict)] == [f"{tmp_path}/a.jsonl, line {n}" for n in bad]
    for skip in range(len(rows) + 1):
        assert [p for p, _ in json_rows(tmp_path/"a.jsonl", skip)] == [p for p, _ in rows[skip:]]


@pytest.mark.parametrize("text, want", [
    ('[{"a": 1}, {"a": 2}]', 2), ('\n[\n{"a": 1}\n]\n', 1), ('{\n"a": 1\n}', 1), ('{"a": 1}\n{"a": 2}\n', 2),
    ("[]", 0), ("", 0)])
def test_a_json_file_in_each_form(tmp_path, text, want):
    (tmp_path/"a.json").write_text(text)
    assert [type(row) for _, row in json_rows(tmp_path/"a.json")] == [dict] * want
