"A folder to run the training command in, and processes that run it."
import json, os, socket, subprocess, sys
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

def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]

class Forks:
    "Processes without the seconds of their imports; see forks.py."
    def __init__(self):
        self.server = subprocess.Popen([sys.executable, str(Path(__file__).with_name("forks.py"))], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, *commands, env=({},)) -> list: # of subprocess.CompletedProcess
        "Run Python scripts with their arguments at once, each with more variables in its environment."
        files = [[str(Path(f"forked-{i}.{s}").resolve()) for s in ("out", "err")] for i in range(len(commands))]
        for pair in files:
            for f in pair: Path(f).write_text("")
        jobs = [dict(argv=list(c), env=e, cwd=os.getcwd(), out=out, err=err) for c, e, (out, err) in zip(commands, env, files, strict=True)]
        self.server.stdin.write(json.dumps(jobs) + "\n"); self.server.stdin.flush()
        codes = json.loads(self.server.stdout.readline())
        return [subprocess.CompletedProcess(c, code, *(Path(f).read_text() for f in pair)) for c, code, pair in zip(commands, codes, files)]

    def ranks(self, n, *command) -> list: # of subprocess.CompletedProcess; where one failed, the others may have been killed
        "One command in `n` processes that find each other as those of `torchrun` do."
        shared = dict(WORLD_SIZE=n, LOCAL_WORLD_SIZE=n, MASTER_ADDR="127.0.0.1", MASTER_PORT=free_port())
        return self.run(*[command]*n, env=[{k: str(v) for k, v in (shared | dict(RANK=i, LOCAL_RANK=i)).items()} for i in range(n)])

    def close(self):
        self.server.stdin.close()
        self.server.wait()
