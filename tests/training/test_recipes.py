"""Recipes: each builds at full size with the right count, and its small form trains, checkpoints, resumes, generates
and appears in a report.
"""
import json, shutil, subprocess, sys
from pathlib import Path
import pytest, torch
from hybrid_nb.core.commands import run_script
from hybrid_nb.core.runs import list_checkpoints
from hybrid_nb.models.modeling import count_parameters
from hybrid_nb.study.tables import load_runs
from hybrid_nb.training.cli import hybrid_train
from hybrid_nb.training.recipes import debug_settings, recipe, recipes
from hybrid_nb.training.runner import train_run
from hybrid_nb.training.settings import split_settings
from hybrid_nb.use.commands import hybrid_params
from transformers import AutoModelForCausalLM, AutoTokenizer

script = Path(sys.executable).with_name


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path_factory.mktemp("recipes")
    torch.set_num_threads(threads)


def test_published_counts():
    "To the digit that the reports give; what they claim otherwise is remarked."
    within = dict(base=.05e6, context=.005e6)
    for r in recipes.values():
        claimed = r.published.get("parameters")
        if claimed and r.group in within:
            assert count_parameters(r.model) == pytest.approx(claimed, abs=within[r.group]), r.name
    assert count_parameters(recipe("exp9/attention_mlp_512d").model) == 69_625_088
    assert count_parameters(recipe("extended/alternate_A_first_16L").model) < .15e9 # "about a billion"


# one of each kind of model, data and training; of the others, which differ from these in pattern and size, the model is
# built and read
kinds = ["base/sandwich_8L", "base-mamba/sandwich_8L", "extended/alternate_A_first_16L", "extended-mamba/triple_11L",
         "exp9/attention_mlp_512d", "context/depth-2", "context/overwrite-6", "context/reconstruct-6",
         "context/expand-new", "context/expand-all", "context/expand-none", "dialog/dolly"]


def settings_of_a_kind(name):
    "What a recipe sets beside numbers, and which numbers it sets."
    left_out = "pattern", "corpus", "gradient_accumulation_steps", "context_dim"
    settings = recipe(name).settings
    return {k: v if isinstance(v, str) else v is None for k, v in settings.items() if k not in left_out}


def test_every_recipe_is_of_a_tested_kind():
    tested = [settings_of_a_kind(k) for k in kinds]
    assert [n for n in recipes if settings_of_a_kind(n) not in tested] == []


@pytest.mark.parametrize("name", [n for n in recipes if n not in kinds])
def test_small_model(name):
    """What `debug` leaves of a recipe are settings that go together, of the same kind of model with all its layers,
    which reads its windows.
    """
    settings = debug_settings(recipe(name).settings)
    config, data, train = split_settings(**settings)
    assert data.corpus in ("stories", "chat-demo") and data.tokenizer in ("bpe", "word") and train.steps == 12
    assert (config.model_type, config.pattern) == (recipe(name).model.model_type, recipe(name).model.pattern)
    model = AutoModelForCausalLM.from_config(config)
    assert sum(p.numel() for p in model.parameters()) == count_parameters(config)
    ids = torch.randint(config.vocab_size, (2, data.length))
    assert model(ids, labels=ids).loss.isfinite()


@pytest.fixture(scope="module")
def start(here):
    "The checkpoint of a small context-vector model."
    s = train_run(recipe="context/depth-1", debug=True, runs=here, name="start", study="start", threads=1,
                  cache_dir=str(here/"cache"), progress=False)
    return str(list_checkpoints(here/s["study"]/s["name"])[-1])


