"The generated corpus is the same in every process, whatever the hash seed, the order and the share of the work."
import os, subprocess, sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from hybrid_nb.data.stories import documents, score, stories_fingerprint, story

SCRIPT = """
import hashlib
from hybrid_nb.data.stories import documents, stories_fingerprint
text = "".join(f"{d['text']}{d['bits']!r}{d['recall']}" for d in documents(40, seed=3, start=7, length=20))
print(stories_fingerprint(), hashlib.sha256(text.encode()).hexdigest())
"""


def test_same_in_every_process():
    "String hashing is randomised in each process; a set iterated anywhere in the grammar would show here."
    seen = set()
    for hash_seed in ("0", "1", "random"):
        env = dict(os.environ, PYTHONHASHSEED=hash_seed)
        run = subprocess.run([sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, check=True)
        seen.add(run.stdout)
    assert len(seen) == 1 and next(iter(seen)).split()[0] == stories_fingerprint()


def test_parts_make_the_whole():
    "Two processes that each make a part give what one gives alone."
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        parts = list(pool.map(_part, [(0, 15), (15, 25)]))
    assert parts[0] + parts[1] == list(documents(40, seed=11))


def _part(span): return list(documents(span[1], seed=11, start=span[0]))


def test_writer_state_does_not_leak():
    "A story is the same after other stories, with other options, were told in the same process."
    alone = story(2, 5)
    list(documents(5, seed=9, length=60, distance=0))
    score(story(4, 4)["text"])
    assert story(2, 5) == alone
