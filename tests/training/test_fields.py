"Settings in signatures: what `help`, completion and the classes themselves say."
import pydoc, subprocess, sys
from inspect import Parameter, signature
import pytest
import hybrid_nb as hn
from hybrid_nb.training.config import config_fields, configs
from hybrid_nb.training.fields import all_settings, read_settings


def test_help_lists_every_setting():
    "With type, default and meaning."
    text = pydoc.render_doc(hn.train_run, renderer=pydoc.plaintext)
    for s in all_settings().values(): assert f"{s.name}:" in text, s.name
    assert "learning_rate: float = 0.0004 # at the peak" in text
    assert "rope_theta: float|None = 10000.0 # base of the rotary positions" in text


def test_signature_is_keyword_only():
    parameters = signature(hn.train_run).parameters
    for s in all_settings().values():
        if s.name == "pattern": continue # the function has its own
        p = parameters[s.name]
        assert p.kind == Parameter.KEYWORD_ONLY and p.default == s.default and p.annotation == s.type, s.name
    assert not [p for p in parameters.values() if p.kind == Parameter.VAR_KEYWORD]


def test_completion():
    "As in JupyterLab, which asks IPython."
    completer, code = pytest.importorskip("IPython.core.completer"), "hn.train_run('AM', gradient_acc"
    ipython = completer.IPCompleter(namespace=dict(hn=hn))
    with completer.provisionalcompleter(): found = [c.text for c in ipython.completions(code, len(code))]
    assert found == ["gradient_accumulation_steps="]


def test_a_misspelt_setting_is_refused():
    with pytest.raises(ValueError, match="setting 'lenght': unknown .did you mean 'length'"):
        hn.train_run("AM", lenght=3)


def test_config_fields_are_those_of_the_classes():
    for cls in configs:
        for s in config_fields(cls): assert getattr(cls, s.name) == s.default and s.name in cls.__annotations__


def test_only_plain_values(tmp_path, monkeypatch):
    "What cannot be read without running the module is refused, not guessed."
    odd = "from pathlib import Path\nclass C:\n    n: int = 3 # a\n    p: Path = None\n"
    even = "class C:\n    n: int|None = -1 # a\n    s: str = 'x'\n    def f(self): pass\n"
    (tmp_path/"odd_settings.py").write_text(odd); (tmp_path/"even_settings.py").write_text(even)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(NameError): read_settings("odd_settings", "C")
    assert [(s.name, s.types[0], s.default, s.help) for s in read_settings("even_settings", "C")] == [
        ("n", int, -1, "a"), ("s", str, "x", "")]


def test_import_without_torch():
    code = "import sys, hybrid_nb.training.fields, hybrid_nb.training.trackers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
