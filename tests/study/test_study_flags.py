"What a report says of copies, odd seeds, runs that went astray and few documents."
import json, re, shutil
import numpy as np
import pytest
from helpers.make_study import make_run, make_study, make_windows
from hybrid_nb.study.comparison import comparison_record
from hybrid_nb.study.compute import add_flops
from hybrid_nb.study.findings import caveats, report_card
from hybrid_nb.study.summary import summary_table
from hybrid_nb.study.tables import load_runs


@pytest.fixture
def study(tmp_path): return make_study(tmp_path/"study")


def said(study):
    runs = add_flops(load_runs(study))
    table = summary_table(runs)
    return table, report_card(runs, table), " ".join(caveats(runs, table))


def set_summary(run, **values):
    path = run/"summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def set_loss(run, loss, **kw):
    "Another final loss, in the summary and in the sums by window."
    set_summary(run, final_val_loss=loss, final_val_perplexity=float(np.exp(loss)))
    make_windows(run, run.name[:8], loss, **kw)


def test_nothing_to_say_of_a_sound_study(study):
    table, card, text = said(study)
    assert not any(w in text for w in ("have between", "Seeds are not", "counted once", "same loss"))
    assert table.attrs["without"] == ([], [], None) and "ended far" not in card["verdict"]


def test_a_copied_run_is_one_run(study):
    shutil.copytree(study/"MMMMMMMM-s1", study/"MMMMMMMM-s1-copy")
    table, card, text = said(study)
    assert ("`MMMMMMMM-s1-copy` has the pattern, the settings and the seed of `MMMMMMMM-s1`: one run, counted "
            "once.") in text
    assert table.seeds.tolist() == [2]*6 and "12 finished runs" in card["evidence"]


def test_a_copied_run_with_other_settings_is_another(study):
    copy = study/"MMMMMMMM-s1-wide"
    shutil.copytree(study/"MMMMMMMM-s1", copy)
    config = json.loads((copy/"config.json").read_text())
    config["model"]["hidden_size"] = 128
    (copy/"config.json").write_text(json.dumps(config))
    runs = load_runs(study)
    assert len(runs) == 13 and runs.name.is_unique and runs.attrs["copies"] == []
    assert "MMMMMMMM (MMMMMMMM-s1-wide)" in set(runs.pattern)


def test_seeds_that_are_missing_or_chosen(study):
    shutil.rmtree(study/"GGGGGGGG-s0")
    shutil.rmtree(study/"AAAAAAAA-s1")
    make_run(study, "AAAAAAAA", 5)
    table, card, text = said(study)
    assert "Seeds are not 0, 1, …** (`AAAAAAAA`: 0, 5; `GGGGGGGG`: 1)" in text and "between 1 and 2 seeds" in text
    assert "`GGGGGGGG` has one seed beside patterns with several" in text
    c = table.attrs["comparison"]
    assert not c.pairs[(c.pairs.better == "GGGGGGGG") | (c.pairs.worse == "GGGGGGGG")].different.any()


def test_unequal_seeds(study):
    make_run(study, "MMMMMMMM", 2)
    text = said(study)[2]
    assert "between 2 and 3 seeds. If runs were left out by their result, intervals do not hold." in text


def test_two_seeds_with_the_same_loss(study):
    loss = json.loads((study/"AAAAAAAA-s0"/"summary.json").read_text())["final_val_loss"]
    set_loss(study/"AAAAAAAA-s1", loss)
    assert "Two seeds of a pattern end at exactly the same loss" in said(study)[2]


def test_a_run_that_diverged_is_named_with_both_results(tmp_path):
    study = make_study(tmp_path/"study", seeds=3)
    set_loss(study/"MMMMMMMM-s2", 9.)
    table, card, _ = said(study)
    assert "`MMMMMMMM-s2` (9.0000) ended far from the other seeds of its pattern." in card["verdict"]
    found = re.search("With it 0 of 15 pairs differ, without it (\\d+) of 15", card["verdict"])
    assert found and int(found[1]) >= 10, card["verdict"]


def test_few_documents_are_refused_in_a_line(study):
    for run in study.iterdir():
        loss = json.loads((run/"summary.json").read_text())["final_val_loss"]
        make_windows(run, run.name[:8], loss, documents=7)
    table, card, _ = said(study)
    assert card["verdict"].startswith("**Open.** 7 validation documents: a comparison needs at least 10 independent "
                                      "documents.")
    assert not table.attrs["comparison"].pairs.different.any() and table.attrs["comparison"].basis == "nothing"


def test_sources_of_documents_are_groups(study):
    for run in study.iterdir():
        with np.load(run/"val_windows.npz") as z: parts = dict(z)
        np.savez(run/"val_windows.npz", **parts, source=parts["document"] // 2 + 1)
    c = said(study)[0].attrs["comparison"]
    assert (c.groups, c.grouped) == (20, "source")
    for run in study.iterdir():
        with np.load(run/"val_windows.npz") as z: parts = dict(z)
        np.savez(run/"val_windows.npz", **parts | dict(source=parts["document"] // 8 + 1))
    assert said(study)[1]["verdict"].startswith("**Open.** 40 validation documents from 5 sources: a comparison needs")


def test_two_studies_on_other_documents(study, tmp_path):
    other = make_study(tmp_path/"other", loss=2.35)
    record = comparison_record(load_runs(study), load_runs(other), "Two")
    assert record["basis"] == "seeds and documents"
    for run in other.iterdir(): set_loss(run, 2.36, documents=41)
    with pytest.raises(ValueError, match=r"evaluated on different validation documents \(40 and 41\)"):
        comparison_record(load_runs(study), load_runs(other), "Two")
    for run in other.iterdir(): set_summary(run, final_val_loss=2.)
    with pytest.raises(ValueError, match=r"no pattern in common .* \(12 runs are broken"):
        comparison_record(load_runs(study), load_runs(other), "Two")
