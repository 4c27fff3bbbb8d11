"""Serves tests with processes: a line of JSON on standard input asks for some to run at once, a line back gives their
exit codes.

Each is a fork of this process, which has imported the package: a process of its own, which can be killed and ends as
any other, without the seconds of its imports.
"""
import json, os, runpy, signal, sys
import hybrid_nb.training.runner # noqa: F401 (what the forks need)


def become(argv, env, cwd, out, err):
    "What the interpreter does before it runs a script."
    os.environ.update(env)
    os.chdir(cwd)
    for fd, path in enumerate((os.devnull, out, err)): os.dup2(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), fd)
    signal.alarm(900) # hangs at most so long
    sys.argv = argv
    runpy.run_path(argv[0], run_name="__main__")
    sys.exit()


for line in sys.stdin:
    pids, codes = [], {}
    for job in json.loads(line):
        pids.append(os.fork())
        if not pids[-1]: become(**job)
    while len(codes) < len(pids):
        pid, status = os.wait()
        codes[pid] = os.waitstatus_to_exitcode(status)
        if status: [os.kill(p, signal.SIGKILL) for p in pids if p not in codes] # they would wait for it in vain
    print(json.dumps([codes[p] for p in pids]), flush=True)
