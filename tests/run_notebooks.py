"""Tests notebooks one after the other: `python tests/run_notebooks.py [--slow] FOLDER_OR_NOTEBOOK…`

As `nbdev_test --path NOTEBOOK`, each in a process of its own, since a notebook defines operators that others import.
Here it is a fork of this process, which has imported what takes most notebooks longest, and nothing of ours.
"""
import os, subprocess, sys, time
from pathlib import Path
import numba, pandas, torch # noqa: F401
from nbdev.test import test_nb
from transformers import PreTrainedModel # noqa: F401

root = Path(__file__).parent.parent


def failed(notebook, slow):
    if "TRITON_INTERPRET" in notebook.read_text(encoding="utf-8"): # is read when triton is imported: not in a fork
        nbdev_test = [str(Path(sys.executable).with_name("nbdev_test")), "--path", str(notebook)]
        return subprocess.run([*nbdev_test, *["--flags", "slow"]*slow], cwd=root).returncode
    if pid := os.fork(): return os.waitpid(pid, 0)[1]
    sys.path.pop(0) # this folder
    try: passed, _ = test_nb(notebook, skip_flags=["slow"], force_flags=["slow"]*slow, basepath=root)
    except BaseException as e: passed = print(e, file=sys.stderr)
    sys.stdout.flush(); sys.stderr.flush()
    os._exit(not passed)


if __name__ == "__main__":
    slow, codes = "--slow" in sys.argv, []
    given = [Path(a).absolute() for a in sys.argv[1:] if a != "--slow"]
    for notebook in [p for g in given for p in (sorted(g.rglob("[!.]*.ipynb")) if g.is_dir() else [g])]:
        if "triton" in notebook.stem and sys.platform != "linux": continue # it comes with Linux only
        start = time.time()
        codes.append(failed(notebook, slow))
        result = "failed" if codes[-1] else "passed"
        print(f"{notebook.relative_to(root)}: {result} in {time.time() - start:.1f} s", flush=True)
    print(f"{codes.count(0)} passed, {len(codes) - codes.count(0)} failed")
    sys.exit(any(codes))