@pytest.mark.parametrize("name", kinds)
def test_small_form(here, start, name):
    "It trains, checkpoints, goes on from a checkpoint as the same run, and generates."
    tuned, full = recipe(name).phase == "expansion", recipe(name).model
    run = dict(recipe=name, debug=True, runs=here, cache_dir=str(here/"cache"), progress=False, threads=1)
    run |= dict(init_from=start) if tuned else {}
    summary = train_run(**run)
    folder = here/summary["study"]/summary["name"]
    assert summary["study"] == f"{recipe(name).group}-debug" and summary["steps"] >= 8 and list_checkpoints(folder)
    config = json.loads((folder/"config.json").read_text())
    assert config["model"]["model_type"] == full.model_type
    assert len(config["pattern"]) == (1 if tuned else full.num_hidden_layers)
    (folder/"summary.json").unlink()
    shutil.rmtree(list_checkpoints(folder)[-1])
    assert train_run(**run)["final_val_loss"] == summary["final_val_loss"]
    model, tokenizer = (c.from_pretrained(list_checkpoints(folder)[-1]) for c in (AutoModelForCausalLM, AutoTokenizer))
    prompt = tokenizer("the town of", return_tensors="pt", return_token_type_ids=False)
    out = model.eval().generate(**prompt, max_new_tokens=4, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    assert out.shape[1] > 4 or out[0, -1] == tokenizer.eos_token_id


def test_old_names_of_settings(here, start):
    "They overrule a recipe as the present ones do."
    with pytest.warns(UserWarning, match="setting 'start' is now called 'init_from'"):
        s = train_run(recipe="context/expand-all", debug=True, runs=here, name="old", cache_dir=str(here/"cache"),
                      progress=False, threads=1, start=start)
    config = json.loads((here/s["study"]/"old"/"config.json").read_text())
    assert config["train"]["init_from"] == start and len(config["pattern"]) == 1


def run(folder, *words):
    "A console script in `folder`: its process."
    r = subprocess.run([str(script(words[0])), *words[1:]], cwd=folder, capture_output=True, text=True)
    assert r.returncode == 0, r.stdout + r.stderr
    return r


def test_sweep_and_report(tmp_path):
    "A group through papermill: two families in one study, and a report of them."
    run(tmp_path, "hybrid_sweep", "--recipe-group", "context/depth-1", "base-mamba/alternate_A_first_8L", "--study",
        "mixed", "--seeds", "1", "--debug", "--set", f"cache_dir={tmp_path/'cache'}", "steps=6", "threads=1")
    runs = load_runs(tmp_path/"runs"/"mixed").set_index("name")
    assert runs.pattern.to_dict() == {"depth-1-s0": "C", "alternate_A_first_8L-s0": "AMAMAMAM"}
    assert set(runs.steps) == {6}
    run(tmp_path, "hybrid_report", "runs/mixed", "--out", "mixed.html")
    assert "AMAMAMAM" in (tmp_path/"mixed.html").read_text()


def test_sweep_from_a_checkpoint(tmp_path, start):
    "Through the notebook of a run, which states all settings: what the checkpoint knows counts as not given."
    run(tmp_path, "hybrid_sweep", "--recipe-group", "context/expand-new", "--seeds", "1", "--debug", "--set",
        f"init_from={start}", f"cache_dir={tmp_path/'cache'}", "steps=4", "threads=1")
    summary = json.loads((tmp_path/"runs"/"context-debug"/"expand-new-s0"/"summary.json").read_text())
    assert summary["pattern"] == "C" and 0 < summary["parameters_trained"] < summary["parameters"]


@pytest.mark.parametrize("words, message", [
    (["--recipe", "base/sandwich_9L"], "recipe 'base/sandwich_9L': unknown, did you mean 'base/sandwich_8L'?"),
    (["--recipe", "base/sandwich_8L", "--pattern", "AAAA"],
     "pattern 'AAAA': the recipe base/sandwich_8L has AGGGGGGA"),
    (["--recipe", "extended/alternate_15L"], "the name says 15 layers, but MAMAMAMAMAMAMAMAM has 17"),
    (["--recipe", "base/sandwich_8L", "--num_attention_heads", "7"], "num_attention_heads 7"),
    (["--recipe", "context/depth-1", "--state_size", "4"], "state_size 4: not a setting of the family 'context'"),
    (["--pattern", "AM", "--name", "deep_12L"], "name 'deep_12L': says 12 layers, but the model has 2"),
    (["--pattern", "AM", "--eval_lengths", "two"], "eval_lengths 'two': must be whole numbers")])
def test_bad_input(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["hybrid_train", *words])
    with pytest.raises(SystemExit) as e: run_script(hybrid_train.__wrapped__)
    error = capsys.readouterr().err
    assert e.value.code == 2 and message in error and len(error.strip().splitlines()) == 1, error
    assert not list(tmp_path.iterdir())


def test_given_flags_overrule_the_recipe(monkeypatch):
    "Also where the flag says what is the default anyway."
    seen = {}
    def fake_train(model, data, training, *_, **_kw):
        seen.update(m=model, d=data, t=training)
        return dict(name="x", study="y")
    monkeypatch.setattr("hybrid_nb.training.runner.train", fake_train)
    monkeypatch.setattr("hybrid_nb.training.cli.describe_summary", lambda s: "")
    words = ["--recipe", "base/sandwich_8L", "--precision", "fp32", "--patience", "0"]
    monkeypatch.setattr(sys, "argv", ["hybrid_train", *words])
    run_script(hybrid_train.__wrapped__)
    assert (seen["t"].precision, seen["t"].patience, seen["t"].eval_every) == ("fp32", 0, 200)
    assert (seen["d"].stride, seen["m"].rope_theta) == (.8, None)


def test_table(capsys):
    hybrid_params(["exp9", "context/depth-6"], recipes=True)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and "69.63 M" in lines[1] and "saw the future" in lines[1] and "2.74 M" in lines[2]
