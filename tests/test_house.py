"""The rule of the house: chapters import only chapters above them, without circles, at the top; a name means one thing.

`python tests/test_house.py` lists the longest exported cells and hidden test cells.
"""
import ast, json, re, subprocess, sys
from collections import defaultdict
from configparser import ConfigParser
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from pathlib import Path
import pytest
import hybrid_nb

root = Path(__file__).parent.parent
chapters = "core mixers models data audit training study use".split()
heavy = set("""IPython accelerate datasets fsspec ipywidgets matplotlib nbconvert nbdev nbformat numba pandas papermill
    prompt_toolkit psutil pyarrow pygments pynvml ray resource rich safetensors tensorboard tokenizers torch
    traitlets transformers triton wandb zstandard""".split()) # or optional; `resource` is missing on Windows
modules = {f"{p.parent.name}.{p.stem}": ast.parse(p.read_text(encoding="utf-8"))
           for p in sorted((root/"hybrid_nb").glob("*/*.py")) if p.name != "__init__.py"}
notebooks = [p for folder in ("nbs", "reports") for p in sorted((root/folder).rglob("[!.]*.ipynb"))
             if ".ipynb_checkpoints" not in p.parts] # of JupyterLab


def nodes(tree, *kinds): return [n for n in ast.walk(tree) if isinstance(n, kinds)]


def imports(tree, module=""):
    "All imports in `tree`, a part of `module`, as (alias, module, name); our own modules as `chapter.module`."
    for n in nodes(tree, ast.Import):
        for a in n.names: yield a.asname or a.name, a.name.removeprefix("hybrid_nb."), None
    for n in nodes(tree, ast.ImportFrom):
        parts = ["hybrid_nb", *module.split(".")]
        home = ".".join([*parts[:len(parts) - n.level], *filter(None, [n.module])]) if n.level else n.module
        home = home.removeprefix("hybrid_nb").removeprefix(".")
        for a in n.names:
            inner = f"{home}.{a.name}" # a module, if it is one of ours
            if inner in modules: yield a.asname or a.name, inner, None
            else: yield a.asname or a.name, home or hybrid_nb._home.get(a.name, a.name), a.name


def uses(tree, module=""):
    "Pairs (module, name) of what is imported, or taken from an imported module as an attribute."
    aliases = {alias: to for alias, to, name in imports(tree, module) if not name}
    for _, to, name in imports(tree, module): yield to, name
    for n in nodes(tree, ast.Attribute):
        if to := aliases.get(ast.unparse(n.value)):
            yield hybrid_nb._home.get(n.attr, n.attr) if to == "hybrid_nb" else to, n.attr # the top level finds names


def none(found):
    found = [str(x) for x in found]
    assert not found, "\n  ".join(["", *found])


def arrows(m): return {to for to, _ in uses(modules[m], m)} & modules.keys()


def test_chapters_import_only_chapters_above_them():
    rank = {m: chapters.index(m.split(".")[0]) for m in modules}
    none(f"{m} imports {to}" for m in modules for to in sorted(arrows(m)) if rank[to] > rank[m])


def test_modules_do_not_import_each_other_in_circles():
    try: TopologicalSorter({m: arrows(m) for m in modules}).prepare()
    except CycleError as e: pytest.fail(" imports ".join(reversed(e.args[1])))


def test_imports_stand_at_the_top():
    "But for what is heavy or optional, and our own kernels, which import numba or triton at their top."
    needs, kernels = defaultdict(set), {"numba", "triton"}
    for m, tree in modules.items():
        for n in tree.body:
            if isinstance(n, (ast.Import, ast.ImportFrom)): needs[m] |= {to for _, to, _ in imports(n, m)}
    while more := {m for m in modules if needs[m] & kernels} - kernels: kernels |= more
    functions = {m: nodes(tree, ast.FunctionDef, ast.AsyncFunctionDef) for m, tree in modules.items()}
    inside = {(m, to) for m in modules for f in functions[m] for _, to, _ in imports(f, m)}
    late = {(m, to) for m, to in inside if to not in kernels and to.split(".")[0] not in heavy}
    none(f"{m} imports {to} inside a function" for m, to in sorted(late))


def test_private_names_stay_in_their_module():
    cells = {str(p.relative_to(root)): re.sub(r"(?m)^[%!].*", "", "\n".join(code_cells(p))) for p in notebooks}
    for who, code in (modules | {p: ast.parse(text, p) for p, text in cells.items()}).items():
        used = {(to, name) for to, name in uses(code, who) if to in modules and name}
        none(f"{who} uses {to}.{name}" for to, name in sorted(used) if name[0] == "_" and name[-2:] != "__")


def test_a_public_name_is_defined_once():
    homes = defaultdict(list)
    for m, tree in modules.items():
        [names] = [n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__all__"]
        for name in ast.literal_eval(names): homes[name].append(m)
    none(f"{name} in {where}" for name, where in homes.items() if len(where) > 1)


def test_no_name_is_one_that_jupyter_writes():
    "Where a notebook is run cell by cell, `_16` and `_i16` are the output and the input of its cell 16."
    none(f"{m}: {n.id}" for m, tree in modules.items() for n in nodes(tree, ast.Name)
         if isinstance(n.ctx, ast.Store) and re.fullmatch(r"_i?\d+|_i+|__+|_[iod]h", n.id))


def code_cells(notebook):
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]


def length(source): return sum(bool(l.strip()) and not l.startswith("#|") for l in source.splitlines())


def long_cells(kind, above):
    "Notebook, lines and first line of cells of a kind (export, hide); cells that only import do not count."
    mine = [p for p in notebooks if root/"nbs" in p.parents]
    cells = [(p, s) for p in mine for s in code_cells(p) if re.match(rf"#\|\s*{kind}", s)]
    return sorted((length(s), p.name, s.splitlines()[1]) for p, s in cells if length(s) > above)[::-1]


def test_hidden_test_cells_are_short(): none(long_cells("hide", 20)) # move longer ones to tests/


def test_lines_of_code_fit_the_page():
    none(f"{p.name}: {l}" for p in notebooks for s in code_cells(p) for l in s.splitlines() if len(l) > 120)
    lines = [(p, l) for p in (root/"hybrid_nb").glob("*/*.py") for l in p.read_text(encoding="utf-8").splitlines()]
    none(f"{p.name}: {l}" for p, l in lines if len(l) > 120 and not l.startswith("__all__ = ")) # that is nbdev's


def test_the_top_level_is_quick_and_finds_its_names():
    code = "import sys, hybrid_nb; sys.exit(bool({'torch', 'numpy'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0
    none({p.stem for p in (root/"hybrid_nb").iterdir()} & set(hybrid_nb.__all__)) # they would hide the name
    assert all(getattr(hybrid_nb, name) is not None for name in hybrid_nb.__all__)


def test_console_scripts_are_found():
    config = ConfigParser(delimiters="=")
    config.read(root/"settings.ini", encoding="utf-8")
    for line in config["DEFAULT"]["console_scripts"].split():
        module, name = line.split("=")[1].split(":")
        assert callable(getattr(import_module(module), name)), line


if __name__ == "__main__":
    for kind, above in dict(export=40, hide=20).items(): print(kind, *long_cells(kind, above), sep="\n  ")
