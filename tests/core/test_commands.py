"Switches, plugins that are notebooks, and Ctrl-C while a command imports."
import json, re, signal, subprocess, sys
from configparser import ConfigParser
from pathlib import Path
import pytest
from fastcore.script import Param
from hybrid_nb.core.commands import CommandParser, load_plugin, SettingsParam, truth_words
from hybrid_nb.core.scripts import command_modules

root = Path(__file__).parents[2]


def demo(target: Param("a folder", str, nargs="?", opt=False) = None,
         keep: bool = True,   # keep it
         restart: bool = False, # start anew
         max_steps: int = 3,  # at most
         words: Param("texts", str, nargs="+") = None):
    "A command."


def parsed(*words): return vars(CommandParser(demo).parse_args([str(w) for w in words]))


@pytest.mark.parametrize("name, default", [("keep", True), ("restart", False)])
def test_a_switch_means_what_it_says(name, default):
    assert parsed()[name] is default
    assert parsed(f"--{name}")[name] is True and parsed(f"--no-{name}")[name] is False
    for word, on in truth_words.items():
        for said in ([f"--{name}", word], [f"--{name}={word}"], [f"--{name}", word.upper()]):
            assert parsed(*said)[name] is on, said


def test_switches_beside_other_words():
    assert parsed("--restart", "runs/quick") == parsed("runs/quick", "--restart", "true")
    assert parsed("--restart", "off", "runs/quick")["target"] == "runs/quick"
    assert parsed("--max-steps", 5, "--no-keep")["max_steps"] == 5
    assert parsed("--words", "true", "off", "--keep")["words"] == ["true", "off"]
    assert parsed("--restart", "--", "true") == parsed("true", "--restart") | dict(target="true")
    assert parsed("--", "--max-steps")["target"] == "--max-steps" # after -- all words are themselves


@pytest.mark.parametrize("words, says", [
    (["--keep=maybe"], "argument --keep: 'maybe' is neither true nor false"),
    (["x", "--keep", "maybe"], "unrecognized arguments: maybe"),
    (["x", "--no-keep", "true"], "unrecognized arguments: true"),
    (["--no-keep=true"], "ignored explicit argument 'true'")])
def test_switches_that_say_nothing(words, says, capsys):
    with pytest.raises(SystemExit) as e: parsed(*words)
    error = capsys.readouterr().err
    assert e.value.code == 2 and says in error and len(error.splitlines()) == 1 and error.startswith("demo: ")


def test_help_of_switches():
    text = CommandParser(demo).format_help()
    assert re.search(r"--keep/--no-keep +keep it \(default: on\)\n", text), text
    assert re.search(r"--restart/--no-restart +start anew \(default: off\)\n", text), text
    assert text.startswith("usage: ") and text.splitlines()[0].endswith(" [target] [options]")
    assert re.search(r"--max_steps N +at most \(default: 3\)\n", text) and "None" not in text


def sweep_demo(seeds: int = 2, # how many
               set: SettingsParam("settings", ["steps", "batch_size"]) = None):
    "A command that takes settings."


@pytest.mark.parametrize("f, words, says", [
    (demo, ["--max-step", "3", "--kep"], "unrecognized arguments: --kep: did you mean --keep?"),
    (demo, ["--zzz"], "unrecognized arguments: --zzz (see"),
    (sweep_demo, ["--steps", "200"], "it is a setting, given as --set steps=200"),
    (sweep_demo, ["--batch-size=8"], "it is a setting, given as --set batch_size=8"),
    (sweep_demo, ["--seedz", "3"], "did you mean --seeds?")])
def test_misspelt_options(f, words, says, capsys):
    with pytest.raises(SystemExit) as e: CommandParser(f).parse_args(words)
    error = capsys.readouterr().err
    assert e.value.code == 2 and says in error and len(error.splitlines()) == 1, error


def notebook(path, *cells):
    "Write a notebook of code cells; a tuple states the kind of a cell."
    cells = [c if isinstance(c, tuple) else ("code", c) for c in cells]
    cells = [dict(cell_type=kind, id=f"c{i}", metadata={}, source=text,
                  **dict(outputs=[], execution_count=None) if kind == "code" else {})
             for i, (kind, text) in enumerate(cells)]
    path.write_text(json.dumps(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)))
    return str(path)


MIXER = """from torch import nn
from hybrid_nb.models.registry import register
@register('Q', 'a linear map', cache='none')
class Q(nn.Module):
    def __init__(self, config, layer_idx):
        super().__init__()
        self.map = nn.Linear(config.hidden_size, config.hidden_size)
    def forward(self, x, **context): return self.map(x)
"""


