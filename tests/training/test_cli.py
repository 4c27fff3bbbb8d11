"The command line: exit codes, messages, flags."
import json, platform, subprocess, sys, time
from importlib.metadata import version
import pytest
import hybrid_nb
from helpers.lab import command, flags, lines
from hybrid_nb.core.commands import CommandParser, run_script
from hybrid_nb.core.files import read_json
from hybrid_nb.core.runs import old_names
from hybrid_nb.training.cli import hybrid_train
from hybrid_nb.training.fields import all_settings

OWN_MIXER = """
from torch import nn
from hybrid_nb.models.registry import register
@register('Q', 'a linear map', cache='none')
class Q(nn.Module):
    def __init__(self, config, layer_idx):
        super().__init__()
        self.map = nn.Linear(config.hidden_size, config.hidden_size)
    def forward(self, x, **context): return self.map(x)
"""


def test_ctrl_c_says_what_continues(monkeypatch, capsys):
    def interrupted(*args, **settings): raise KeyboardInterrupt
    monkeypatch.setattr(hybrid_nb, "train_run", interrupted, raising=False)
    monkeypatch.setattr(sys, "argv", ["hybrid_train"])
    with pytest.raises(SystemExit) as e: run_script(hybrid_train.__wrapped__)
    assert e.value.code == 130
    assert capsys.readouterr().err == "hybrid_train: interrupted; the same command continues\n"


def test_command_end_to_end(lab):
    "A pattern with a letter of the user's own, in a process of its own."
    (lab/"mine.py").write_text(OWN_MIXER)
    args = flags(pattern="AQ", plugins="mine.py", name="first", study="s", steps=12, checkpoint_every=5,
                 precision="bf16")
    r = subprocess.run([sys.executable, "hybrid_train", *args], capture_output=True, text=True)
    assert r.returncode == 0, r.stderr
    assert r.stderr.endswith("now: hybrid_report runs/s\n")
    assert "first: AQ" in r.stdout and "runs/s/first" in r.stdout and "bits a byte" in r.stdout
    run = lab/"runs"/"s"/"first"
    config, summary = read_json(run/"config.json"), read_json(run/"summary.json")
    assert config["model"]["hidden_size"] == 32 and config["data"]["corpus"] == "corpus.jsonl"
    assert config["model"]["vocab_size"] == 280 and config["train"]["steps"] == 12
    assert config["environment"]["packages"]["torch"] == version("torch")
    assert config["keeps_memory"] is (sys.platform == "linux" and platform.libc_ver()[0] == "glibc")
    assert summary["steps"] == 12 and summary["pattern"] == "AQ" and summary["tokens_seen"] == 12*4*32
    assert summary["peak_memory_bytes"] > 1e7
    assert [l["step"] for l in lines(run)] == [3, 5, 6, 9, 10, 12]
    assert [l["step"] for l in lines(run) if "val_loss" in l] == [10, 12]
    assert read_json(run/"checkpoints"/"best.json")["step"] == summary["best_step"]
    assert not list(run.rglob("*.tmp"))


@pytest.mark.parametrize("given, message", [
    (dict(steps=0), "steps 0: must be at least 1"),
    (dict(steps="ten"), "argument --steps: invalid int value: 'ten'"),
    (dict(pattern="AMx"), "pattern 'AMx'"), (dict(pattern="AQ0"), "pattern"),
    (dict(num_attention_heads=3), "num_attention_heads 3"),
    (dict(batch_size=4, gradient_accumulation_steps=3), "gradient_accumulation_steps 3: must divide batch_size 4"),
    (dict(eval_every=0), "eval_every 0"), (dict(precision="fp8"), "precision 'fp8'"),
    (dict(precision="fp16", device="cpu"), "precision 'fp16'"), (dict(corpus="missing.jsonl"), "missing.jsonl"),
    (dict(length=10**7), "length 10000000"), (dict(name="a/b"), "name 'a/b'"),
    (dict(name=""), "name '': must do as the name of a folder"), (dict(nonsense=1), "nonsense"),
    (dict(plugins="missing.py"), "missing.py")])
def test_bad_arguments(lab, capsys, given, message):
    assert command(*flags(**dict(pattern="A", name="bad", steps=3) | given)) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert len([l for l in error.splitlines() if not l.startswith("warning:")]) == 1
    assert not (lab/"runs"/"default"/"bad"/"summary.json").exists()


