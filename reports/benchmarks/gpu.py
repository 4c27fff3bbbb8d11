"""What only a GPU can show: the same numbers as on the CPU, mixed precision, resume, speed and memory.

    python reports/benchmarks/gpu.py --out FILE.json [--only scan,model,...] [--steps 300] [--cache FOLDER]
    python reports/benchmarks/gpu.py --out rates.json --only rates --seconds 400 --set '{"corpus": …}'
    python reports/benchmarks/gpu.py --out base-12-gpu.json --only study --recipes base base-mamba --steps 10000 \\
        --cache FOLDER --set '{"corpus": "books/large.jsonl.xz", "vocab_size": 16384, "precision": "bf16"}'

Parts, in this order unless `--only` names some: scan, model, texts, training, kernels, convolution, speed,
kernel_speed, plans; rates and study only if they are asked for. A part that `--out` holds already is not repeated; the
file is written after each part, and after each run of rates and study.

Needs torch, transformers, accelerate, filelock and fastcore. `datasets` is needed only to prepare the corpus; a token
cache prepared elsewhere (`HYBRID_NB_CACHE`, or --cache) will do, with the same version of tokenizers, and where the
corpus has the same path, size and time of change (a file of zeros will do too). Every check that fails is listed under
"failed", and the exit code is then 1. `kernels` runs the tests of the Triton kernels compiled; `kernel_speed` times
them beside the torch form and, where it is installed, `mamba_ssm`'s CUDA kernel; `plans` times other ways to cut the
work, for whoever wants to improve `scan_triton._plan`. `rates` trains each letter at seven
learning rates in four widths, then with fewer and with more steps, `--workers` runs at a time, until `--seconds` are
over: does the best rate travel? `study` trains recipes one after the
other, without papermill, and puts summary, curve and sums by validation document of each into the report as soon as
it has them.
"""
import argparse, importlib.util, json, re, shutil, statistics, subprocess, sys, tempfile, time, traceback
from concurrent.futures import as_completed, ProcessPoolExecutor, TimeoutError
from functools import partial
from multiprocessing import get_context
from pathlib import Path
import torch
root = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(root))
from hybrid_nb.core.files import read_json, save_json
from hybrid_nb.core.runs import environment
from hybrid_nb.mixers import scan_triton
from hybrid_nb.mixers.scan import has_gpu_kernel, selective_scan, selective_scan_ref
from hybrid_nb.models.config import HybridConfig
from hybrid_nb.models.modeling import HybridForCausalLM, count_parameters
from hybrid_nb.training.objective import Objective
from hybrid_nb.training.runner import train_run

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", required=True)
parser.add_argument("--cache")
parser.add_argument("--steps", type=int, help="of training (default 300) and of study (default: the recipe's)")
parser.add_argument("--device", default="cuda")
parser.add_argument("--recipes", nargs="+", default=["base", "base-mamba"], help="groups of recipes, or single ones")
parser.add_argument("--set", type=json.loads, default={}, help="settings of all runs of study, as JSON")
parser.add_argument("--workers", type=int, default=12, help="runs of rates at a time")
parser.add_argument("--seconds", type=float, default=300, help="after which rates starts no more runs and stops")
parser.add_argument("--only", help="comma-separated parts to run, in this order")
parser.add_argument("--quick", action="store_true", help="few shapes: does everything run?")
args = parser.parse_args()
device = torch.device(args.device)
report = read_json(args.out) if Path(args.out).exists() else dict(environment=environment(), failed=[])


def check(name, value, limit):
    "Record `value`; it fails above `limit`."
    if not value <= limit: report["failed"].append(f"{name}: {value:.3g} > {limit:.3g}")
    return value


def relative(a, b):
    a, b = a.double().cpu(), b.double().cpu()
    return ((a - b).abs().max() / b.abs().max().clamp(min=1e-30)).item()


