"Data sets that are wrong in one way each, and the search that is remembered."
import json, lzma, random, re
from dataclasses import replace
import numpy as np, pytest, torch
import hybrid_nb.audit.contamination as module
from hybrid_nb.audit.contamination import (
    audit_data, cached_search, check_evaluation, check_unknown_tokens, check_window_overlap, disguised_copies,
    judge_search, search_streams, shared_passages, split_tokens)
from hybrid_nb.core.files import read_json
from hybrid_nb.data.corpora import DataConfig
from hybrid_nb.data.loading import load_data
from hybrid_nb.data.tokenizers import encode_text
from helpers.texts import shared, write_jsonl


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


def repeating(kind, times, part, first=0):
    class Repeats(kind):
        "In each of some steps a window, or a part of one, that is evaluated."
        def step_batch(self, seed, step, *args):
            x, y = super().step_batch(seed, step, *args)
            if first <= step < first + times:
                y = y.clone()
                y[0, :part] = self.val_batch(step - first, step - first + 1)[1][0, :part]
            return x, y
    return Repeats


@pytest.mark.parametrize("times, part, verdict", [(0, 0, "pass"), (3, 49, "pass"), (1, 128, "pass"), (3, 128, "fail")])
def test_training_windows_of_which_a_part_is_evaluated(data, times, part, verdict):
    "One window of 126 is less than 1% of what is evaluated, and runs of 49 are too short."
    found, evidence = check_window_overlap(variant(data, repeating(type(data), times, part)), batch_size=2)
    assert found == verdict and evidence.split("% of ")[0].endswith(f"{times * (part > 49) * 12800 / 16055:.2f}")


