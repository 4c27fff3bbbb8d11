"The command hybrid_probe: from patterns to a file of accuracies and a figure, in processes of its own."
import json, os, subprocess, sys
from pathlib import Path

SCRIPT = """from hybrid_nb.study.task_runs import hybrid_probe
if __name__ == '__main__': hybrid_probe()
""" # what the installed console script does


def test_probe_command_trains_in_two_processes(tmp_path):
    (tmp_path/"hybrid_probe").write_text(SCRIPT)
    env = os.environ | dict(PYTHONPATH=str(Path(__file__).parents[2]))
    args = "A G --tasks induction recall:seq_len=16 --scale 0.02 --jobs 2 --out few.json --quiet --set hidden_size=32"
    words = [sys.executable, "hybrid_probe", *args.split()]
    r = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert r.returncode == 0 and "recall:seq_len=16" in r.stdout, r.stderr
    record = json.loads((tmp_path/"few.json").read_text())
    assert r.stderr.splitlines()[-1] in ("now: hybrid_train --pattern A", "now: hybrid_train --pattern G")
    expected = [(p, *t) for t in (("induction", 12), ("recall:seq_len=16", 20)) for p in ("A", "G")]
    assert [(x["pattern"], x["label"], x["steps"]) for x in record["runs"]] == expected
    assert all(x["parameters"] > 3000 and 0 <= x["accuracy"] < .9 for x in record["runs"])
    assert record["settings"]["model_settings"] == {"hidden_size": 32}
    assert (tmp_path/"few.png").stat().st_size > 5000
