"A folder to run the training command in."
import os
from contextlib import contextmanager
from pathlib import Path
import pytest, torch

SCRIPT = "from hybrid_nb.train import hybrid_train\nhybrid_train()\n" # what the installed console script does

@contextmanager
def lab_in(folder):
    "Work in `folder` with the script, a cache of its own, and one thread in child processes."
    (folder/"hybrid_train").write_text(SCRIPT)
    with pytest.MonkeyPatch.context() as mp:
        mp.setenv("HYBRID_NB_CACHE", str(folder/"cache"))
        mp.setenv("PYTHONPATH", str(Path(__file__).parent.parent), prepend=os.pathsep)
        mp.setenv("OMP_NUM_THREADS", "1")
        mp.chdir(folder)
        threads = torch.get_num_threads()
        yield
        torch.set_num_threads(threads)
