"The monitor beside real processes: a live run, stopped, killed and finished; terminals, pipes and logs; damaged files."
import json, os, pty, random, re, signal, subprocess, sys, threading, time
import pandas as pd, pytest
from rich.console import Console
from helpers.make_study import make_run, make_study
from helpers.stand_in_nvml import Nvml, h200
from hybrid_nb.core.runs import run_lock
from hybrid_nb.use.devices import load_nvml
from hybrid_nb.use.monitor import log_columns, Monitor, monitor_lines, monitor_table, MonitorLog
from hybrid_nb.use.run_progress import RunWatcher

@pytest.fixture(scope="module")
def script(tmp_path_factory):
    "The console script, as pip would write it."
    path = tmp_path_factory.mktemp("bin")/"hybrid_monitor"
    path.write_text("import sys\nfrom hybrid_nb.use.monitor import hybrid_monitor\nsys.exit(hybrid_monitor())\n")
    return [sys.executable, str(path)]

@pytest.fixture
def start(script, tmp_path):
    "Start the monitor in the folder above `runs`."
    def start(*args, **kw):
        options = dict(cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        return subprocess.Popen(script + [str(a) for a in args], **options | kw)
    return start

@pytest.fixture
def once(start):
    def once(*args):
        process = start("--once", *args)
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err
    return once

def wait_for(condition, seconds=300):
    end = time.time() + seconds
    while not condition():
        assert time.time() < end, "waited in vain"
        time.sleep(.02)

train = """
import sys
from hybrid_nb.training.runner import train_run
train_run("A", study="s", runs="runs", cache_dir="cache", steps=int(sys.argv[1]), batch_size=2, length=32,
          hidden_size=16, num_attention_heads=2, max_documents=100, vocab_size=300, eval_every=50, eval_batches=1,
          recall_documents=0, log_every=1, checkpoint_every=100, save_best=False, device="cpu", threads=1,
          progress=False)
"""

def age(run, seconds):
    "Make the files of a run look as if nothing had happened for so long."
    for name in "config.json", "metrics.jsonl": os.utime(run/name, (time.time() - seconds,)*2)

def test_a_run_is_followed_from_start_to_end(tmp_path, once):
    run, steps = tmp_path/"runs"/"s"/"A-s0", 400
    (tmp_path/"runs").mkdir()
    watcher, statuses = RunWatcher(tmp_path/"runs"), []
    def state():
        rows = watcher.look()
        statuses.append(rows[0]["status"] if rows else None)
        return rows[0] if rows else {}
    process = subprocess.Popen([sys.executable, "-c", train, str(steps)], cwd=tmp_path)
    try:
        wait_for(lambda: (state().get("step") or 0) >= 60) # the run got its lock although we looked all the time
        process.send_signal(signal.SIGSTOP)
        time.sleep(.1)
        step = json.loads((run/"metrics.jsonl").read_text().split("\n")[-2])["step"]
        assert step < steps/2
        code, out, err = once()
        assert code == 0 and err == "" and "ALERT" not in out, out + err
        [line] = [l for l in out.splitlines() if " run " in l]
        loss = r"\d\.\d{4}"
        assert re.search(rf" run s/A-s0  running  step {step}/400 \d+%  loss {loss}  val loss {loss}  "
                         r"tokens/s [\d,]+  left \d[\w ]+$", line), line

        age(run, 3600)
        code, out, err = once()
        assert code == 0 and f"ALERT stalled at step {step}: silent for 1 h 00 min" in out, out
        assert " left " not in out, out
        process.send_signal(signal.SIGCONT)
        wait_for(lambda: state()["step"] > step and not state()["alert"])
    finally: process.kill(); process.wait()

    code, out, err = once("s", "--log", "log.jsonl")
    alert = r"s/A-s0  interrupted .* ALERT interrupted at step \d+: no process trains it"
    assert code == 0 and re.search(alert, out), out
    logged = map(json.loads, (tmp_path/"log.jsonl").read_text().splitlines())
    assert [r["alert"] for r in logged if r["kind"] == "run"] == [state()["alert"]]
    code, out, err = once("--fail_on_alert")
    assert code == 1 and err.count("\n") == 1, err
    assert err.startswith("hybrid_monitor: RuntimeError: s/A-s0 interrupted at step"), err

    process = subprocess.Popen([sys.executable, "-c", train, str(steps)], cwd=tmp_path)
    wait_for(lambda: state()["status"] == "running")
    wait_for(lambda: state()["status"] == "finished")
    assert process.wait() == 0 and not {"failed", "broken"} & set(statuses), set(statuses)
    code, out, err = once("--finished", "--fail_on_alert")
    assert code == 0 and "s/A-s0  finished  step 400/400 100%" in out and "1 finished" in out, out + err

@pytest.fixture
def runs(tmp_path):
    make_study(tmp_path/"runs"/"demo", seeds=1)
    make_run(tmp_path/"runs"/"demo", "AMAMAMAM", 1, status="interrupted")
    return tmp_path/"runs"

@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("name", ["log.csv", "log.jsonl"])
def test_a_watch_in_a_pipe_ends_politely_and_leaves_a_log(tmp_path, runs, start, name, stop):
    live = make_run(runs/"demo", "MAMAMAMA", 1, status="interrupted")
    with run_lock(live):
        process = start("--every", ".1", "--log", name)
        wait_for(lambda: (tmp_path/name).exists() and (tmp_path/name).read_text().count("MAMAMAMA-s1") >= 3)
        process.send_signal(stop)
        out, err = process.communicate(timeout=300)
    assert process.returncode == 0 and err == "" and "\x1b" not in out, err
    assert len(re.findall(r"^[\dT:Z-]+ run demo/MAMAMAMA-s1  running  step 100/200 50%", out, re.M)) >= 3
    assert out.count(" runs 1 running, 6 finished, 1 interrupted\n") >= 3
    log = pd.read_csv(tmp_path/name) if name.endswith("csv") else pd.read_json(tmp_path/name, lines=True)
    assert set(log.columns) <= set(log_columns)
    assert len(log) == len(log.dropna(subset=["time", "kind", "name"]))
    log.time = pd.to_datetime(log.time)
    runs_of = log[log.kind == "run"].groupby("name")
    times = runs_of.status.count()
    assert times["AMAMAMAM-s1"] == 1 and times["MAMAMAMA-s1"] >= 3 and len(runs_of) == 2
    assert runs_of.alert.first()["AMAMAMAM-s1"].startswith("interrupted at step 100")
    assert log[log.kind == "device"].memory_used.gt(0).any()

def test_two_monitors_share_a_log(tmp_path, runs):
    look = Monitor(runs).look()
    def write():
        log = MonitorLog(tmp_path/"log.jsonl")
        for _ in range(50): log.append(look)
    threads = [threading.Thread(target=write) for _ in range(4)]
    for t in threads: t.start()
    for t in threads: t.join()
    records = [json.loads(l) for l in (tmp_path/"log.jsonl").read_text().splitlines()]
    assert len(records) == 4*(50*len(look["devices"]) + 1)

def test_a_table_in_a_terminal(tmp_path, runs, start):
    (here, there), seen = pty.openpty(), b""
    env = os.environ | dict(TERM="xterm", COLUMNS="80", LINES="40")
    process = start("--every", ".1", stdout=there, stderr=there, env=env)
    os.close(there)
    while seen.count(b"interrupted at step 100") < 3: seen += os.read(here, 4096)  # drawn three times
    process.send_signal(signal.SIGINT)
    try:
        while more := os.read(here, 4096): seen += more
    except OSError: pass  # the other end is closed
    assert process.wait(60) == 0
    text = seen.decode()
    assert "─" in text and "\x1b[1A" in text, "not redrawn in place"
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1, "the cursor is left hidden"

def test_a_reader_that_stops_reading(runs, start):
    process = start("--every", ".05")
    process.stdout.readline(); process.stdout.close()
    assert process.wait(60) == 0 and process.stderr.read() == ""

@pytest.mark.parametrize("args, message", [
    (["--runs", "none"], "runs 'none': no such folder"), (["x"], "study 'x': no such folder in runs (there: demo)"),
    (["--every", "0"], "every 0.0: must be a number of seconds above 0"), (["--every", "-1"], "every -1.0: must be"),
    (["--every", "nan"], "every nan: must be"), (["--every", "soon"], "invalid float value: 'soon'"),
    (["--log", "log.txt"], "log 'log.txt': must end in .csv or .jsonl"),
    (["--log", "no/log.csv"], "log 'no/log.csv': no folder 'no'"),
    (["--hot", "nan"], "hot nan: must be a number above 0"),
    (["--idle", "101"], "idle 101.0: must be a number between 0 and 100"),
    (["--stall", "0"], "stall 0.0: must be a number above 0"), (["--nothing"], "unrecognized arguments: --nothing")])
def test_bad_arguments_in_one_line(runs, once, args, message):
    code, out, err = once(*args)
    assert code == 2 and out == "" and message in err, err
    assert err.startswith("hybrid_monitor: ") and err.count("\n") == 1, err

def damaged(content, pick):
    "The content of a file, as it is or with one of several kinds of damage."
    words = [b"NaN", b"null", b"[]", b"{}", b'"x"', b"-1", b"1e999", b"9"*500, b"\xff", b"\x00", b"\x1b[31m", b"\n",
             b"true", b"[[["]
    n = pick.randrange(len(content) + 1)
    def exchange(m): return m[1] + pick.choice(words) if pick.random() < .2 else m[0]
    return pick.choice([
        content, content, content[:n], content[n:], b"",
        content[:n] + pick.choice(words) + content[n + pick.randrange(9):],
        re.sub(rb'(": )[^",}\]]+', exchange, content)])

def test_damaged_files_are_shown_and_never_raise(tmp_path):
    study, pick = make_study(tmp_path/"runs"/"demo", seeds=1), random.Random(0)
    make_run(study, "AMAMAMAM", 1, status="failed"); make_run(study, "AMAMAMAM", 2, status="interrupted")
    files = {p: p.read_bytes() for p in study.glob("*/*.*")}
    monitor = Monitor(tmp_path/"runs", nvml=Nvml(h200()))
    for _ in range(60):
        for p, content in files.items(): p.write_bytes(damaged(content, pick))
        with run_lock(pick.choice(list(study.iterdir()))): look = monitor.look()
        assert len(look["runs"]) == 8
        assert all("\n" not in line and "\x1b" not in line for line in monitor_lines(look, finished=True))
        with open(os.devnull, "w") as f: Console(file=f, force_terminal=True).print(monitor_table(look, finished=True))
        MonitorLog(tmp_path/f"log.{pick.choice(['csv', 'jsonl'])}").append(look)
    for p, content in files.items(): p.write_bytes(content)
    states = sorted(r["status"] for r in monitor.look()["runs"])
    assert states == ["failed"] + ["finished"]*6 + ["interrupted"]

def test_without_the_package_there_is_no_accelerator(monkeypatch, runs):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert load_nvml() is None
    assert [d["id"] for d in Monitor(runs, nvml=load_nvml()).look()["devices"]] == ["CPU"]
