"hybrid_checkpoints from the command line; models of other programs among ours are listed, never pruned."
import contextlib, io, json, shutil
from pathlib import Path
import pytest
from rich.console import Console
from transformers import LlamaConfig, LlamaForCausalLM
from helpers.console import run_console
from helpers.lab import lab_in
from helpers.trained import flip_bit
from hybrid_nb.training.runner import train_run
from hybrid_nb.use.checkpoints import checkpoint_columns, find_checkpoints
from hybrid_nb.use.pruning import checkpoint_table, hybrid_checkpoints, prunable


@pytest.fixture
def attic(tiny_runs, tmp_path):
    "A copy of the runs, all of AM damaged and not finished, with a Llama beside them."
    attic = tmp_path/"runs"
    shutil.copytree(tiny_runs, attic)
    sizes = dict(vocab_size=400, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(attic/"llama")
    am = attic/"demo"/"AM-s0"
    (am/"summary.json").unlink()
    for folder in (am/"checkpoints").glob("step_*"): flip_bit(folder/"model.safetensors")
    return attic


def test_nothing_of_another_program_goes(attic):
    found = find_checkpoints(attic)
    assert len(found) == 7 and found.foreign.sum() == 1
    assert {(r.run, r.step) for r in prunable(found).itertuples()} == {("AF-s0", 10), ("AF-s0", 20)}


def test_a_model_of_another_program_has_no_loss(attic):
    with contextlib.redirect_stdout(io.StringIO()) as out: hybrid_checkpoints(str(attic), json=True, sort="val_loss")
    rows = json.loads(out.getvalue())
    assert (len(rows), list(rows[0])) == (7, checkpoint_columns)
    assert (rows[-1]["val_loss"], rows[-1]["foreign"], rows[-1]["model_type"]) == (None, True, "llama")


def test_a_narrow_terminal_and_two_runs_of_one_name(tiny_runs, tmp_path):
    "Columns go before numbers are split; what has the same name shows where it lies."
    for copy in "a", "b": shutil.copytree(tiny_runs/"demo"/"AM-s0", tmp_path/copy/"demo"/"AM-s0")
    found = find_checkpoints(tmp_path)
    def printed(width):
        Console(file=(out := io.StringIO()), width=width).print(checkpoint_table(found))
        return out.getvalue()
    wide, narrow = printed(300), printed(60)
    assert "Perplexity" in wide and wide.count("a/demo/AM-s0") == wide.count("b/demo/AM-s0") == 3, wide
    assert "Perplexity" not in narrow and max(map(len, narrow.splitlines())) <= 60
    for loss in found.val_loss: assert f"{loss:.4f}" in narrow


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "A folder to work in, with a small run of two checkpoints."
    folder = tmp_path_factory.mktemp("lab")
    pairs = [(a, b) for a in "cat dog rat".split() for b in "one two red old".split() for _ in range(4)]
    texts = [f"the {a} saw the {b} near the house. " * 4 for a, b in pairs]
    (folder/"corpus.jsonl").write_text("".join(json.dumps(dict(text=t)) + "\n" for t in texts))
    with lab_in(folder):
        train_run("AM", study="s", progress=False, corpus="corpus.jsonl", vocab_size=280, hidden_size=32,
                  num_attention_heads=2, state_size=4, length=16, batch_size=4, steps=6, eval_every=3, eval_batches=1,
                  checkpoint_every=3, recall_documents=0, device="cpu")
        yield folder


@pytest.fixture
def command(lab, capfd):
    def command(*args): return run_console(capfd, "hybrid_nb.use.pruning", "hybrid_checkpoints", *args)
    return command


def test_a_list_for_programs(command):
    code, out, _ = command("--json", "--sort", "step")
    rows = json.loads(out)
    assert code == 0
    known = [(r["study"], r["run"], r["pattern"], r["step"], r["intact"]) for r in rows]
    assert known == [("s", "AM-s0", "AM", 3, True), ("s", "AM-s0", "AM", 6, True)]
    assert [r["best"] for r in rows].count(True) == 1
    assert all(r["parameters"] > 10_000 and r["val_loss"] > 0 for r in rows)


def test_a_table(command):
    code, out, _ = command("runs/s")
    assert code == 0 and "AM-s0" in out and "2 checkpoints under runs/s" in out


def test_pruning_shows_first_and_deletes_when_told(command):
    shutil.copytree("runs/s", "copies/t")
    Path("copies/t/AM-s0/checkpoints/step_00000006/config.json").write_bytes(b"{")
    code, out, _ = command("copies/t", "--prune")
    assert code == 0 and "1 checkpoint under copies/t" in out and "would go; delete with --yes" in out
    assert len(find_checkpoints("copies/t")) == 2
    code, out, _ = command("copies/t", "--prune", "--yes")
    assert code == 0 and "deleted" in out and find_checkpoints("copies/t").step.tolist() == [3]


@pytest.mark.parametrize("args, message", [
    (["no/such"], "folder 'no/such': no such folder"), (["--sort", "loss"], "sort 'loss': unknown"),
    (["--yes"], "yes: goes with --prune"), (["--limit", "x"], "invalid int value")])
def test_bad_arguments_in_one_line(command, args, message):
    code, out, err = command(*args)
    assert code == 2 and message in err and len(err.strip().splitlines()) == 1 and not out