def scan_errors(length, dtype, texts):
    "Outputs, state and gradients of one scan on the device beside the float64 recurrence on the CPU."
    torch.manual_seed(0)
    b, d, n, half = 2, 32, 16, ("u", "delta", "B", "C", "z")
    t = dict(u=torch.randn(b, length, d), delta=torch.randn(b, length, d), A=-torch.rand(d, n) * 8,
             B=torch.randn(b, length, n), C=torch.randn(b, length, n), D=torch.randn(d),
             z=torch.randn(b, length, d), delta_bias=torch.randn(d) - 3, initial_state=torch.randn(b, d, n))
    t = {k: v.to(dtype) if k in half else v for k, v in t.items()}
    ours = {k: v.detach().clone().to(device).requires_grad_() for k, v in t.items()}
    want = {k: v.detach().double().requires_grad_() for k, v in t.items()}
    starts = torch.rand(b, length) < (texts - 1) / length if texts > 1 else None
    said = dict(delta_softplus=True, return_state=True)
    y, state = selective_scan(**ours, **said, starts=None if starts is None else starts.to(device))
    y64, state64 = selective_scan_ref(**want, **said, starts=starts)
    g, gs = torch.randn(y64.shape).double(), torch.randn(state64.shape).double()
    ((y.double() * g.to(device)).sum() + (state.double() * gs.to(device)).sum()).backward()
    ((y64 * g).sum() + (state64 * gs).sum()).backward()
    errors = dict(y=relative(y.detach(), y64.detach()), state=relative(state.detach(), state64.detach()))
    return errors | {f"d{k}": relative(ours[k].grad, want[k].grad) for k in t}


def scan():
    "The scan and its gradients on the device against the float64 recurrence on the CPU."
    rows = []
    for length, dtype, texts, limit in (
            (1, torch.float32, 1, 1e-4), (77, torch.float32, 1, 1e-4), (1000, torch.float32, 1, 1e-4),
            (1000, torch.bfloat16, 1, 5e-2), (1000, torch.float16, 1, 1e-2),
            (77, torch.float32, 5, 1e-4), (1000, torch.float32, 30, 1e-4), (1000, torch.bfloat16, 30, 5e-2)):
        errors = scan_errors(length, dtype, texts)
        for k, v in errors.items(): check(f"scan {length} {dtype}, {texts} texts, {k}", v, limit)
        rows.append(dict(length=length, dtype=str(dtype), texts=texts, errors=errors))
    return rows


def kernels():
    "The tests of the Triton kernels, compiled for this GPU; in several processes where pytest-xdist is there."
    several = ["-n", "12"] if importlib.util.find_spec("xdist") else [] # most of the time is compilation
    words = ["-q", "tests/mixers/test_scan_triton.py", "--tb=short", "--show-capture=no", *several]
    r = subprocess.run([sys.executable, "-m", "pytest", *words], cwd=root, capture_output=True, text=True)
    last = r.stdout.strip().splitlines()[-1] if r.stdout.strip() else ""
    counts = {k: int(n) for n, k in re.findall(r"(\d+) (passed|failed|skipped|error)", last)}
    check("failed tests of the Triton kernels", r.returncode, 0)
    failures = [l for l in r.stdout.splitlines() if l.startswith(("FAILED", "ERROR"))]
    return dict(counts, failures=failures, tail=(r.stdout + r.stderr)[-4000:] if r.returncode else "")


def scan_inputs(batch, length, channels, state, dtype=torch.bfloat16):
    g = torch.Generator(device).manual_seed(0)
    r = lambda *s: torch.randn(*s, generator=g, device=device)
    b, l, c, n = batch, length, channels, state
    x = dict(u=r(b, l, c), delta=r(b, l, c), B=r(b, l, n), C=r(b, l, n), z=r(b, l, c))
    rates = -torch.arange(1., n + 1, device=device).repeat(c, 1)
    rest = dict(A=rates, D=torch.ones(c, device=device), delta_bias=r(c) - 4)
    return {k: v.to(dtype).requires_grad_() for k, v in x.items()} | {k: v.requires_grad_() for k, v in rest.items()}


def peers():
    "name -> (inputs as it wants them, function)"
    names = (["triton"] if has_gpu_kernel() else []) + ["chunked"]
    ours = {name: (lambda x: x, partial(selective_scan, delta_softplus=True, backend=name)) for name in names}
    try: from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except Exception: return ours
    def turned(x): # (batch, channels, length), contiguous: its own layout, prepared outside the clock
        turn = lambda v: v.detach().transpose(1, 2).contiguous().requires_grad_() if v.ndim == 3 else v
        return {k: turn(v) for k, v in x.items()}
    return ours | {"mamba_ssm": (turned, partial(selective_scan_fn, delta_softplus=True))}


