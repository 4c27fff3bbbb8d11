"The monitor beside real processes: a live run, stopped, killed and finished; terminals, pipes and logs; damaged files; a driver."
import ctypes, json, os, random, re, signal, subprocess, sys, threading, time
import pandas as pd, pytest
from pathlib import Path
from make_study import make_run, make_study
from stand_in_nvml import Nvml, h200
from hybrid_nb.core import run_lock
from hybrid_nb.monitor import Log, Monitor, Runs, alerts, columns, lines_of, load_nvml, make_row, nvml_devices, recent_metrics, table

@pytest.fixture(scope="module")
def script(tmp_path_factory):
    "The console script, as pip would write it."
    path = tmp_path_factory.mktemp("bin")/"hybrid_monitor"
    path.write_text("import sys\nfrom hybrid_nb.monitor import hybrid_monitor\nsys.exit(hybrid_monitor())\n")
    return [sys.executable, str(path)]

@pytest.fixture
def start(script, tmp_path):
    "Start the monitor in the folder above `runs`."
    def start(*args, **kw):
        return subprocess.Popen(script + [str(a) for a in args], **dict(cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) | kw)
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
from hybrid_nb.train import train_run
train_run("A", study="s", runs="runs", cache_dir="cache", steps=int(sys.argv[1]), batch_size=2, length=32, hidden_size=16, num_attention_heads=2, max_documents=100, vocab_size=300,
          eval_every=50, eval_batches=1, recall_documents=0, log_every=1, checkpoint_every=100, save_best=False, device="cpu", threads=1, progress=False)
