"Texts for tests of data: random words, .jsonl files, the shared corpora, and what a folder of the cache holds."
import json, random
from pathlib import Path
import pytest

SHARED = Path(__file__).parents[3]/"shared"/"data"

def shared(name: str) -> str:
    "The path of a shared file; the test that asks for it is skipped where it is absent."
    if not (SHARED/name).exists(): pytest.skip(f"{SHARED/name} is not there")
    return str(SHARED/name)

def write_jsonl(path, rows) -> str:
    "Write objects (or, as they are, strings) a line each."
    lines = (r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in rows)
    Path(path).write_text("".join(l + "\n" for l in lines), encoding="utf-8")
    return str(path)

def some_texts(n=200, words=60, seed=0) -> list:
    "Texts of random words from a vocabulary of 300."
    r = random.Random(seed)
    vocabulary = ["".join(r.choices("abcdefghij", k=r.randint(2, 7))) for _ in range(300)]
    return [" ".join(r.choices(vocabulary, k=words)) for _ in range(n)]

def contents(folder) -> dict:
    "The bytes of each file in a folder, by name."
    return {f.name: f.read_bytes() for f in Path(folder).iterdir()}
