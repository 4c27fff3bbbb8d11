"The 5-gram beside one made of dictionaries; a model that is better on validation windows; references of a text."
import json, math
from collections import Counter
from pathlib import Path
import numpy as np, pytest, torch
from hybrid_nb.audit.sanity import audit_result, cached_references, check_train_and_validation, ngram_loss
from hybrid_nb.core.files import read_json
from hybrid_nb.core.runs import BETTER_THAN_5GRAM
from hybrid_nb.data.corpora import DataConfig
from hybrid_nb.data.loading import load_data
from hybrid_nb.models.config import HybridConfig
from hybrid_nb.models.modeling import HybridForCausalLM

SETTINGS = dict(steps=100, eval_every=10, patience=2, seed=0)
SUMMARY = dict(stopped_early=False, steps=100, planned_steps=100, best_step=90, val_accuracy=.1, epochs=1.)
TEXT = Path(__file__).parents[3]/"shared/data/wikitext-2/valid.txt"


@pytest.fixture(scope="module")
def cache(tmp_path_factory): return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def data(cache):
    return load_data(DataConfig(max_documents=100, length=64, vocab_size=300, cache_dir=cache), progress=False)


def naive_loss(train, val, vocab_size, order):
    "Interpolated Kneser-Ney by dictionaries."
    runs = {order: Counter(tuple(train[i:i+order]) for i in range(len(train) - order + 1))}
    for k in range(order - 1, 0, -1): runs[k] = Counter(r[1:] for r in runs[k + 1])
    def discount_of(counts):
        once, twice = (sum(v == n for v in counts.values()) for n in (1, 2))
        return once / max(once + 2*twice, 1)
    discounts = {k: discount_of(c) for k, c in runs.items()}
    totals, kinds = {k: Counter() for k in runs}, {k: Counter() for k in runs}
    for k, c in runs.items():
        for r, v in c.items():
            totals[k][r[:-1]] += v
            kinds[k][r[:-1]] += 1
    def p(k, r):
        if k == 0: return 1 / vocab_size
        low, c = p(k - 1, r[1:]), r[:-1]
        if not totals[k][c]: return low
        return (max(runs[k][r] - discounts[k], 0) + discounts[k] * kinds[k][c] * low) / totals[k][c]
    return -np.mean([math.log(p(order, tuple(val[i:i+order]))) for i in range(len(val) - order + 1)])


@pytest.mark.parametrize("order", [1, 2, 4])
def test_ngrams_by_hashes_are_those_by_dictionaries(order):
    rng = np.random.default_rng(0)
    rule, text = rng.integers(20, size=(20, 20)), [1, 2]
    for _ in range(2_300): text.append(int(rule[text[-2], text[-1]]) if rng.random() < .9 else int(rng.integers(20)))
    train, val = text[:2000], text[2000:]
    want = naive_loss(train, val, 20, order)
    assert abs(ngram_loss(np.array(train), np.array(val), 20, order) - want) < 1e-9


class Flat:
    "A model whose loss is what `easy` says of each window."
    def __init__(self, easy): self.easy, self.w, self.training = easy, torch.zeros(1), True
    def eval(self): self.training = False
    def parameters(self): return iter([self.w])

    def __call__(self, input_ids, use_cache):
        correct = torch.nn.functional.one_hot(input_ids.roll(-1, 1), 300).float()
        class Out: logits = correct * self.easy(input_ids)[:, None, None]
        return Out


def test_better_on_validation_windows(data):
    held = {tuple(w) for w in data.val_batch(0, data.n_val_windows)[0].tolist()}
    def is_held(x): return torch.tensor([float(tuple(r) in held) for r in x.tolist()])
    def wobble(x): return x.float().mean(1) % 1
    def verdict(easy): return check_train_and_validation(Flat(easy), data)[0]
    assert verdict(lambda x: 2 + 2*is_held(x) + wobble(x)) == "fail"
    assert verdict(lambda x: 2 - is_held(x) + wobble(x)) == "pass"
    assert verdict(lambda x: 2 + wobble(x)) == "pass"


def test_a_finished_run_on_generated_text(data):
    torch.manual_seed(0)
    model = HybridForCausalLM(HybridConfig(pattern="AM", vocab_size=300, hidden_size=32, num_attention_heads=4))
    summary = SUMMARY | dict(final_val_loss=5.7, bits_per_byte=2.5, floor_bits_per_byte=data.floor_bits_per_byte)
    found = {f.check: f.verdict for f in audit_result(summary, SETTINGS, data, model)}
    assert found.pop(BETTER_THAN_5GRAM) == "warn" and set(found.values()) == {"pass"}
    learned = summary | dict(final_val_loss=cached_references(data)["ngram_nats"] - .1)
    assert {f.verdict for f in audit_result(learned, SETTINGS, data, model)} == {"pass"}


def test_a_run_that_starts_from_a_checkpoint_has_seen_other_text(data):
    summary = SUMMARY | dict(final_val_loss=.02, bits_per_byte=.01)
    for start, verdict in ("runs/a", "not checked"), (None, "fail"):
        assert audit_result(summary, SETTINGS | dict(init_from=start))[0].verdict == verdict


@pytest.mark.skipif(not TEXT.exists(), reason="wikitext-2 is not here")
def test_references_of_a_text(cache):
    text = load_data(DataConfig(str(TEXT), length=64, cache_dir=cache), progress=False)
    ref = cached_references(text)
    assert ref == read_json(text.folder/"reference.json")
    assert 3.5 < ref["ngram_nats"] < 6 and 1.8 < ref["xz_bits_per_byte"] < 3.5, ref
    (text.folder/"reference.json").write_text(json.dumps(ref | dict(ngram_nats=99.)))
    assert cached_references(text)["ngram_nats"] == 99.
    summary = SUMMARY | dict(final_val_loss=.02, bits_per_byte=.01, floor_bits_per_byte=None)
    assert audit_result(summary, SETTINGS, text)[0].verdict == "fail"