"""

def age(run, seconds):
    "Make the files of a run look as if nothing had happened for so long."
    for name in "config.json", "metrics.jsonl": os.utime(run/name, (time.time() - seconds,)*2)

def test_a_run_is_followed_from_start_to_end(tmp_path, once):
    run, steps = tmp_path/"runs"/"s"/"A-s0", 400
    (tmp_path/"runs").mkdir()
    watcher, statuses = Runs(tmp_path/"runs"), []
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
        assert re.search(rf" run s/A-s0  running  step {step}/400 \d+%  loss \d\.\d{{4}}  val loss \d\.\d{{4}}  tokens/s [\d,]+  left \d[\w ]+$", line), line

        age(run, 3600)
        code, out, err = once()
        assert code == 0 and f"ALERT stalled at step {step}: silent for 1 h 00 min" in out and " left " not in out, out
        process.send_signal(signal.SIGCONT)
        wait_for(lambda: state()["step"] > step and not state()["alert"])
    finally: process.kill(); process.wait()

    code, out, err = once("s", "--log", "log.jsonl")
    assert code == 0 and re.search(r"s/A-s0  interrupted .* ALERT interrupted at step \d+: no process trains it", out), out
    assert [r["alert"] for r in map(json.loads, (tmp_path/"log.jsonl").read_text().splitlines()) if r["kind"] == "run"] == [state()["alert"]]
    code, out, err = once("--fail_on_alert")
    assert code == 1 and err.startswith("hybrid_monitor: RuntimeError: s/A-s0 interrupted at step") and err.count("\n") == 1, err

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
    assert set(log.columns) <= set(columns) and len(log) == len(log.dropna(subset=["time", "kind", "name"]))
    log.time = pd.to_datetime(log.time)
    runs_of = log[log.kind == "run"].groupby("name")
    assert runs_of.status.count()["AMAMAMAM-s1"] == 1 and runs_of.status.count()["MAMAMAMA-s1"] >= 3 and len(runs_of) == 2
    assert runs_of.alert.first()["AMAMAMAM-s1"].startswith("interrupted at step 100")
    assert log[log.kind == "device"].memory_used.gt(0).any()

def test_two_monitors_share_a_log(tmp_path, runs):
    look = Monitor(runs).look()
    def write():
        log = Log(tmp_path/"log.jsonl")
        for _ in range(50): log.append(look)
    threads = [threading.Thread(target=write) for _ in range(4)]
    for t in threads: t.start()
    for t in threads: t.join()
    records = [json.loads(l) for l in (tmp_path/"log.jsonl").read_text().splitlines()]
    assert len(records) == 4*(50*len(look["devices"]) + 1)

def test_a_table_in_a_terminal(tmp_path, runs, start):
    import pty
    here, there = pty.openpty()
    process, seen = start("--every", ".1", stdout=there, stderr=there, env=os.environ | dict(TERM="xterm", COLUMNS="80", LINES="40")), b""
    os.close(there)
    while seen.count(b"interrupted at step 100") < 3: seen += os.read(here, 4096)  # drawn three times
    process.send_signal(signal.SIGINT)
    try:
        while more := os.read(here, 4096): seen += more
    except OSError: pass  # the other end is closed
    assert process.wait(60) == 0
    text = seen.decode()
    assert "─" in text and "\x1b[1A" in text and text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1, "not redrawn in place, or the cursor is left hidden"

def test_a_reader_that_stops_reading(runs, start):
    process = start("--every", ".05")
    process.stdout.readline(); process.stdout.close()
    assert process.wait(60) == 0 and process.stderr.read() == ""

@pytest.mark.parametrize("args, message", [
    (["--runs", "none"], "runs 'none': no such folder"), (["x"], "study 'x': no such folder in runs (there: demo)"),
    (["--every", "0"], "every 0.0: must be a number of seconds above 0"), (["--every", "-1"], "every -1.0: must be"), (["--every", "nan"], "every nan: must be"),
    (["--every", "soon"], "invalid float value: 'soon'"), (["--log", "log.txt"], "log 'log.txt': must end in .csv or .jsonl"), (["--log", "no/log.csv"], "log 'no/log.csv': no folder 'no'"),
    (["--hot", "nan"], "hot nan: must be a number above 0"), (["--idle", "101"], "idle 101.0: must be a number between 0 and 100"), (["--stall", "0"], "stall 0.0: must be a number above 0"),
    (["--nothing"], "unrecognized arguments: --nothing")])
def test_bad_arguments_in_one_line(runs, once, args, message):
    code, out, err = once(*args)
    assert code == 2 and out == "" and err.startswith("hybrid_monitor: ") and message in err and err.count("\n") == 1, err

def test_damaged_files_are_shown_and_never_raise(tmp_path):
    from rich.console import Console
    study, pick = make_study(tmp_path/"runs"/"demo", seeds=1), random.Random(0)
    make_run(study, "AMAMAMAM", 1, status="failed"); make_run(study, "AMAMAMAM", 2, status="interrupted")
    files = {p: p.read_bytes() for p in study.glob("*/*.*")}
    monitor = Monitor(tmp_path/"runs", nvml=Nvml(h200()))
    words = [b"NaN", b"null", b"[]", b"{}", b'"x"', b"-1", b"1e999", b"9"*500, b"\xff", b"\x00", b"\x1b[31m", b"\n", b"true", b"[[["]
    for _ in range(60):
        for p, content in files.items():
            n = pick.randrange(len(content) + 1)
            damaged = pick.choice([content, content, content[:n], content[n:], b"", content[:n] + pick.choice(words) + content[n + pick.randrange(9):],
                                   re.sub(rb'(": )[^",}\]]+', lambda m: m[1] + pick.choice(words) if pick.random() < .2 else m[0], content)])
            p.write_bytes(damaged)
        locked = pick.choice(list(study.iterdir()))
        with run_lock(locked): look = monitor.look()
        assert len(look["runs"]) == 8 and all("\n" not in line and "\x1b" not in line for line in lines_of(look, finished=True))
        Console(file=open(os.devnull, "w"), force_terminal=True).print(table(look, finished=True))
        Log(tmp_path/f"log.{pick.choice(['csv', 'jsonl'])}").append(look)
    for p, content in files.items(): p.write_bytes(content)
    assert sorted(r["status"] for r in monitor.look()["runs"]) == ["failed"] + ["finished"]*6 + ["interrupted"]

def test_only_the_end_of_a_file_is_read(tmp_path):
    "A file of a terabyte, most of which takes no room on the disk."
    run = make_run(tmp_path/"runs"/"s", "AM", 0, status="interrupted")
    with open(run/"metrics.jsonl", "r+b") as f:
        end = f.read()
        try: f.seek(2**40)
        except OSError: pytest.skip("the file system has no sparse files")
        try: f.write(b"\n" + end)
        except OSError: pytest.skip("the file system has no sparse files of this size")
    row = make_row(run)
    assert row["step"] == 100 and row["val_loss"] == recent_metrics(run)[-1]["val_loss"]

def test_the_stand_in_has_the_functions_of_pynvml():
    pynvml = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    names = [n for n in vars(Nvml) if n.startswith(("nvml", "NVML"))]
    assert len(names) > 10 and not [n for n in names if not hasattr(pynvml, n)]

class Driver:
    "What stands for libnvidia-ml below the real `pynvml`: two devices, the second of which tells nothing but its name."
    SUCCESS, NOT_SUPPORTED, TOO_SMALL = 0, 3, 7
    def __getattr__(self, name):
        known = dict(nvmlDeviceGetCount_v2=self.count, nvmlDeviceGetHandleByIndex_v2=self.handle, nvmlDeviceGetName=self.name, nvmlDeviceGetUtilizationRates=self.rates,
                     nvmlDeviceGetMemoryInfo=self.memory, nvmlDeviceGetTemperature=self.heat, nvmlDeviceGetPowerUsage=self.power, nvmlDeviceGetComputeRunningProcesses_v3=self.processes)
        def call(*args):
            if name in ("nvmlInitWithFlags", "nvmlShutdown"): return self.SUCCESS
            if name == "nvmlErrorString": return b"Not Supported"
            if args and isinstance(args[0], ctypes._Pointer) and ctypes.addressof(args[0].contents) == ctypes.addressof(self.devices[1]) and name != "nvmlDeviceGetName": return self.NOT_SUPPORTED
            return known[name](*args) or self.SUCCESS
        if name not in known and name not in ("nvmlInitWithFlags", "nvmlShutdown", "nvmlErrorString"): raise AttributeError(name)  # an old driver, without nvmlDeviceGetTemperatureV
        return call
    def __init__(self, nvml): self.devices = [nvml.struct_c_nvmlDevice_t() for _ in range(2)]
    def count(self, n): n._obj.value = 2
    def handle(self, index, h): h._obj.contents = self.devices[index.value]
    def name(self, h, text, size): text.value = b"NVIDIA H200"
    def rates(self, h, r): r._obj.gpu = 97
    def memory(self, h, m): m._obj.total, m._obj.used = 2**37, 2**36
    def heat(self, h, sensor, t): t._obj.value = 64 if sensor.value == 0 else 0
    def power(self, h, p): p._obj.value = 612_345
    def processes(self, h, n, out):
        if out is None: n._obj.value = 1; return self.TOO_SMALL
        n._obj.value, out[0].pid = 1, 4242

def test_the_real_pynvml_over_a_stand_in_for_the_driver(tmp_path, monkeypatch):
    pynvml = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    monkeypatch.setattr(pynvml, "nvmlLib", Driver(pynvml))
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    first, second = nvml_devices(load_nvml())
    assert first == dict(id="GPU 0", name="NVIDIA H200", utilisation=97, memory_used=2**36, memory_total=2**37, temperature=64, power=612.345, processes=1)
    assert second == dict.fromkeys(first) | dict(id="GPU 1", name="NVIDIA H200")
    (tmp_path/"runs").mkdir()
    look = Monitor(tmp_path/"runs", hot=60, nvml=load_nvml()).look()
    assert alerts(look)[0] == "GPU 0 hot: 64 °C"

def test_without_the_package_there_is_no_accelerator(monkeypatch, runs):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert load_nvml() is None
    assert [d["id"] for d in Monitor(runs, nvml=load_nvml()).look()["devices"]] == ["CPU"]
