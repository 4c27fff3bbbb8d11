"The notebooks are the source: what is exported from them, cleaned and rendered must be what is committed."
import filecmp, json, re, shutil, subprocess, sys
from pathlib import Path
import pytest

root = Path(__file__).parent.parent
tools = Path(sys.executable).parent
notebooks = sorted([*(root/"nbs").glob("*.ipynb"), *(root/"reports"/f"{name}.ipynb" for name in ("train", "results", "compare"))])


def run(*args, cwd):
    r = subprocess.run([str(a) for a in args], cwd=cwd, capture_output=True, text=True)
    assert r.returncode == 0, r.stdout + r.stderr


def test_package_is_what_the_notebooks_export(tmp_path):
    for name in "settings.ini", "setup.py", "pyproject.toml": shutil.copy(root/name, tmp_path)
    for name in "nbs", "hybrid_nb": shutil.copytree(root/name, tmp_path/name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    for module in (tmp_path/"hybrid_nb").glob("*.py"): module.unlink()
    (tmp_path/"hybrid_nb"/"__init__.py").touch()
    run(tools/"nbdev_export", cwd=tmp_path)
    here, there = ({p.name for p in (r/"hybrid_nb").glob("*.py")} for r in (root, tmp_path))
    differ = [n for n in sorted(here | there) if n not in here & there or not filecmp.cmp(root/"hybrid_nb"/n, tmp_path/"hybrid_nb"/n, shallow=False)]
    assert not differ, f"run nbdev_export: {', '.join(differ)} differ from the notebooks"


def test_notebooks_are_clean(tmp_path):
    shutil.copy(root/"settings.ini", tmp_path)
    (tmp_path/"copies").mkdir()
    for p in notebooks: shutil.copy(p, tmp_path/"copies"/p.name)
    run(tools/"nbdev_clean", "--fname", "copies", cwd=tmp_path)
    for p in notebooks: assert json.loads((tmp_path/"copies"/p.name).read_text()) == json.loads(p.read_text()), f"run nbdev_clean: {p.name} holds metadata"


@pytest.mark.parametrize("path", notebooks, ids=lambda p: p.name)
def test_no_notebook_holds_an_error(path):
    outputs = [o for c in json.loads(path.read_text())["cells"] for o in c.get("outputs", [])]
    assert not [o for o in outputs if o["output_type"] == "error"]


def test_readme_is_what_the_index_renders(tmp_path):
    run("make", "-s", "readme", f"README={tmp_path/'README.md'}", cwd=root)
    assert (tmp_path/"README.md").read_text() == (root/"README.md").read_text(), "run make readme"


def test_links_of_the_readme_lead_somewhere():
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", (root/"README.md").read_text())
    missing = [t for t in targets if not t.startswith("http") and not (root/t).exists()]
    assert len(targets) > 10 and not missing, missing
