"A record that was edited, or that a run's own program made nicer, is refused."
import pytest
from helpers.cheats import as_letter, cheats
from helpers.record_cheats import edited_copy, edits, programs, summary_of
from helpers.trained import TINY
from hybrid_nb.core.runs import load_windows
from hybrid_nb.core.verdict_file import run_fault
from hybrid_nb.study.tables import load_run, load_runs
from hybrid_nb.training.runner import train_run
from hybrid_nb.use.commands import audit_run

HONEST = {"record": "pass", "recount": "pass", "verdict file": "pass"}
SMALL = TINY | dict(steps=20, study="s", threads=1)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    train_run("AM", runs=folder, **SMALL)
    return folder/"s"/"AM-s0"


def verdicts(run): return {f.check: f for f in audit_run(run, 32) if f.check in HONEST}


def test_an_honest_run_passes(run):
    summary = summary_of(run)
    assert {k: f.verdict for k, f in verdicts(run).items()} == HONEST
    assert {f["check"]: f["verdict"] for f in summary["audit"] if f["check"] in HONEST} == dict(
        record="pass", recount="pass")
    assert run_fault(run, summary) is None and load_run(run)["status"] == "finished"


FOUND = { # by `hybrid_audit`; a report, which computes nothing again, refuses all but those below
    "a smaller loss in the summary": {"record", "verdict file"},
    "a loss that is smaller in the fifth digit": {"record", "verdict file"},
    "the sums, too": {"recount", "verdict file"},
    "the sums and the verdict's checksums, too": {"recount"},
    "the easier half of the windows, all checksums made anew": {"record"},
    "the easier half, called a last evaluation of fewer tokens": {"record"},
    "losses exchanged among windows": {"recount"},
    "a greater accuracy": {"record"},
    "all predictions correct": {"recount"},
    "fewer bits a byte": {"record"},
    "a warning that became a pass, in the summary": {"verdict file"},
    "a warning that became a pass, in audit.json": {"verdict file"},
    "no audit.json": {"verdict file"},
    "no sums by window": {"verdict file"},
    "weights of another step": {"recount", "verdict file"},
    "weights of another step, all checksums made anew": {"recount"}}
PAST_REPORTS = {"the sums and the verdict's checksums, too", "the easier half of the windows, all checksums made anew",
                "the easier half, called a last evaluation of fewer tokens", "losses exchanged among windows",
                "a greater accuracy", "all predictions correct", "fewer bits a byte",
                "weights of another step, all checksums made anew"}


@pytest.mark.parametrize("what", edits)
def test_no_edited_record_passes(run, what):
    copy = edited_copy(run, what)
    found = verdicts(copy)
    assert {k for k, f in found.items() if f.verdict == "fail"} == FOUND[what], found
    row = load_run(copy)
    assert (row["status"] == "broken") == (what not in PAST_REPORTS)
    if row["status"] != "broken": return
    assert "final_val_loss" not in row and "its results are refused" in row["error"] and "\n" not in row["error"]
    with pytest.warns(UserWarning, match="its results are refused"): load_runs(copy.parent)


@pytest.mark.parametrize("what", programs)
def test_no_program_that_makes_its_losses_nicer_passes(tmp_path, capsys, what):
    with programs[what](): summary = train_run("AM", runs=tmp_path, **SMALL | dict(steps=4, eval_every=4))
    check = "recount" if "divided" in what else "record"
    assert {f["check"] for f in summary["audit"] if f["verdict"] == "fail"} == {check}
    assert load_run(tmp_path/"s"/"AM-s0")["status"] == "broken"
    assert f"audit failed: {check}: " in capsys.readouterr().err
    assert verdicts(tmp_path/"s"/"AM-s0")[check].verdict == "fail" # also for a program that knows nothing of it


@pytest.mark.parametrize("settings", [
    dict(stateful=True, pattern="MS"), dict(documents="separate"), dict(corpus="chat-demo", length=96, vocab_size=500),
    dict(precision="bf16", pattern="AMSGWFL"), dict(final_eval_tokens=900), dict(stride=.5, eval_batch_size=3),
    dict(final_eval_tokens=300, stateful=True, pattern="M"),
    dict(family="context", pattern=None, hidden_size=None, embedding_size=16, context_dim=16, network_size=16,
         depth=2)], ids=str)
def test_honest_runs_with_all_options_pass(tmp_path, settings):
    given = {k: v for k, v in (SMALL | dict(pattern="AM", steps=6, eval_every=6, name="x") | settings).items()
             if v is not None}
    if settings.get("family"): given.pop("num_attention_heads")
    summary = train_run(runs=tmp_path, **given)
    assert not [f for f in summary["audit"] if f["verdict"] == "fail"], summary["audit"]
    assert {k: f.verdict for k, f in verdicts(tmp_path/"s"/"x").items()} == HONEST
    assert load_windows(tmp_path/"s"/"x")["tokens"].sum() == summary["final_val_tokens"]


def test_a_mixer_that_looks_ahead_fails_at_the_end_of_its_run(tmp_path, capsys):
    "Though it saw nothing of the future at the beginning, and in few positions."
    mixer, _ = cheats["at position 77 alone"]
    with as_letter(mixer): summary = train_run("YA", runs=tmp_path, **SMALL | dict(steps=2, eval_every=2, length=100))
    found = {f["check"]: f for f in summary["audit"]}
    for mode in "training", "evaluation":
        finding = found[f"causality ({mode})"]
        assert finding["verdict"] == "fail" and "at 1 position (77)" in finding["evidence"]
        assert f"100 tokens of {'training' if mode == 'training' else 'validation'} text" in finding["evidence"]
    assert "audit failed: causality (training): outputs depend on later tokens" in capsys.readouterr().err