def test_finished_and_changed(lab, capsys):
    "A finished run is shown, not repeated; other settings are refused; --restart starts anew; a failure exits with 1."
    args, run = dict(pattern="A", name="done", steps=4), lab/"runs"/"default"/"done"
    assert command(*flags(**args)) == 0
    first, shown = (run/"summary.json").read_bytes(), capsys.readouterr().out
    assert command(*flags(**args)) == 0
    assert (run/"summary.json").read_bytes() == first and capsys.readouterr().out == shown
    assert command(*flags(**args | dict(steps=5, dropout=.2))) == 2
    error = capsys.readouterr().err
    assert "steps 4 there, 5 now" in error and "dropout 0.1 there, 0.2 now" in error
    assert command(*flags(**args | dict(steps=5), restart=True)) == 0
    assert read_json(run/"summary.json")["steps"] == 5 and lines(run)[-1]["step"] == 5
    capsys.readouterr()
    assert command(*flags(**args | dict(name="lost", learning_rate=1e30, warmup_steps=0))) == 1
    error = capsys.readouterr().err
    assert "RuntimeError: step 2: training loss nan" in error and len(error.strip().splitlines()) == 1


def test_changed_corpus(lab, capsys):
    "A run does not continue on other data than it began with."
    text, args = (lab/"corpus.jsonl").read_text(), dict(pattern="A", name="moved", corpus="moving.jsonl", steps=4)
    (lab/"moving.jsonl").write_text(text)
    assert command(*flags(**args)) == 0
    (lab/"runs"/"default"/"moved"/"summary.json").unlink() # as if it had died just before the end
    (lab/"moving.jsonl").write_text(text + text.splitlines()[0].replace("cat", "cow") + "\n")
    capsys.readouterr()
    assert command(*flags(**args)) == 2
    assert "another state of the corpus" in capsys.readouterr().err
    (lab/"moving.jsonl").write_text(text)
    assert command(*flags(**args)) == 0


def test_flags_are_the_settings():
    "Every setting has a flag, under its old name too, and nothing else does."
    from inspect import signature
    from hybrid_nb.training.config import config_fields, configs
    names = {f.name for c in configs for f in config_fields(c)}
    own = {"name", "study", "runs", "plugins", "use_wandb", "rebuild_cache", "restart", "quiet", "recipe", "debug",
           "preset", "family", "extend"}
    assert set(signature(hybrid_train).parameters) == names | own | set(old_names)


def test_switches_are_passed_on_as_they_are_said():
    "Those of settings under present and old names; what is not said is not passed on."
    def parsed(*words): return vars(CommandParser(hybrid_train.__wrapped__).parse_args(words))
    switches = [*(k for k, s in all_settings().items() if s.types == [bool]), "carry_state"]
    assert {"save_best", "tie_word_embeddings", "compile"} <= set(switches)
    for name in switches:
        assert name not in parsed() and parsed(f"--{name}")[name] is True and parsed(f"--no-{name}")[name] is False
        assert parsed(f"--{name}", "false")[name] is False and parsed(f"--{name}", "true")[name] is True
    for name in "debug", "restart", "quiet", "use_wandb", "rebuild_cache":
        assert parsed()[name] is False and parsed(f"--{name}", "false")[name] is False and parsed(f"--{name}")[name]


def test_old_flags(lab, capsys):
    "Names that settings had in earlier versions are understood, each with a line that says what it is called now."
    old = ["--accumulation", "2", "--clip", "0.5", "--carry_state"]
    assert command(*flags(pattern="M", name="old", steps=3), *old) == 0
    warned = [l for l in capsys.readouterr().err.splitlines() if l.startswith("warning: setting")]
    assert sorted(warned) == ["warning: setting 'accumulation' is now called 'gradient_accumulation_steps'",
                              "warning: setting 'carry_state' is now called 'stateful'",
                              "warning: setting 'clip' is now called 'max_grad_norm'"]
    config = json.loads((lab/"runs"/"default"/"old"/"config.json").read_text())
    assert config["train"]["gradient_accumulation_steps"] == 2 and config["train"]["max_grad_norm"] == .5
    assert config["data"]["stateful"] is True and not set(old_names) & {*config["train"], *config["data"]}
    new = dict(gradient_accumulation_steps=2, max_grad_norm=.5, stateful=True)
    assert command(*flags(pattern="M", name="old", steps=3, **new)) == 0 # the same run
    assert command(*flags(pattern="M", name="old", steps=3, max_grad_norm=.5), *old) == 2
    assert "clip and max_grad_norm: two names of one setting" in capsys.readouterr().err


def test_help_without_torch(lab):
    "Help and bad flags are answered at once."
    heavy = "import sys; before = {*sys.modules}; sys.argv[0] = 'hybrid_train'\n" \
            "import atexit; atexit.register(lambda: print('LOADED', *{'torch', 'transformers'} & {*sys.modules}))\n"
    (lab/"watched").write_text(heavy + (lab/"hybrid_train").read_text())
    for word, code, says in ("--help", 0, "--gradient_accumulation_steps"), ("--stepz=3", 2, "unrecognized arguments"):
        start = time.perf_counter()
        r = subprocess.run([sys.executable, "watched", word], capture_output=True, text=True)
        assert time.perf_counter() - start < 5 # a second at most, but for a busy machine
        assert r.returncode == code and says in r.stdout + r.stderr and r.stdout.splitlines()[-1].strip() == "LOADED", r
