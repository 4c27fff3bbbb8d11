"Reading studies that are ambiguous or damaged."
import json, shutil, subprocess, sys
import pytest
from helpers.make_study import make_run, make_study
from hybrid_nb.study.tables import load_runs

def rename_run(study, name, theta):
    "A run of the pattern AAAAAAAA under another name, trained with another base of rotary positions."
    make_run(study, "AAAAAAAA", int(name[-1]) if name[-1].isdigit() else 3).rename(study/name)
    config = json.loads((study/name/"config.json").read_text())
    config["model"]["rope_theta"] = theta
    (study/name/"config.json").write_text(json.dumps(config))

@pytest.fixture
def groups(tmp_path):
    "The same pattern of two groups of recipes, and once more under a name of its own."
    for name, theta in (("base-alone_8L-s0", None), ("base-alone_8L-s1", None), ("base-mamba-alone_8L-s0", 1e4),
                        ("again", 1e4)):
        rename_run(tmp_path/"groups", name, theta)
    return tmp_path/"groups"

def test_runs_of_one_pattern_with_other_settings_are_no_seeds_of_it(groups):
    other = "AAAAAAAA (again, base-mamba-alone_8L)"
    assert load_runs(groups).pattern.tolist() == [other, *["AAAAAAAA (base-alone_8L)"]*2, other]

def test_names_are_cut_to_what_differs(groups):
    shutil.rmtree(groups/"again")
    assert load_runs(groups).pattern.unique().tolist() == ["AAAAAAAA (base)", "AAAAAAAA (base-mamba)"]

def test_names_differ_but_settings_do_not(groups):
    shutil.rmtree(groups/"again")
    shutil.rmtree(groups/"base-mamba-alone_8L-s0")
    (groups/"base-alone_8L-s1").rename(groups/"other")
    assert load_runs(groups).pattern.unique().tolist() == ["AAAAAAAA"]

@pytest.mark.parametrize("text, message", [
    ("{oops", "Expecting"), ("[]", "must be a JSON object"),
    ('{"pattern": "AMAMAMAM"}', "final_val_loss must be a number")])
def test_a_damaged_summary_is_named(text, message, tmp_path):
    study = make_study(tmp_path/"broken", seeds=1)
    (study/"AMAMAMAM-s0"/"summary.json").write_text(text)
    with pytest.warns(UserWarning) as seen:
        assert load_runs(study).set_index("name").status["AMAMAMAM-s0"] == "broken"
    assert len(seen) == 1 and f"AMAMAMAM-s0/summary.json: {message}" in str(seen[0].message)

def test_reading_a_study_does_not_load_torch(tmp_path):
    study = make_study(tmp_path/"s", seeds=1)
    code = (f"import sys; from hybrid_nb.study.tables import load_runs, study_settings\n"
            f"from hybrid_nb.study.summary import summary_table\nimport hybrid_nb.study.reports\n"
            f"summary_table(load_runs({str(study)!r})); print('torch' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
