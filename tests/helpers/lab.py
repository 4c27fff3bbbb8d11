"A folder to run the training command in, and processes that run it."
import json, os, random, runpy, socket, subprocess, sys
from contextlib import contextmanager
from pathlib import Path
import pytest, torch

SCRIPT = "from hybrid_nb.training.cli import hybrid_train\nhybrid_train()\n" # what the installed console script does
SMALL = dict(hidden_size=32, num_attention_heads=2, state_size=4, vocab_size=280, length=32, batch_size=4,
             learning_rate=3e-3, eval_every=10, eval_batches=2, log_every=3, recall_documents=0, threads=1)


@contextmanager
def lab_in(folder):
    "Work in `folder` with the script, a cache of its own, and one thread in child processes."
    (folder/"hybrid_train").write_text(SCRIPT)
    with pytest.MonkeyPatch.context() as mp:
        mp.setenv("HYBRID_NB_CACHE", str(folder/"cache"))
        mp.setenv("PYTHONPATH", str(Path(__file__).parents[2]), prepend=os.pathsep)
        mp.setenv("OMP_NUM_THREADS", "1")
        mp.chdir(folder)
        threads = torch.get_num_threads()
        yield
        torch.set_num_threads(threads)


def write_corpus(path):
    "Eighty documents of a small made-up language, as JSON lines."
    rng = random.Random(0)
    words = "the a red old cat dog house river saw left near under".split()
    def sentence(): return " ".join(rng.choice(words) for _ in range(9)).capitalize() + "."
    rows = [json.dumps(dict(text=" ".join(sentence() for _ in range(12)))) for _ in range(80)]
    Path(path).write_text("\n".join(rows) + "\n")


def flags(**settings):
    "Settings of a small run on `corpus.jsonl` as words of a command line."
    given = SMALL | dict(corpus="corpus.jsonl", quiet=True) | settings
    return [x for k, v in given.items() if v is not False for x in ([f"--{k}"] if v is True else [f"--{k}", str(v)])]


def command(*args):
    "The command in this process: its exit code."
    with pytest.MonkeyPatch.context() as mp:
        mp.setattr(sys, "argv", ["hybrid_train", *args])
        try: runpy.run_path("hybrid_train", run_name="__main__")
        except SystemExit as e: return e.code
    return 0


def lines(run):
    "Metrics of a run without what depends on the clock."
    records = map(json.loads, (Path(run)/"metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in r.items() if k not in ("time", "tokens_per_second")} for r in records]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Forks:
    "Processes without the seconds of their imports; see forks.py."
    def __init__(self):
        server = [sys.executable, str(Path(__file__).with_name("forks.py"))]
        self.server = subprocess.Popen(server, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, *commands, env=({},)) -> list: # of subprocess.CompletedProcess
        "Run Python scripts with their arguments at once, each with more variables in its environment."
        files = [[str(Path(f"forked-{i}.{s}").resolve()) for s in ("out", "err")] for i in range(len(commands))]
        for pair in files:
            for f in pair: Path(f).write_text("")
        jobs = [dict(argv=list(c), env=e, cwd=os.getcwd(), out=out, err=err)
                for c, e, (out, err) in zip(commands, env, files, strict=True)]
        self.server.stdin.write(json.dumps(jobs) + "\n"); self.server.stdin.flush()
        codes = json.loads(self.server.stdout.readline())
        return [subprocess.CompletedProcess(c, code, *(Path(f).read_text() for f in pair))
                for c, code, pair in zip(commands, codes, files)]

    def ranks(self, n, *command) -> list: # of CompletedProcess; where one failed, the others may have been killed
        "One command in `n` processes that find each other as those of `torchrun` do."
        shared = dict(WORLD_SIZE=n, LOCAL_WORLD_SIZE=n, MASTER_ADDR="127.0.0.1", MASTER_PORT=free_port())
        env = [{k: str(v) for k, v in (shared | dict(RANK=i, LOCAL_RANK=i)).items()} for i in range(n)]
        return self.run(*[command]*n, env=env)

    def close(self):
        self.server.stdin.close()
        self.server.wait()
