"Batches: the same on any number of ranks, the stream in order, recall where the text says so."
from dataclasses import replace
import numpy as np, pytest, torch
from hybrid_nb.data.batches import character_windows
from hybrid_nb.data.corpora import DataConfig
from hybrid_nb.data.stories import read_story
from hybrid_nb.data.window_floor import forgotten_words
from helpers.preparing import documents, load

def test_ranks_and_accumulation_share_a_batch(cfg):
    data = load(replace(cfg, stride=0.7))
    for step in range(5):
        whole = data.train_batch(7, step, 12)
        ids = data.batch_windows(7, step, 12)
        for ranks in (1, 2, 4):
            parts = [torch.stack([data.window(i) for i in part]) for part in np.split(ids, ranks)]
            assert torch.equal(torch.cat(parts), whole)
    again = load(replace(cfg, stride=0.7)).train_batch(7, 3, 12)   # a fresh process has no state either
    assert torch.equal(again, data.train_batch(7, 3, 12))
    assert data.train_batch(7, 0, 3).dtype == torch.long and data.train_batch(7, 0, 3).shape == (3, 33)

@pytest.mark.parametrize("length", [1, 2, 31, 32, 1000, 4000])
def test_validation_targets_once(cfg, length):
    data = load(replace(cfg, length=length))
    x, y = data.val_batch(0, data.n_val_windows)
    assert x.shape == y.shape == (data.n_val_windows, length)
    assert y[y != -100].tolist() == data.val.tokens[1:].tolist()
    assert x[y != -100].tolist() == data.val.tokens[:-1].tolist()
    assert x.min() >= 0 and (y != -100).any(1).all()

@pytest.fixture(scope="module")
def stories(tmp_path_factory):
    "400 stories as data, and as documents of both sides."
    cache = str(tmp_path_factory.mktemp("cache"))
    cfg = DataConfig(max_documents=400, vocab_size=1024, length=64, stride=.8, cache_dir=cache)
    found = documents(max_documents=400)
    return load(cfg), [d for d in found if not d["val"]], [d for d in found if d["val"]]

def test_the_stream_is_the_documents(stories):
    data, kept, _ = stories
    assert data.train.n_documents == len(kept) and data.train.n_bytes == sum(len(d["text"].encode()) for d in kept)
    for i in (0, 1, len(kept) - 1): assert data.tokenizer.decode(data.train.document(i)) == kept[i]["text"]
    eos = data.tokenizer.eos_token_id
    assert data.train.tokens[0] == eos and (np.asarray(data.train.tokens) == eos).sum() == len(kept) + 1
    assert data.train.records["row"].tolist() == [d["row"] for d in kept]

def test_floor(stories):
    data, _, held = stories
    assert abs(data.floor_bits_per_byte - sum(d["bits"] for d in held) / sum(len(d["text"]) for d in held)) < 1e-9
    short = load(replace(data.cfg, max_chars=100))   # truncated documents have no known floor
    assert short.floor_bits_per_byte is None and short.stats()["truncated"] == 400

@pytest.mark.parametrize("length", [32, 200])
def test_floor_of_the_window(stories, length):
    "The recalls that it counts are those whose last mention, by the marks of the tokens, lies before the window."
    data, held = load(replace(stories[0].cfg, length=length)), stories[2]
    ends, forgotten, bits = [1, *data.val.records["end"].tolist()], [], 0.
    for begin, d in zip(ends, held):
        offsets = data.tokenizer(d["text"], return_offsets_mapping=True)["offset_mapping"]
        words = forgotten_words(read_story(d["text"]), character_windows(begin, offsets, length))
        forgotten.append({at for at, *_ in words})
        bits += sum(np.log2(n) for *_, n in words)
    assert abs(data.window_floor_bits_per_byte - data.floor_bits_per_byte - bits / data.val.n_bytes) < 1e-9
    counts = np.zeros((2, 2), int)
    for begin, d, places, marked in zip(ends, held, forgotten, data.recall_documents(len(held))):
        assert len(marked["spans"]) == len(d["recall"])
        for span, (first, _, distance) in zip(d["recall"], marked["spans"]):
            first += begin - 1 # in the stream
            window = (first - 1) // length * length # where that begins which predicts it
            counts[int(first - distance <= window), int(any(span["start"] <= p < span["end"] for p in places))] += 1
    assert counts.trace() > .95 * counts.sum(), counts
    assert counts[1, 1] > (.3 if length > 100 else .8) * counts.sum()

def test_floor_of_the_window_where_it_is_not_known(stories, cfg):
    whole = load(replace(stories[0].cfg, length=len(stories[0].val)))
    assert whole.window_floor_bits_per_byte == whole.floor_bits_per_byte
    assert load(replace(stories[0].cfg, max_chars=100)).window_floor_bits_per_byte is None
    followed = load(replace(stories[0].cfg, stride=1., stateful=True)) # its state knows what came before
    assert followed.window_floor_bits_per_byte == followed.floor_bits_per_byte < stories[0].window_floor_bits_per_byte

def test_recall_lies_inside_the_marks(stories):
    "All that is inside a token span is inside the marked characters, and its distance leads to the mention."
    data, _, held = stories
    n = 0
    def decode(ids): return data.tokenizer.decode(ids)
    for d, raw in zip(data.recall_documents(10), [d for d in held if d["recall"]]):
        for a, b, distance in d["spans"]:
            before, span = decode(d["input_ids"][1:a]), decode(d["input_ids"][a:b])
            begin, end = len(before) + len(span) - len(span.lstrip()), len(before) + len(span)
            assert any(r["start"] <= begin and end <= r["end"] for r in raw["recall"]), (before, span, raw)
            r = next(r for r in raw["recall"] if r["start"] <= begin < r["end"])
            upto = [len(decode(d["input_ids"][1:a - distance - k])) for k in (1, 0)]   # the token that ends the mention
            assert upto[0] < r["start"] - r["distance"] <= upto[1]
            n += 1
    assert n > 10