def timed(f, repeat=20):
    "Milliseconds of a call by the GPU's clock: median, fastest and slowest of up to `repeat` calls (fewer if slow)."
    f(); torch.cuda.synchronize(); start = time.perf_counter()
    f(); torch.cuda.synchronize()
    repeat = max(3, min(repeat, int(1 / (time.perf_counter() - start))))
    for _ in range(repeat // 4): f()
    marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeat)]
    for start, stop in marks: start.record(); f(); stop.record()
    torch.cuda.synchronize()
    ms = sorted(a.elapsed_time(b) for a, b in marks)
    return dict(ms=statistics.median(ms), fastest=ms[0], slowest=ms[-1])


def forward_backward(f, x):
    "Times of forward without gradients and of forward + backward; memory at the peak beyond the inputs."
    leaves, dy = list(x.values()), torch.ones_like(x["u"])
    def both(): torch.autograd.grad(f(**x), leaves, dy)
    def forward():
        with torch.no_grad(): f(**x)
    row = dict(forward=timed(forward), both=timed(both))
    torch.cuda.synchronize(); before = torch.cuda.memory_allocated(); torch.cuda.reset_peak_memory_stats()
    both(); torch.cuda.synchronize()
    return row | dict(peak_bytes=torch.cuda.max_memory_allocated() - before)


def one_shape(shape, everyone):
    "Our kernels beside their peers on one shape."
    row, (_, length, width, state) = dict(shape=shape), shape
    for name, (prepare, f) in everyone.items():
        takes_seconds = state > 16 or width > 1536 or length not in (512, 2048)
        if name == "chunked" and takes_seconds: continue
        try: row[name] = forward_backward(f, prepare(scan_inputs(*shape)))
        except Exception as e:
            row[name] = dict(error=f"{type(e).__name__}: {e}"[:300])
            if name == "triton": report["failed"].append(f"kernel_speed {shape}: {row[name]['error']}")
        torch.cuda.empty_cache()
    ours, theirs = row.get("triton", {}), row.get("mamba_ssm", {})
    if "both" in ours and "both" in theirs:
        row["speedup"] = theirs["both"]["ms"] / ours["both"]["ms"]
        row["memory_ratio"] = ours["peak_bytes"] / theirs["peak_bytes"]
    print(json.dumps(row), flush=True)
    return row