def test_windows_late_in_training(data):
    "Every window of a pass is looked at, not only those of the first steps."
    last = -(-data.n_train_windows // 2) - 4
    assert check_window_overlap(variant(data, repeating(type(data), 3, 128, first=last)), batch_size=2)[0] == "fail"


@pytest.mark.parametrize("length", [16, 128])
def test_all_that_is_evaluated_was_trained_on(data, length):
    "Four windows of many thousand tokens: a small part of training, and all that counts."
    class Few(type(data)):
        def __init__(self, *args):
            super().__init__(*args)
            self.n_val_windows = 512 // self.cfg.length
        def val_batch(self, a, b):
            w = np.stack([self.window(7 * i + 3).numpy() for i in range(a, b)])
            return torch.from_numpy(w[:, :-1]), torch.from_numpy(w[:, 1:])
    few = variant(load_data(replace(data.cfg, length=length), progress=False), Few)
    verdict, evidence = check_window_overlap(few)
    assert verdict == "fail" and "100.00% of 512 evaluated tokens are also in" in evidence




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
    assert verdicts(copied=.02) == verdicts(copies=1) == "pass fail" and verdicts(shared_50=.02) == "fail pass"
    assert verdicts(copied=.01, shared_50=.01, documents_13=.02) == "pass pass"
    for documents, want in (.01, "pass"), (.02, "fail"):
        assert judge_search(found | dict(shared_13=.05, documents_13=documents))[0].verdict == want
    assert [judge_search(found | dict(shared_13=.3), g)[0].verdict for g in (True, False)] == ["pass", "warn"]


def with_copies(data, disguise, every=5):
    "Every fifth validation document also lies in training, disguised."
    bad, ends = load_data(data.cfg, progress=False), list(data.train.records["end"])
    tokens = [np.asarray(data.train.tokens)]
    for i in range(0, data.val.n_documents, every):
        text = disguise(data.tokenizer.decode(data.val.document(i)))
        tokens.append(np.append(encode_text(data.tokenizer, text), data.tokenizer.eos_token_id))
        ends.append(ends[-1] + len(tokens[-1]))
    bad.train = Side(np.concatenate(tokens), ends)
    return bad


def test_copies_of_validation_documents_fail(data):
    found = search_streams(with_copies(data, str))
    assert [f.verdict for f in judge_search(found, True)] == ["fail", "fail"]


def one_word_in_five(text):
    rng, words = random.Random(text), text.split()
    return re.sub(r"\S+", lambda m: rng.choice(words) if rng.random() < .2 else m[0], text)

def no_punctuation(text): return re.sub(r"[^\w\s]", "", text)
def wrapped(text): return "\n".join(re.findall(r".{1,50}(?:\s|$)", " ".join(text.split())))
def other_order(text):
    sentences = re.split(r"(?<=[.!?])\s+", text)
    return " ".join(random.Random(text).sample(sentences, len(sentences)))

DISGUISES = dict(
    words=one_word_in_five, punctuation=no_punctuation, case=str.upper, wrapping=wrapped, order=other_order,
    everything=lambda text: wrapped(no_punctuation(one_word_in_five(text)).lower()),
    half=lambda text: text[len(text)//2:], within=lambda text: f"{'Nothing of it is said here. ' * 300}{text}")


@pytest.fixture(scope="module")
def novels(tmp_path_factory):
    "Three hundred documents of real books."
    books, folder = shared("books/small.jsonl.xz"), tmp_path_factory.mktemp("novels")
    with lzma.open(books, "rt") as f: rows = [json.loads(line) for line in f][::5]
    corpus = write_jsonl(folder/"novels.jsonl", rows)
    config = DataConfig(corpus=corpus, length=128, val_fraction=.2, cache_dir=str(folder/"cache"))
    return load_data(config, progress=False)


@pytest.mark.parametrize("corpus", ["data", "novels"])
@pytest.mark.parametrize("disguise", DISGUISES)
def test_disguised_copies(request, corpus, disguise):
    "Each of them is found, and nothing else."
    data = request.getfixturevalue(corpus)
    honest, bad = disguised_copies(data), disguised_copies(with_copies(data, DISGUISES[disguise]))
    copies = len(range(0, data.val.n_documents, 5)) / data.val.n_documents
    assert honest["copied"] == 0 and bad["copied"] == copies > .1
    assert bad["pair"][0] % 5 == 0 and bad["pair"][1] == data.train.n_documents + bad["pair"][0] // 5
    found = search_streams(data) | bad
    assert judge_search(found)[1].verdict == "fail" and judge_search(found | honest)[1].verdict == "pass"


@pytest.mark.parametrize("documents, seed", [(100, 3), (800, 1), (2000, 0)])
def test_honest_stories(data, documents, seed):
    config = replace(data.cfg, max_documents=documents, corpus_seed=seed)
    assert disguised_copies(load_data(config, progress=False))["copied"] == 0


def test_long_documents_are_read_in_parts(data, monkeypatch):
    monkeypatch.setattr(module, "TEXT_BLOCK", 200)
    bad = disguised_copies(with_copies(data, one_word_in_five))
    assert bad["copied"] == len(range(0, data.val.n_documents, 5)) / data.val.n_documents
    assert bad["pair"][1] == data.train.n_documents + bad["pair"][0] // 5


def test_part_of_the_training_text(data, monkeypatch):
    "With a limit, about so many tokens of it are read, in evenly spread blocks."
    monkeypatch.setattr(module, "TEXT_BLOCK", 1000)
    whole = module.DocumentTexts(*split_tokens(data.train), data.tokenizer)
    some = module.DocumentTexts(*split_tokens(data.train), data.tokenizer, limit=len(data.train) // 4)
    assert len(list(whole)) > 100 and abs(len(list(some)) - len(list(whole)) / 4) < 2
    assert whole.document[-1] == data.train.n_documents - 1 and some.document[-1] > .95 * data.train.n_documents


def test_copies_where_words_are_unknown(data):
    "Half of the words: longer runs and a higher limit; a copy with few changes is found."
    words = load_data(replace(data.cfg, tokenizer="word", vocab_size=100), progress=False)
    honest = disguised_copies(words)
    assert honest["copied"] == 0 and honest["above"] == .3 and honest["run"] > 8
    copies = len(range(0, data.val.n_documents, 5)) / data.val.n_documents
    assert disguised_copies(with_copies(words, str))["copied"] == copies


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
