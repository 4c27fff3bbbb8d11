"Data sets that are wrong in one way each, and the search that is remembered."
from dataclasses import replace
import numpy as np, pytest, torch
from hybrid_nb.audit.contamination import (
    audit_data, cached_search, check_evaluation, check_unknown_tokens, check_window_overlap, judge_search,
    search_streams, shared_passages, split_tokens)
from hybrid_nb.core.files import read_json
from hybrid_nb.data.corpora import DataConfig
from hybrid_nb.data.loading import load_data


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    cache = str(tmp_path_factory.mktemp("cache"))
    return load_data(DataConfig(max_documents=400, length=128, cache_dir=cache), progress=False)


@pytest.fixture(scope="module")
def chats(data):
    config = DataConfig(corpus="chat-demo", length=96, cache_dir=data.cfg.cache_dir)
    return load_data(config, progress=False)


def variant(data, make):
    "The same data as another class."
    return make(data.cfg, data.tokenizer, data.folder)


class Side:
    "One side of a split made by hand."
    def __init__(self, tokens, ends):
        self.tokens, self.records = np.asarray(tokens), np.array([(e,) for e in ends], [("end", "<i8")])

    def __len__(self): return len(self.tokens)


def test_short_windows_with_stride(data):
    assert check_window_overlap(load_data(replace(data.cfg, length=16, stride=.5), progress=False))[0] == "pass"


@pytest.mark.parametrize("times, part, verdict", [(0, 0, "pass"), (2, 72, "warn"), (3, 72, "fail"), (1, 128, "fail")])
def test_training_windows_of_which_a_part_is_evaluated(data, times, part, verdict):
    "In each of the first steps one; a passage in one or two of them may be a phrase."
    class Repeats(type(data)):
        def step_batch(self, seed, step, *args):
            x, y = super().step_batch(seed, step, *args)
            if step < times:
                y = y.clone()
                y[0, :part] = self.val_batch(step, step + 1)[1][0, :part]
            return x, y
    assert check_window_overlap(variant(data, Repeats), batch_size=2)[0] == verdict


def test_windows_that_the_evaluation_goes_through(data):
    n = data.n_val_windows
    assert check_evaluation(data)[0] == check_evaluation(data, [(0, 3), (3, n)])[0] == "pass"
    for windows in [(0, n//2)], [(0, n), (0, 1)], [(0, 2), (3, n)], []:
        assert check_evaluation(data, windows)[0] == "fail", windows


def half_of(kind):
    class Half(kind):
        "The validation set but for its second half."
        n_val_windows = property(lambda self: self.half // 2, lambda self, v: setattr(self, "half", v))
    return Half

def padded(kind):
    class Padded(kind):
        "Counts padding."
        def val_batch(self, a, b):
            x, y = super().val_batch(a, b)
            return x, torch.where(y == -100, 0, y)
    return Padded

def shifted(kind):
    class Shifted(kind):
        "Targets that are the inputs."
        def val_batch(self, a, b):
            x, y = super().val_batch(a, b)
            return x, torch.where(y == -100, -100, x)
    return Shifted

def short(kind):
    class Short(kind):
        "Training windows with a hole."
        def step_batch(self, *args):
            x, y = super().step_batch(*args)
            y = y.clone()
            y[:, 0] = -100
            return x, y
    return Short


@pytest.mark.parametrize("change, message", [
    (half_of, "part of the validation set is left out"),
    (padded, "something is counted more than once, or padding is"),
    (shifted, "the targets are not the validation text"), (short, "padding counts in training")])
def test_what_evaluation_counts(data, change, message):
    verdict, evidence = check_evaluation(variant(data, change(type(data))))
    assert (verdict, evidence.split(":")[0]) == ("fail", message)


def test_unknown_words(data):
    assert check_unknown_tokens(data)[0] == "pass"
    words = load_data(replace(data.cfg, tokenizer="word", vocab_size=100), progress=False)
    assert check_unknown_tokens(words)[0] == "warn" and shared_passages(words, 50)[0] < .01


def test_dialogs_are_judged_by_their_responses(chats):
    assert check_evaluation(chats)[0] == "pass" and check_window_overlap(chats)[0] in ("pass", "not checked")
    whole, begins, ends = split_tokens(chats.val)
    ids, response = chats.val[1][0], chats.val[1][1]
    assert np.array_equal(whole[begins[1]:ends[1]], ids[response:])
    assert audit_data(chats)[0].verdict == "pass"


def test_verdicts_on_a_search(data):
    found = search_streams(data)
    def verdicts(**change): return " ".join(f.verdict for f in judge_search(found | change, grammar=True))
    assert verdicts(near=.02) == verdicts(copies=1) == "pass fail" and verdicts(shared_50=.02) == "fail pass"
    assert verdicts(near=.01, shared_50=.01, documents_13=.02) == "pass pass"
    for documents, want in (.01, "pass"), (.02, "fail"):
        assert judge_search(found | dict(shared_13=.05, documents_13=documents))[0].verdict == want
    assert [judge_search(found | dict(shared_13=.3), g)[0].verdict for g in (True, False)] == ["pass", "warn"]


def test_copies_of_validation_documents_fail(data):
    bad, ends = load_data(data.cfg, progress=False), list(data.train.records["end"])
    tokens = [np.asarray(data.train.tokens)]
    for i in range(0, data.val.n_documents, 10):
        tokens.append(np.append(data.val.document(i), data.tokenizer.eos_token_id))
        ends.append(ends[-1] + len(tokens[-1]))
    bad.train = Side(np.concatenate(tokens), ends)
    assert [f.verdict for f in judge_search(search_streams(bad), True)] == ["fail", "fail"]


def test_the_search_is_remembered(data):
    "And made again where its file is damaged or gone; data that cannot be searched is not checked."
    path = data.folder/"audit.json"
    audit_data(data)
    assert cached_search(data) == read_json(path)
    path.write_text("{")
    assert {f.verdict for f in audit_data(data)} == {"pass"} and read_json(path)["copies"] == 0
    nothing = load_data(data.cfg, progress=False)
    nothing.train.records = None
    assert audit_data(nothing)[0].verdict == "pass" # remembered
    path.unlink()
    assert audit_data(nothing)[0].verdict == "not checked"