def kernel_speed():
    "Our kernels, the torch form and mamba_ssm: 16,384 tokens of bf16, or one sequence that is longer."
    lengths, widths, states = (512, 2048, 8192, 32768), (768, 1536, 4096), (16, 64, 128)
    if args.quick: lengths, widths, states = (512, 2048), (768,), (16,)
    everyone = peers()
    return [one_shape((max(1, 16384 // length), length, width, state), everyone)
            for state in states for length in lengths for width in widths]


def plans():
    "Other ways to cut the work than the default, at length 2,048."
    default, rows = scan_triton._plan, []
    shapes = ((8, 2048, 1536, 16), (8, 2048, 768, 16), (8, 2048, 4096, 16), (1, 2048, 1536, 16), (8, 2048, 1536, 64))
    for shape in shapes[:1] if args.quick else shapes:
        p, x, found = default(*shape), scan_inputs(*shape), []
        for width, forward, backward in ((64, 8, 8), (64, 16, 8), (64, 8, 4), (32, 8, 8), (32, 16, 8), (128, 8, 4)):
            for ranges in sorted({1, max(1, p.ranges // 2), p.ranges, p.ranges * 2, p.ranges * 4}):
                for every in sorted({p.every, 2*p.every}):
                    plan = p._replace(width=width, forward=forward, backward=backward, ranges=ranges, every=every)
                    found.append(dict(plan=plan._asdict(), default=plan == p, **under_plan(plan, x)))
        scan_triton._plan = default
        found.sort(key=lambda r: r["both"]["ms"] if "both" in r else float("inf"))
        rows.append(dict(shape=shape, default=[r for r in found if r["default"]], best=found[:8], worst=found[-2:],
                         errors=[r for r in found if "error" in r][:4]))
        print(json.dumps(dict(shape=shape, default=rows[-1]["default"], best=found[0])), flush=True)
    return rows


def under_plan(plan, x):
    "Times of the kernels with the work cut as `plan` says."
    scan_triton._plan = lambda *_: plan
    try: return forward_backward(partial(selective_scan, delta_softplus=True, backend="triton"), x)
    except Exception as e: return dict(error=f"{type(e).__name__}: {e}"[:300])


def convolution():
    "The fused convolution and torch's, forward and backward."
    def plain(x, w, bias):
        k = w.shape[-1] - 1
        y = torch.nn.functional.conv1d(x.transpose(1, 2), w, bias, groups=len(w), padding=k)
        return torch.nn.functional.silu(y[..., :x.shape[1]].transpose(1, 2))
    rows, ours = [], dict(triton=scan_triton.conv_silu_triton, torch=plain)
    for batch, length, width in ((32, 512, 768), (8, 2048, 1536), (1, 32768, 4096)):
        make = lambda *s: torch.randn(*s, device=device, dtype=torch.bfloat16, requires_grad=True)
        inputs = [make(batch, length, width), make(width, 1, 4), make(width)]
        row, y = dict(shape=(batch, length, width)), {}
        for name, f in ours.items():
            y[name] = f(*inputs)
            dy, plain_inputs = torch.ones_like(y[name]), [t.detach() for t in inputs]
            row[name] = dict(forward=timed(lambda: f(*plain_inputs)),
                             both=timed(lambda: torch.autograd.grad(f(*inputs), inputs, dy)))
        row["differs"] = check(f"convolution {row['shape']}", relative(y["triton"].detach(), y["torch"].detach()), 2e-2)
        rows.append(row)
    return rows


def model():
    "Logits against the CPU; cached generation against uncached."
    rows = []
    small = dict(vocab_size=300, hidden_size=64, num_attention_heads=4, sliding_window=16, ssd_head_dim=16, dropout=0.,
                 initializer_range=0.2, scale_embedding=False, tie_word_embeddings=False)
    for pattern in "AMAM", "MMMM", "GAMWF", "WWWW", "SASL":
        torch.manual_seed(0)
        cpu = HybridForCausalLM(HybridConfig(pattern=pattern, **small)).eval()
        ids = torch.randint(1, 300, (2, 100))
        with torch.no_grad(): want = cpu(ids).logits
        gpu = cpu.to(device)
        with torch.no_grad(): got = gpu(ids.to(device)).logits
        options = dict(max_new_tokens=40, do_sample=False, pad_token_id=0)
        a, b = (gpu.generate(ids[:, :40].to(device), use_cache=c, **options) for c in (True, False))
        rows.append(dict(pattern=pattern, logits=check(f"logits {pattern}", relative(got, want), 1e-3),
                         generation_differs=check(f"generation {pattern}", (a != b).sum().item(), 0)))
    return rows


def texts():
    "Rows that hold several texts, and padding in front: logits and gradients as of each text alone."
    rows, lengths = [], (70, 1, 33, 128, 2, 66)
    small = dict(vocab_size=300, hidden_size=64, num_attention_heads=4, sliding_window=16, ssd_head_dim=16, dropout=0.)
    for pattern in *"AWLMSG", "AMSGWLF":
        torch.manual_seed(0)
        m = HybridForCausalLM(HybridConfig(pattern=pattern, initializer_range=.1, **small)).to(device)
        each = [torch.randint(1, 300, (1, n), device=device) for n in lengths]
        weight = torch.randn(1, sum(lengths), 300, device=device) # of a sum of logits, whose gradients are compared
        def outcome(logits):
            m.zero_grad()
            (logits * weight).sum().backward()
            return [logits.detach(), *(p.grad.clone() for p in m.parameters())]
        alone = outcome(torch.cat([m(x, use_cache=False).logits for x in each], 1))
        number = torch.arange(1, len(lengths) + 1).repeat_interleave(torch.tensor(lengths))[None].to(device)
        packed = outcome(m(torch.cat(each, 1), segments=number, use_cache=False).logits)
        mask = torch.zeros(len(lengths), max(lengths), dtype=torch.long, device=device)
        for row, n in zip(mask, lengths): row[-n:] = 1
        ids = torch.zeros_like(mask).masked_scatter(mask.bool(), torch.cat(each, 1))
        padded = outcome(m(ids, attention_mask=mask, use_cache=False).logits[mask.bool()][None])
        row = dict(pattern=pattern)
        for name, found in dict(packed=packed, padded=padded).items():
            row[name] = check(f"texts {pattern} {name}", max(map(relative, found, alone)), 1e-3)
        rows.append(row)
    return rows


def training():
    "The same run in three precisions, then stopped and resumed."
    from hybrid_nb.data.corpora import DataConfig
    from hybrid_nb.training.config import TrainConfig
    from hybrid_nb.training.runner import train
    rows, folder, steps = [], Path(tempfile.mkdtemp()), args.steps or 300
    data = DataConfig(corpus="stories", max_documents=4000, vocab_size=1024, length=256, cache_dir=args.cache)
    def run(name, on_step=None, **kw):
        cfg = TrainConfig(**dict(steps=steps, batch_size=32, learning_rate=2e-3, eval_every=100, eval_batches=10,
                                 checkpoint_every=100, save_best=False, recall_documents=50) | kw)
        config = HybridConfig(pattern="AMAM", hidden_size=128, num_attention_heads=4, dropout=0.1)
        return train(config, data, cfg, folder/name, progress=False, on_step=on_step)
    kept = ("precision", "final_val_loss", "bits_per_byte", "floor_bits_per_byte", "val_accuracy", "skipped_updates",
            "tokens_per_second", "peak_memory_bytes", "runtime_seconds")
    for precision in "fp32", "bf16", "fp16":
        s = run(precision, precision=precision)
        rows.append({k: s[k] for k in kept})
        check(f"loss in {precision} away from fp32", abs(s["final_val_loss"] - rows[0]["final_val_loss"]), 0.15)
    class Stop(Exception): pass
    def stop(trainer):
        if trainer.state.step == steps // 2 + 7: raise Stop
    try: run("resumed", stop, precision="bf16")
    except Stop: pass
    resumed = run("resumed", precision="bf16")
    written = [json.loads(l)["step"] for l in (folder/"resumed"/"metrics.jsonl").read_text().splitlines()]
    check("steps written twice", len(written) - len(set(written)), 0)
    check("resumed loss away from undisturbed", abs(resumed["final_val_loss"] - rows[1]["final_val_loss"]), 0.02)
    shutil.rmtree(folder)
    return rows + [dict(precision="bf16, resumed", final_val_loss=resumed["final_val_loss"])]


def step_of_base(pattern, packed):
    "A training step of the base study's sizes; `packed`: of documents of 80 tokens that do not see each other."
    torch.manual_seed(0)
    torch.cuda.empty_cache(); torch.cuda.reset_peak_memory_stats()
    m = HybridForCausalLM(HybridConfig(pattern=pattern, fused_loss=True)).to(device)
    f = Objective(m, 0 if packed else None)
    optimizer = torch.optim.AdamW(m.parameters(), lr=4e-4, fused=True)
    ids, seconds = torch.randint(1, 49152, (32, 513), device=device), []
    ids[torch.rand(ids.shape, device=device) < 1/80] = 0
    for _ in range(8):
        torch.cuda.synchronize(); start = time.perf_counter()
        with torch.autocast("cuda", torch.bfloat16): loss, _ = f(ids[:, :-1], ids[:, 1:], 32*512)
        loss.backward(); optimizer.step(); optimizer.zero_grad()
        torch.cuda.synchronize(); seconds.append(time.perf_counter() - start)
    step = statistics.median(seconds[3:])
    return dict(pattern=pattern, packed=packed, parameters=count_parameters(m), step_seconds=step,
                fastest=min(seconds[3:]), slowest=max(seconds[3:]), tokens_per_second=32*512/step,
                peak_memory_bytes=torch.cuda.max_memory_allocated())


def speed():
    "Training steps of the base study's models: 384 wide, 49,152 words, 32 windows of 512, bf16 autocast."
    return [step_of_base(pattern, packed) for pattern in ("A8", "AMAMAMAM", "M8", "S8", "G8", "W8", "L8")
            for packed in (False, True)]


PATTERNS = "AAAA", "MMMM", "SSSS", "GGGG", "AMAM", "LLLL", "ASAS"
RATES = [7.5e-4 * 2**k for k in range(7)]


def rate_jobs():
    "Every letter and two hybrids at seven rates: in four widths, then over fewer and over more steps."
    for width, steps in ((64, 400), (512, 400), (128, 400), (256, 400), (128, 100), (128, 1600)):
        for pattern in PATTERNS[:2] if args.quick else PATTERNS:
            for rate in RATES[::3] if args.quick else RATES:
                yield dict(pattern=pattern, hidden_size=width, learning_rate=rate, steps=args.steps or steps)


def one_rate(job, folder, settings):
    "The outcome of one run, in a process of its own."
    torch.set_num_threads(1)
    shared = dict(num_attention_heads=job["hidden_size"] // 32, ssd_head_dim=32, dropout=0., vocab_size=4096,
                  length=256, batch_size=32, precision="bf16", warmup_steps=.1, final_eval_tokens=500_000,
                  eval_every=job["steps"], eval_batches=1, save_best=False, checkpoint_every=0, recall_documents=0)
    name = "-".join(map(str, job.values()))
    start = time.perf_counter()
    try: s = train_run(name=name, study="rates", runs=folder, progress=False, **shared | job | settings)
    except Exception as e: return job | dict(error=f"{type(e).__name__}: {e}"[:300])
    finally: shutil.rmtree(Path(folder)/"rates"/name, ignore_errors=True)
    kept = ("final_val_loss", "train_loss", "parameters", "parameters_non_embedding", "tokens_seen", "seed")
    return job | {k: s[k] for k in kept} | dict(seconds=round(time.perf_counter() - start, 2))


def rates():
    "Final losses by learning rate, for each pattern, width and number of steps; what no time was left for is counted."
    rows = report.setdefault("rates", [])
    done = {tuple(row[k] for k in ("pattern", "hidden_size", "learning_rate", "steps")) for row in rows}
    jobs = [job for job in rate_jobs() if tuple(job.values()) not in done]
    folder = tempfile.mkdtemp()
    settings = dict(cache_dir=args.cache, device="cpu" if args.device == "cpu" else "auto") | args.set
    pool = ProcessPoolExecutor(args.workers, mp_context=get_context("spawn"))
    futures = [pool.submit(one_rate, job, folder, settings) for job in jobs]
    try:
        for f in as_completed(futures, timeout=args.seconds):
            rows.append(f.result())
            if len(rows) % 10 == 0: save_json(report, args.out)
            print(json.dumps(rows[-1]), flush=True)
    except TimeoutError: pass
    processes = list(pool._processes.values())
    pool.shutdown(wait=False, cancel_futures=True)
    for p in processes: p.kill()
    shutil.rmtree(folder, ignore_errors=True)
    report["rates_left"] = len(jobs) - sum(f.done() and not f.cancelled() for f in futures)
    return rows


def study():
    "Published recipes at full width, or as --set has them."
    from hybrid_nb.training.recipes import recipe_group
    rows, folder = report.setdefault("study", []), Path(tempfile.mkdtemp())
    shared = dict(cache_dir=args.cache, save_best=False, checkpoint_every=0)
    if args.steps: shared["steps"] = args.steps
    if args.device == "cpu": shared["device"] = "cpu"
    done = {row["recipe"] for row in rows}
    for r in [r for name in args.recipes for r in recipe_group(name) if r.name not in done]:
        name = r.name.replace("/", "-")
        try: s = train_run(recipe=r.name, name="run", study=name, runs=folder, progress=False, **shared | args.set)
        except ValueError as e: report["failed"].append(f"study {r.name}: {e}"); continue
        except Exception: report["failed"].append(f"study {r.name}: {traceback.format_exc()}"); continue
        rows.append(dict(recipe=r.name, summary=s, **what_it_left(folder/name/"run")))
        save_json(report, args.out)
        shutil.rmtree(folder/name/"run") # its checkpoint is large
        print(f"{r.name} {s['final_val_loss']:.4f} nats, {s['tokens_per_second']:,.0f} tokens/s", flush=True)
    shutil.rmtree(folder)
    return rows


def what_it_left(run):
    "The curve of a run, and its sums by validation document (as core.runs reads them, which needs pandas)."
    import numpy as np
    metrics = [json.loads(line) for line in (run/"metrics.jsonl").read_text().splitlines()]
    with np.load(run/"val_windows.npz") as z:
        numbers, document = np.unique(z["document"], return_inverse=True)
        sums = {k: np.bincount(document, z[k]).round(3).tolist() for k in ("tokens", "nats")}
    return dict(curve=[[m["step"], m["val_loss"]] for m in metrics if "val_loss" in m],
                documents=dict(number=numbers.tolist()) | sums)


every_part = [scan, model, texts, training, kernels, convolution, speed, kernel_speed, plans]
by_name = {f.__name__: f for f in [*every_part, rates, study]}


def main():
    for part in [by_name[name] for name in args.only.split(",")] if args.only else every_part:
        if part not in (rates, study) and part.__name__ in report: continue
        start = time.perf_counter()
        try: report[part.__name__] = part()
        except Exception: report["failed"].append(f"{part.__name__}: {traceback.format_exc()}")
        shown = "" if part in (rates, study) else json.dumps(report.get(part.__name__))
        print(f"{part.__name__}: {time.perf_counter() - start:.0f} s", shown, flush=True)
        save_json(report, args.out)
    print("\n".join(report["failed"]) or "all checks passed")
    sys.exit(bool(report["failed"]))


if __name__ == "__main__": main() # the processes of rates import this file
