"A file of metrics that is very large."
import pytest
from helpers.make_study import make_run
from hybrid_nb.use.run_progress import recent_metrics, run_row


def test_only_the_end_of_a_file_is_read(tmp_path):
    "A file of a terabyte, most of which takes no room on the disk."
    run = make_run(tmp_path/"runs"/"s", "AM", 0, status="interrupted")
    with open(run/"metrics.jsonl", "r+b") as f:
        end = f.read()
        try: f.seek(2**40)
        except OSError: pytest.skip("the file system has no sparse files")
        try: f.write(b"\n" + end)
        except OSError: pytest.skip("the file system has no sparse files of this size")
    row = run_row(run)
    assert row["step"] == 100 and row["val_loss"] == recent_metrics(run)[-1]["val_loss"]
