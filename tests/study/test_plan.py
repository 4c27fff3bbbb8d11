"Plans of sweeps: what is refused before anything starts, and models of one size."
import json
import nbformat as nbf, pytest
from hybrid_nb.models.modeling import count_parameters
from hybrid_nb.study.arguments import template_path
from hybrid_nb.study.plan import equal_width, parameters_cell, plan_sweep
from hybrid_nb.training.recipes import recipe_group
from hybrid_nb.training.settings import settings_of

@pytest.mark.parametrize("wrong, message", [
    (dict(patterns="AMx"), "unknown block 'x'"), (dict(steps=0), "steps 0"), (dict(stepz=3), "did you mean 'steps'"),
    (dict(num_attention_heads=7), "num_attention_heads 7"), (dict(study="../x"), "must do as the name of a folder"),
    (dict(study=".."), "folder"), (dict(study="", patterns=None), "study '': must do as the name of a folder"),
    (dict(seed=3), "use seeds"), (dict(patterns=""), "name the patterns"), (dict(plugins="no.py"), "no such file")])
def test_what_is_refused(wrong, message, tmp_path):
    with pytest.raises(ValueError) as e: plan_sweep(**dict(study="demo", patterns="AM", seeds=1, runs=tmp_path) | wrong)
    assert message in str(e.value)

def test_a_folder_that_holds_a_run_with_other_settings(tmp_path):
    run = tmp_path/"demo"/"AM-s0"
    run.mkdir(parents=True)
    config = plan_sweep("demo", "AM", 1, runs=tmp_path)[0]["config"]
    parts = {k: settings_of(x) for k, x in zip(("model", "data", "train"), config)}
    (run/"config.json").write_text(json.dumps(parts))
    plan_sweep("demo", "AM", 1, runs=tmp_path)
    with pytest.raises(ValueError) as e: plan_sweep("demo", "AM", 1, runs=tmp_path, learning_rate=.1)
    assert "learning_rate 0.0004 there, 0.1 now (delete that folder, or take another study)" in str(e.value)
    with pytest.raises(ValueError, match="steps 10000 there, 20000 now .*; hybrid_train --extend trains a run"):
        plan_sweep("demo", "AM", 1, runs=tmp_path, steps=20_000)

def test_labels_of_recipes_of_several_groups(tmp_path):
    recipes = recipe_group("base") + recipe_group("base/structured") + recipe_group("base-mamba")
    names = [r["name"] for r in plan_sweep("demo", None, 1, runs=tmp_path, recipes=recipes)]
    assert (len(names), len(set(names)), names[0]) == (24, 24, "base-baseline_attention_8L-s0")

sizes = dict(corpus="stories", max_documents=200, vocab_size=300, num_attention_heads=4, ssd_head_dim=16,
             equal_parameters=1_000_000)

@pytest.fixture(scope="module")
def cached(tmp_path_factory): return sizes | dict(cache_dir=str(tmp_path_factory.mktemp("cache")))

def parameters(run):
    run["config"][0].vocab_size = 300 # as the trainer sets it
    return count_parameters(run["config"][0])

@pytest.fixture(scope="module")
def sized(cached, tmp_path_factory):
    return plan_sweep("sized", "AAAAAAAA MMMMMMMM MAMAMAMA AMMMMMMA SSSSSSSS", 1, runs=tmp_path_factory.mktemp("runs"),
                      **cached)

def test_models_of_one_size(sized):
    for r in sized: assert abs(parameters(r) / 1e6 - 1) < .05

def test_the_width_does_not_depend_on_what_else_is_compared(sized, cached, tmp_path):
    more = plan_sweep("sized", "AAAAAAAA AM", 1, runs=tmp_path, **cached)
    assert more[0]["settings"] == sized[0]["settings"]

def test_the_width_of_a_size_that_is_met_exactly(sized):
    assert equal_width(sized[2]["settings"], parameters(sized[2])) == sized[2]["settings"]["hidden_size"]

def test_the_least_width(sized, tmp_path):
    "With a number of heads that the default width does not divide by."
    narrow = sized[2]["settings"] | dict(num_attention_heads=5, ssd_head_dim=4)
    others = {k: v for k, v in narrow.items() if k not in ("pattern", "hidden_size")} | dict(hidden_size=10)
    smallest = plan_sweep("sized", narrow["pattern"], 1, runs=tmp_path, **others)[0]
    assert equal_width(narrow, parameters(smallest)) == 10

@pytest.mark.parametrize("wrong, message", [
    (dict(hidden_size=64), "hidden_size 64: with equal_parameters"),
    (dict(equal_parameters=10), "equal_parameters 10: AM can have"),
    (dict(equal_parameters=10**12), "equal_parameters 1000000000000: AM can have"), (dict(steps=0), "steps 0: must be"),
    (dict(equal_parameters="5M"), "equal_parameters '5M': must be a whole number"),
    (dict(patterns=None, recipes=recipe_group("context/depth-6")), "only models with a pattern")])
def test_sizes_that_are_refused(wrong, message, cached, tmp_path):
    with pytest.raises(ValueError) as e:
        plan_sweep(**dict(study="sized", patterns="AM", seeds=1, runs=tmp_path) | cached | wrong)
    assert message in str(e.value)

def test_the_template_shows_every_setting():
    cells = nbf.read(template_path("train.ipynb"), 4).cells
    cell, = [c for c in cells if "parameters" in c.metadata.get("tags", [])]
    mend = "copy the text of hybrid_nb.study.plan.parameters_cell() into the parameters cell of reports/train.ipynb"
    assert cell.source == parameters_cell(), f"a setting changed: {mend}"
