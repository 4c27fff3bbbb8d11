"""The files of a run folder: what becomes of a run, and what is still read of folders that earlier versions wrote."""
import json, subprocess, sys
import numpy as np
import pytest
from hybrid_nb.core.runs import (
    clear_run, last_metrics, load_config, load_windows, MetricsFile, old_names, read_document_sums, read_summary,
    rename_old, run_lock, run_state, save_windows)

old_config = dict( # as version 0.0.1 wrote it
    name="AM-s0", study="quick", pattern="AM", seed=0,
    model=dict(pattern="AM", hidden_size=64, state_size=8, model_type="hybrid_nb"),
    data=dict(corpus="world", max_documents=4000, tokenizer="bpe", length=256, stride=1.0, carry_state=False),
    train=dict(steps=700, batch_size=4, accumulation=2, learning_rate=.006, clip=1.0, spike=3.0, skip_steps=5,
               start=None, seed=0),
    corpus=dict(unique_tokens=1416448, documents=4000), processes=1)
old_windows = dict(window=[0, 1, 2], document=[3, 5, 5], first=[0, 0, 4],
                   tokens=[4, 2, 6], nats=[8., 5., 9.], right=[1, 0, 3])


@pytest.fixture
def old_run(tmp_path):
    "The folder of a run of version 0.0.1."
    run = tmp_path/"AM-s0"
    run.mkdir()
    (run/"config.json").write_text(json.dumps(old_config))
    (run/"metrics.jsonl").write_text('{"step": 700, "train_loss": 3.5}\n')
    (run/"summary.json").write_text('{"pattern": "AM", "steps": 700, "final_val_loss": 3.4}')
    np.savez_compressed(run/"val_windows.npz", **old_windows)
    return run


def test_old_config_has_the_present_names(old_run):
    config = load_config(old_run)
    assert config["data"] == dict(
        corpus="stories", max_documents=4000, tokenizer="bpe", length=256, stride=1.0, stateful=False)
    assert config["train"] == dict(
        steps=700, batch_size=4, gradient_accumulation_steps=2, learning_rate=.006, max_grad_norm=1.0,
        grad_spike_factor=3.0, max_skipped_steps=5, init_from=None, seed=0)
    rest = {k: v for k, v in old_config.items() if k not in ("data", "train")} # with `corpus`, facts and no setting
    assert {k: config[k] for k in rest} == rest


def test_present_config_is_read_as_it_is(old_run):
    config = load_config(old_run)
    (old_run/"config.json").write_text(json.dumps(config))
    assert load_config(old_run) == config


def test_old_windows_have_the_present_names(old_run):
    parts = load_windows(old_run)
    assert list(parts) == ["window", "document", "first", "tokens", "nats", "correct"]
    assert parts["correct"].tolist() == [1, 0, 3]
    nats, tokens = read_document_sums([old_run])
    assert nats.tolist() == [[8, 14]] and tokens.tolist() == [4, 8]


def test_rest_of_an_old_folder_is_read(old_run):
    assert run_state(old_run) == dict(status="finished", step=700, error=None)
    assert last_metrics(old_run)["train_loss"] == 3.5 and read_summary(old_run)["final_val_loss"] == 3.4


def test_a_setting_under_both_names_is_refused(old_run):
    for old, new in old_names.items():
        with pytest.raises(ValueError, match=f"{old} and {new}: two names of one setting"): rename_old({old: 1, new: 1})
    (old_run/"config.json").write_text(json.dumps(dict(train=dict(clip=1., max_grad_norm=2.))))
    with pytest.warns(UserWarning, match="clip and max_grad_norm.*the settings of this run are left out"):
        assert load_config(old_run) == {}


def test_every_state_of_a_run(tmp_path):
    run = tmp_path
    assert run_state(run) == dict(status="interrupted", step=0, error=None)
    (run/"metrics.jsonl").write_text('{"step": 10, "train_loss": 3.0}\n{"step": 20, "tr')
    assert run_state(run)["step"] == 10
    lock = run_lock(run); lock.acquire()
    assert run_state(run)["status"] == "running"
    lock.release()
    def stop(ename, evalue):
        error = dict(output_type="error", ename=ename, evalue=evalue, traceback=[])
        (run/"train.ipynb").write_text(json.dumps(dict(cells=[dict(cell_type="code", outputs=[error])])))
    stop("ValueError", "loss is\nnot a number")
    assert run_state(run) == dict(status="failed", step=10, error="ValueError: loss is not a number")
    stop("KeyboardInterrupt", "")
    assert run_state(run)["status"] == "interrupted"
    stop("Paused", "0")
    assert run_state(run)["status"] == "paused"
    (run/"stopped.json").write_text("{}")
    assert run_state(run)["status"] == "stopped"
    (run/"summary.json").write_text('{"steps": 40, "pattern": "AM", "final_val_loss": 2.5}')
    assert run_state(run) == dict(status="finished", step=40, error=None)


