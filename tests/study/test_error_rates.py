"How often intervals fail, in a few rows of the page on error rates, with fixed seeds."
import numpy as np
import pytest
from hybrid_nb.study.error_rates import departures, error_rate, simulated_study, two_study_rate
from hybrid_nb.study.stats import compare_patterns, outlying_runs

ROWS = [("none", 4, 3, .08), ("one pattern: 10 × the deviation", 6, 2, .11),
        ("one pattern: 10 × the variance", 12, 3, .09), ("heavy tails: t with 3 degrees of freedom", 6, 2, .05),
        ("12 books, known", 4, 4, .09), ("neighbours correlate by 0.44, not known", 4, 4, .09),
        ("10 documents", 6, 4, .10)]


@pytest.mark.parametrize("name, patterns, seeds, most", ROWS)
def test_false_differences_are_rare(name, patterns, seeds, most):
    assert error_rate(patterns, seeds, 300, **departures[name])["false"] <= most


def test_the_bound_would_be_passed_without_the_second_test():
    "Taking all patterns to scatter alike claims false differences in a fifth of such studies: the test above can fail."
    rng, false = np.random.default_rng(0), 0
    for k in range(150):
        names, nats, tokens, book = simulated_study(rng, 6, 2, scale=10.)
        c = compare_patterns(names, nats=nats, tokens=tokens, sources=book, draws=300, seed=k, alike=True)
        false += bool(c.pairs.different.any())
    assert false / 150 >= .18


def test_documents_taken_one_by_one_are_found_out():
    "Twelve books whose parts are taken as independent give false differences in most studies."
    rng, false = np.random.default_rng(0), 0
    for k in range(100):
        names, nats, tokens, _ = simulated_study(rng, 4, 4, documents=240, books=12, sd_seed=.002)
        c = compare_patterns(names, nats=nats, tokens=tokens, sources=range(240), draws=300, seed=k)
        false += bool(c.pairs.different.any())
    assert false > 40 and error_rate(4, 4, 150, documents=240, books=12, sd_seed=.002)["false"] < .11


def test_a_true_difference_is_found():
    rng = np.random.default_rng(0)
    names, nats, tokens, book = simulated_study(rng, 4, 3)
    nats = nats + np.where(np.array(names) == 3, .3, 0)[:, None] * tokens
    c = compare_patterns(names, nats=nats, tokens=tokens, sources=book)
    assert all(c.pair(p, 3).different for p in range(3)) and c.patterns[-1] == 3
    low, high = c.pair(0, 3)[["low", "high"]]
    assert low < .3 < high


def test_few_documents_are_refused():
    found = error_rate(4, 3, 10, **departures["9 documents"])
    assert found == dict(false=0, refused=1, width=None)


def test_one_run_that_diverged_hides_all_and_is_left_out():
    rng = np.random.default_rng(1)
    names, nats, tokens, book = simulated_study(rng, 4, 3, astray=2.)
    nats = nats + np.where(np.array(names) == 3, .5, 0)[:, None] * tokens
    assert outlying_runs(names, nats.sum(1) / tokens.sum()) == [0]
    with_it = compare_patterns(names, nats=nats, tokens=tokens, sources=book)
    without = compare_patterns(names[1:], nats=nats[1:], tokens=tokens, sources=book)
    assert not with_it.pairs.different.any() and without.pair(1, 3).different and without.pair(2, 3).different


def test_two_studies():
    assert two_study_rate(3, 2, 2, 150, scale=10.) < .11
    assert two_study_rate(3, 3, 1, 40, scale=10.) == 0 # one seed on one side claims nothing