def test_a_notebook_with_magics(tmp_path):
    "It runs as in Jupyter, in a process of its own, and leaves no sign of an interactive shell."
    notebook(tmp_path/"own.ipynb", ("markdown", "# Mine ("), ("raw", "not Python ("),
             "%load_ext autoreload\n%autoreload 2", "%matplotlib inline", "!echo from a shell", "%%time\n" + MIXER,
             "%%bash\necho from bash", "display('shown')\nQ", "#| eval: false\n1/0",
             "files = !echo a; echo b\nprint(files)",
             "from IPython import get_ipython\nget_ipython().run_line_magic('pwd', '')",
             "import matplotlib.pyplot as plt\nplt.plot([1, 2]); plt.show()")
    (tmp_path/"script.py").write_text(
        "import builtins, sys\nimport IPython\nfrom hybrid_nb.core.commands import load_plugin\n"
        "before = {*sys.modules}, {*vars(builtins)}, list(sys.path)\n"
        "for _ in range(2): load_plugin('own.ipynb')\n"
        "from hybrid_nb.models.registry import mixers\nprint(mixers['Q'].make.__module__)\n"
        "new = {n for n in {*vars(builtins)} - before[1] if 'pybind11' not in n}\n" # a mark of compiled modules
        "print(hasattr(sys, 'ps1'), new, sys.path == before[2], IPython.get_ipython(), 'own' in sys.modules)\n")
    r = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True)
    assert r.returncode == 0, r.stderr
    assert r.stdout.splitlines() == ["own", "False set() True None False"]
    assert all(text in r.stderr for text in ("from a shell", "from bash", "shown", "['a', 'b']", "Wall time"))


@pytest.mark.parametrize("cells, says", [
    ([("markdown", "a"), "x = 1", "1/0"], ", code cell 2: ZeroDivisionError: division by zero"),
    (["x = 1", "def f(:"], ", code cell 2: SyntaxError: "),
    (["%nosuch"], ", code cell 1: UsageError: Line magic function `%nosuch` not found."),
    (["%%bash\nfalse"], ", code cell 1: CalledProcessError: "),
    (["import sys; sys.exit(3)"], ", code cell 1: SystemExit: 3")])
@pytest.mark.filterwarnings("ignore:To exit")
def test_a_notebook_that_fails(tmp_path, cells, says):
    with pytest.raises(ValueError) as e: load_plugin(path := notebook(tmp_path/"own.ipynb", *cells))
    assert str(e.value).startswith(f"plugin {path!r}{says}") and "\n" not in str(e.value)


def test_a_notebook_that_is_interrupted(tmp_path):
    with pytest.raises(KeyboardInterrupt): load_plugin(notebook(tmp_path/"own.ipynb", "raise KeyboardInterrupt"))


def test_a_notebook_named_as_a_module(tmp_path):
    "It does not hide the module from its own imports."
    load_plugin(notebook(tmp_path/"json.ipynb", "import json; json.loads('1')"))
    assert json.loads("2") == 2


def test_files_that_are_no_plugins(tmp_path, monkeypatch):
    (tmp_path/"broken.ipynb").write_text("{")
    (tmp_path/"list.ipynb").write_text("[1]")
    (tmp_path/"failing.py").write_text("raise RuntimeError('a\\nb')")
    (tmp_path/"needy.py").write_text("import no_such_module")
    for name, says in {"broken.ipynb": ": not a notebook", "list.ipynb": ": not a notebook",
                       "failing.py": ": RuntimeError: a b", "needy.py": ": ModuleNotFoundError: No module"}.items():
        with pytest.raises(ValueError, match=re.escape(says)): load_plugin(str(tmp_path/name))
    monkeypatch.setitem(sys.modules, "IPython", None) # as if it were not installed
    with pytest.raises(ValueError, match="pip install ipython"): load_plugin(notebook(tmp_path/"own.ipynb", "1"))


def test_every_console_script_is_in_the_table():
    config = ConfigParser(delimiters="=")
    config.read(root/"settings.ini", encoding="utf-8")
    named = dict(line.split("=") for line in config["DEFAULT"]["console_scripts"].split())
    assert named == {name: f"hybrid_nb.core.scripts:{name}" for name in command_modules}


SLOW = """
import sys, time
class Slow: # an import that takes its time, and loses exceptions
    def find_spec(self, module, *_):
        if module != {module!r}: return
        print("importing", flush=True)
        try: time.sleep(60)
        except BaseException: pass
sys.meta_path.insert(0, Slow())
sys.argv[0] = {name!r}
from hybrid_nb.core.scripts import {name} # from here on as pip writes it
sys.exit({name}())
"""


@pytest.mark.parametrize("name, module", [
    *((name, f"hybrid_nb.{module}") for name, module in command_modules.items()),
    ("hybrid_train", "torch"), ("hybrid_sweep", "transformers")])
def test_interrupted_while_it_imports(name, module, tmp_path):
    "Ctrl-C in the first seconds: one line, exit code 130."
    words = ["--pattern", "A"] if name == "hybrid_train" else ["x"]
    process = subprocess.Popen([sys.executable, "-c", SLOW.format(name=name, module=module), *words], text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path)
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=30)
    assert (process.returncode, error, out) == (130, f"{name}: interrupted\n", "")


def test_a_command_that_ignores_interrupts_goes_on(tmp_path):
    "As one does that was started with nohup."
    code = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n" + SLOW.replace("sleep(60)", "sleep(1)")
    process = subprocess.Popen([sys.executable, "-c", code.format(name="hybrid_checkpoints", module="pandas"), "none"],
                               text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path)
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1] == "hybrid_checkpoints: folder 'none': no such folder\n"
