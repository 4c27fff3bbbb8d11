"Windows that follow their documents: each once an epoch, in order, and every validation target once."
import numpy as np, pytest
from hybrid_nb.data.corpora import DataConfig
from helpers.preparing import load

B = 4 # rows

@pytest.fixture(scope="module")
def line(tmp_path_factory):
    return load(DataConfig(max_documents=400, vocab_size=1024, length=64, stateful=True,
                           cache_dir=str(tmp_path_factory.mktemp("cache"))))

def test_order(line):
    S = line.n_train_windows // B
    seen = np.array([line.batch_windows(0, s, B) for s in range(2*S)])
    on = np.array([line.goes_on(0, s, B) for s in range(2*S)])
    for e in range(2): # no window twice, all but the rest
        assert len(set(seen[e*S:(e+1)*S].flat)) == B*S > line.n_train_windows - B
    assert (seen[:S] != seen[S:]).any()
    document = line.windows.document(seen)
    follows = (seen[1:] == seen[:-1] + 1) & (document[1:] == document[:-1])   # the next window of the same document
    new_epoch = (np.arange(1, 2*S) == S)[:, None]
    assert ((follows | new_epoch) == (on[1:] | new_epoch)).all()
    assert not on[0].any() and not on[S].any() and on.mean() > .5

@pytest.mark.parametrize("s", [0, 1, 7])
def test_rows_are_windows_of_documents(line, s):
    x, y = line.step_batch(0, s, B)
    assert (y != -100).sum() == line.targets(0, s, B) and (x[1:3] == line.step_batch(0, s, B, slice(1, 3))[0]).all()
    for i, x_, y_ in zip(line.batch_windows(0, s, B), x, y):
        t, d = line.window(i), int(line.windows.document(i))
        n = len(t) - 1
        assert (x_[:n] == t[:-1]).all() and (y_[:n] == t[1:]).all() and (y_[n:] == -100).all()
        whole = np.append(line.train.document(d), line.tokenizer.eos_token_id)
        k = i - line.windows.first[d]
        assert t[1:].tolist() == whole[k*64:k*64 + 64].tolist()
        assert int(t[0]) == (whole[k*64 - 1] if k else line.tokenizer.eos_token_id)

@pytest.mark.parametrize("rows, ranks", [(1, 1), (5, 1), (7, 3)])
def test_validation_reads_every_target_once(line, rows, ranks):
    "In order, however many rows and readers."
    documents, texts, now = line.val_documents(), [], []
    for r in range(ranks):
        for goes_on, x, y in line.val_reading(documents, rows, r, ranks):
            if goes_on: now = [now[k] for k in range(len(x))]
            else: now = [[] for _ in x]; texts += now
            for row, y_ in zip(now, y): row += y_[y_ != -100].tolist()
    eos = line.tokenizer.eos_token_id
    assert sorted(texts) == sorted(np.append(line.val.document(i), eos).tolist() for i in range(line.val.n_documents))
    assert sum(map(len, texts)) == line.val_targets

def test_a_share_of_the_validation_documents(line):
    some = line.val_documents(windows=10)
    assert 0 < len(some) < line.val.n_documents and 5 <= line.val_windows.counts[some].sum() <= 20
    assert len(line.val_documents(10**6)) == line.val.n_documents

def test_numbers_and_errors(line):
    stats = line.stats()
    assert stats["unique_tokens"] == len(line.train) - 1 and stats["train_windows"] == line.n_train_windows
    with pytest.raises(ValueError, match="batch_size 1000000: with stateful each row"): line.batch_windows(0, 0, 10**6)
    with pytest.raises(ValueError, match="take step_batch"): line.train_batch(0, 0, 4)

def test_shares_its_tokens_with_shuffled_windows(line):
    cfg = DataConfig(**vars(line.cfg) | dict(stateful=False, stride=.8))
    assert load(cfg).folder == line.folder
