"What can be done to the record of a finished run, and to a run's own program, so that its loss looks better."
import shutil, tempfile
from contextlib import contextmanager, ExitStack
from pathlib import Path
from unittest.mock import patch
import numpy as np
from hybrid_nb.core.files import read_json, save_checksums, save_json
from hybrid_nb.core.runs import list_checkpoints, load_windows, save_windows
from hybrid_nb.core.verdict_file import save_verdict
from hybrid_nb.training import objective, record
from hybrid_nb.training.evaluation import perplexity

edits = {} # what is done -> function of the run's folder


def edit(what):
    def add(f): edits[what] = f
    return add


def summary_of(run): return read_json(run/"summary.json")


def set_summary(run, judged=False, **values):
    summary = summary_of(run) | values
    save_json(summary, run/"summary.json")
    if judged: save_verdict(run, summary, summary["audit"], list_checkpoints(run)[-1])


def set_sums(run, parts, judged=True):
    "Sums by window, and all of the summary that follows from them."
    save_windows(parts, run)
    s, n = summary_of(run), parts["tokens"].sum()
    loss = parts["nats"].sum() / n
    set_summary(run, judged, final_val_loss=loss, final_val_perplexity=perplexity(loss), final_val_tokens=int(n),
                val_accuracy=parts["correct"].sum() / n, bits_per_byte=s["bits_per_byte"] * loss / s["final_val_loss"])


@edit("a smaller loss in the summary")
def _(run):
    loss = summary_of(run)["final_val_loss"] - .1
    set_summary(run, final_val_loss=loss, final_val_perplexity=perplexity(loss))

@edit("a loss that is smaller in the fifth digit")
def _(run): set_summary(run, final_val_loss=summary_of(run)["final_val_loss"] - 2e-4)

@edit("the sums, too")
def _(run): set_sums(run, (p := load_windows(run)) | dict(nats=p["nats"] / 1.25), judged=False)

@edit("the sums and the verdict's checksums, too")
def _(run): set_sums(run, (p := load_windows(run)) | dict(nats=p["nats"] / 1.25))

@edit("the easier half of the windows, all checksums made anew")
def _(run):
    p = load_windows(run)
    easy = np.sort(np.argsort(p["nats"] / p["tokens"])[:len(p["nats"]) // 2])
    set_sums(run, {k: v[easy] for k, v in p.items()})

@edit("the easier half, called a last evaluation of fewer tokens")
def _(run):
    edits["the easier half of the windows, all checksums made anew"](run)
    config = read_json(run/"config.json")
    config["train"]["final_eval_tokens"] = int(load_windows(run)["tokens"].sum())
    save_json(config, run/"config.json")

@edit("losses exchanged among windows")
def _(run):
    p = load_windows(run)
    order = np.lexsort((p["nats"], p["tokens"])) # among windows of one size
    sizes, losses = p["tokens"][order], p["nats"][order]
    moved = np.where(sizes == np.roll(sizes, 1), np.roll(losses, 1), losses)
    nats = p["nats"].copy()
    nats[order] = moved
    set_sums(run, p | dict(nats=nats))

@edit("a greater accuracy")
def _(run): set_summary(run, judged=True, val_accuracy=summary_of(run)["val_accuracy"] + .05)

@edit("all predictions correct")
def _(run): set_sums(run, (p := load_windows(run)) | dict(correct=p["tokens"].astype(float)))

@edit("fewer bits a byte")
def _(run): set_summary(run, judged=True, bits_per_byte=.8)

@edit("a warning that became a pass, in the summary")
def _(run): set_summary(run, audit=[f | dict(verdict="pass") for f in summary_of(run)["audit"]])

@edit("a warning that became a pass, in audit.json")
def _(run):
    said = read_json(run/"audit.json")
    save_json(said | dict(findings=[f | dict(verdict="pass") for f in said["findings"]]), run/"audit.json")

@edit("no audit.json")
def _(run): (run/"audit.json").unlink()

@edit("no sums by window")
def _(run): (run/"val_windows.npz").unlink()

@edit("weights of another step")
def _(run):
    first, *_, last = list_checkpoints(run)
    shutil.copy(first/"model.safetensors", last)
    (last/"checksums.json").unlink()
    save_checksums(last)

@edit("weights of another step, all checksums made anew")
def _(run):
    edits["weights of another step"](run)
    set_summary(run, judged=True)


@contextmanager
def dividing_program(by=1.25):
    "A program whose losses are divided, when it trains and when it evaluates."
    def divided(f):
        def g(h, head, y):
            nats, correct = f(h, head, y)
            return nats / by, correct
        return g
    with ExitStack() as stack:
        for name in "head_nats", "head_cross_entropy":
            stack.enter_context(patch.object(objective, name, divided(getattr(objective, name))))
        yield


@contextmanager
def easy_half_program():
    "A program that evaluates on the easier half of the validation set."
    def easier(f):
        def g(*args):
            p = f(*args)
            keep = np.sort(np.argsort(p["nats"] / p["tokens"])[:len(p["nats"]) // 2])
            return {k: v[keep] for k, v in p.items()}
        return g
    with patch.object(record, "evaluate_parts", easier(record.evaluate_parts)): yield


programs = {"losses divided by 1.25": dividing_program, "the easier half of the validation set": easy_half_program}


def edited_copy(run, what) -> Path:
    "A copy of the folder of a run, with its record edited."
    copy = Path(tempfile.mkdtemp(dir=Path(run).parents[1]))/Path(run).parent.name/Path(run).name
    shutil.copytree(run, copy)
    edits[what](copy)
    return copy
