"A wheel, made from the source distribution, sweeps, reports and chats in a fresh environment, without the repository."
import os, shutil, subprocess, sys, sysconfig, tarfile, venv, zipfile
from pathlib import Path
import pytest

pytestmark = pytest.mark.more
root = Path(__file__).parent.parent
pip = sys.executable, "-m", "pip", "--disable-pip-version-check"
parts = """hybrid_nb reports setup.py settings.ini pyproject.toml MANIFEST.in README.md LICENSE CHANGELOG.md
           constraints.txt""".split()
tiny = dict(steps=4, batch_size=2, length=32, hidden_size=16, num_attention_heads=2, state_size=4, max_documents=100,
            vocab_size=300, eval_every=2, eval_batches=2, recall_documents=5, device="cpu", threads=1)


def run(*args, cwd, **kw):
    r = subprocess.run([str(a) for a in args], cwd=cwd, capture_output=True, text=True, **kw)
    assert r.returncode == 0, r.stdout + r.stderr
    return r.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    "The wheel that the source distribution builds; neither touches the repository."
    folder = tmp_path_factory.mktemp("build")
    (source := folder/"source").mkdir()
    for name in parts: (shutil.copytree if (root/name).is_dir() else shutil.copy)(root/name, source/name)
    build = f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})"
    run(sys.executable, "-c", build, cwd=source)
    [sdist] = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as f: f.extractall(folder/"unpacked", filter="data")
    [unpacked] = (folder/"unpacked").iterdir()
    run(*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, unpacked, cwd=folder)
    [wheel] = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    "The console scripts of a fresh environment, which sees the packages of this one, but not the repository."
    env = tmp_path_factory.mktemp("installed")
    venv.create(env, with_pip=False)
    run(*pip, "--python", env/"bin"/"python", "install", "-q", "--no-deps", "--no-index", wheel, cwd=env)
    [site] = env.glob("lib/python*/site-packages")
    (site/"others.pth").write_text(sysconfig.get_path("purelib") + "\n") # .pth files there, as ours, are not read
    return env/"bin"


def test_the_wheel_holds_what_is_not_python(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"hybrid_nb/templates/{name}.ipynb" for name in ("train", "results", "compare")} <= names
    here = {str(p.relative_to(root)) for p in (root/"hybrid_nb").rglob("*") if p.suffix in (".py", ".css", ".js")}
    assert here <= names and any(n.endswith("licenses/LICENSE") for n in names)
    assert not [n for n in names if n.startswith(("tests/", "nbs/", "reports/")) or "__pycache__" in n]


def test_a_sweep_a_report_and_a_chat(installed, tmp_path):
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    env |= dict(OMP_NUM_THREADS="1", HYBRID_NB_CACHE=str(tmp_path/"cache"), XDG_STATE_HOME=str(tmp_path/"state"),
                JUPYTER_PATH=str(Path(sys.prefix)/"share"/"jupyter")) # where nbconvert finds its pages
    def call(name, *args, **kw): return run(installed/name, *args, cwd=tmp_path, env=env, **kw)
    show = "import sys, hybrid_nb; print(hybrid_nb.__file__, *sys.path, sep='\\n')"
    where, *path = call("python", "-c", show).splitlines()
    assert where.startswith(str(installed.parent)) and str(root) not in path

    settings = [f"{k}={v}" for k, v in tiny.items()]
    call("hybrid_sweep", "--study", "s", "--patterns", "AM MA", "--seeds", "1", "--set", *settings)
    assert all((tmp_path/"runs"/"s"/run/"summary.json").exists() for run in ("AM-s0", "MA-s0"))
    call("hybrid_report", "runs/s", "--out", "s.html")
    page = (tmp_path/"s.html").read_text(encoding="utf-8")
    assert all(part in page for part in ("<style>", "<script>", ":root", "AM", "MA")) and (tmp_path/"s.ipynb").exists()
    call("hybrid_report", "--compare", "runs/s", "runs/s", "--out", "twice.html")
    assert call("hybrid_chat", "runs/s", "--tokens", "5", input="Once upon a time\n").strip()
    assert "AM" in call("hybrid_checkpoints")