def test_a_cleared_run_is_no_longer_stopped(tmp_path):
    for name in ("summary.json stopped.json config.json metrics.jsonl bad_steps.jsonl val_windows.npz wandb_id "
                 "train.ipynb").split():
        (tmp_path/name).write_text("{}")
    for name in "checkpoints init_from start wandb tensorboard".split(): (tmp_path/name).mkdir()
    clear_run(tmp_path)
    assert run_state(tmp_path) == dict(status="interrupted", step=0, error=None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text, message", [
    ('{"steps": 40', "Expecting"),
    ("[]", "must be a JSON object, not []"),
    ('{"pattern": "AM"}', "final_val_loss must be a number, not null"),
    ('{"pattern": "AM", "final_val_loss": "low"}', 'final_val_loss must be a number, not "low"'),
    ('{"pattern": 3, "final_val_loss": 1}', "pattern must be text, not 3"),
])
def test_a_broken_summary_is_named(tmp_path, text, message):
    (tmp_path/"summary.json").write_text(text)
    state = run_state(tmp_path)
    assert state["status"] == "broken" and state["error"].startswith(f"{tmp_path/'summary.json'}: {message}"), state


@pytest.mark.parametrize("text, message", [('{"data"', "Expecting"), ("[1]", "must be a JSON object, not \\[1\\]")])
def test_a_broken_config_warns(tmp_path, text, message):
    assert load_config(tmp_path) == {} # no such file: nothing to warn of
    (tmp_path/"config.json").write_text(text)
    with pytest.warns(UserWarning, match=f"config.json: {message}.*; the settings of this run are left out"):
        assert load_config(tmp_path) == {}


def test_sums_of_runs_on_the_same_documents(old_run, tmp_path):
    now, other = tmp_path/"now", tmp_path/"other"
    save_windows(load_windows(old_run), now)
    save_windows(load_windows(old_run) | dict(tokens=[4, 2, 7]), other)
    nats, tokens = read_document_sums([old_run, now])
    assert nats.tolist() == [[8, 14], [8, 14]] and tokens.tolist() == [4, 8]
    assert read_document_sums([old_run, other]) == (None, None) == read_document_sums([])


@pytest.mark.parametrize("content", [None, b"", b"{", b"PK\x03\x04", "cut", "keys"])
def test_sums_of_a_run_that_has_none(old_run, content):
    path = old_run/"val_windows.npz"
    if content is None: path.unlink()
    elif content == "cut": path.write_bytes(path.read_bytes()[:-30])
    elif content == "keys": save_windows(dict(nats=[1.]), old_run)
    else: path.write_bytes(content)
    assert read_document_sums([old_run]) == (None, None)


def test_metrics_go_on_after_the_checkpoint(tmp_path):
    path = tmp_path/"metrics.jsonl"
    metrics = MetricsFile(path)
    for s in (10, 20, 30): metrics.write(dict(step=s))
    metrics.close()
    with path.open("a") as f: f.write('{"step": 4')
    assert last_metrics(tmp_path) == dict(step=30)
    MetricsFile(path, 20).close()
    assert path.read_text() == '{"step": 10}\n{"step": 20}\n' and last_metrics(tmp_path) == dict(step=20)
    path.write_text('{"step": 10}\nwhat\n')
    assert last_metrics(tmp_path) == dict(step=10)
    with pytest.raises(ValueError, match="metrics.jsonl: damaged"): MetricsFile(path)


def test_metrics_refuse_what_json_cannot_hold(tmp_path):
    metrics = MetricsFile(tmp_path/"metrics.jsonl")
    with pytest.raises(ValueError): metrics.write(dict(step=1, loss=float("nan")))
    metrics.write(dict(step=2, loss=1.))
    metrics.close()
    assert [json.loads(l)["step"] for l in (tmp_path/"metrics.jsonl").read_text().splitlines()] == [2]
    assert last_metrics(tmp_path/"none") == {}


def test_core_needs_no_torch():
    "Commands that only read run folders start quickly."
    code = ("import sys, hybrid_nb.core.patterns, hybrid_nb.core.commands, hybrid_nb.core.files\n"
            "from hybrid_nb.core.runs import environment\n"
            "environment(); print({'torch', 'transformers', 'matplotlib', 'pandas'} & set(sys.modules))")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "set()"
