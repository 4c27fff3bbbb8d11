"Plain text files as documents: the real WikiText files, and every unit on a small book."
from helpers.preparing import documents
from helpers.texts import shared
import pytest

@pytest.mark.parametrize("name", ["valid", "test"])
def test_wikitext_articles(name):
    found = documents(corpus=shared(f"wikitext-2/{name}.txt"))
    assert len(found) == 60   # as published
    assert all(d["text"].lstrip().startswith("= ") for d in found)
    lines = sum(d["text"].split("\n") != [""] and len([l for l in d["text"].split("\n") if l.strip()]) for d in found)
    with open(shared(f"wikitext-2/{name}.txt")) as f: assert lines == sum(bool(l.strip()) for l in f)

TEXT = "\n\n".join(f"Paragraph {i} of a book. " + "It goes on. "*40 for i in range(30))

def texts(**kw): return [d["text"] for d in documents(**kw)]

def test_passages_of_a_book(tmp_path):
    (tmp_path/"book.txt").write_text(TEXT)
    book = texts(corpus=str(tmp_path/"book.txt"))
    assert "\n\n".join(book) == TEXT and all(len(p) <= 4000 for p in book)

def test_units_of_a_book(tmp_path):
    (tmp_path/"book.txt").write_text(TEXT)
    assert texts(corpus=str(tmp_path/"book.txt"), text_unit="file") == [TEXT]
    assert len(texts(corpus=str(tmp_path/"book.txt"), text_unit="paragraph")) == 30

def test_a_document_a_file(tmp_path):
    for i in range(3): (tmp_path/f"note{i}.txt").write_text(f"Note {i}.\n\nMore.")
    assert texts(corpus=str(tmp_path/"note*.txt")) == [f"Note {i}.\n\nMore." for i in range(3)]

def test_articles_without_the_blank_beginning(tmp_path):
    wiki = ("\n = Du Fu = \n\n Du Fu was a poet .\n\n = = Life = = \n\n He moved .\n = 1 and C = \n so\n\n"
            " = Kiss You = \n\n A song .")
    (tmp_path/"wiki.txt").write_text(wiki)
    assert len(texts(corpus=str(tmp_path/"wiki.txt"))) == 2   # the blank piece before the first title is dropped
