"""What only a GPU can show: the same numbers as on the CPU, mixed precision, resume, speed and memory.

    python reports/benchmarks/gpu.py --out reports/benchmarks/gpu.json [--steps 300] [--cache FOLDER]

Needs torch, transformers, accelerate and fastcore. `datasets` is needed only to prepare the corpus; a token cache prepared elsewhere
(`HYBRID_NB_CACHE`, or --cache) will do. Every check that fails is listed under "failed", and the exit code is then 1.
"""
import argparse, json, shutil, statistics, sys, tempfile, time, traceback
from pathlib import Path
import torch
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from hybrid_nb.core import environment, save_json
from hybrid_nb.model import HybridConfig, HybridForCausalLM, count_parameters
from hybrid_nb.scan import selective_scan, selective_scan_ref

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", required=True)
parser.add_argument("--cache")
parser.add_argument("--steps", type=int, default=300)
parser.add_argument("--device", default="cuda")
args = parser.parse_args()
device, report = torch.device(args.device), dict(environment=environment(), failed=[])


def check(name, value, limit):
    "Record `value`; it fails above `limit`."
    if not value <= limit: report["failed"].append(f"{name}: {value:.3g} > {limit:.3g}")
    return value


def relative(a, b): return ((a.double().cpu() - b.double().cpu()).abs().max() / b.double().abs().max().clamp(min=1e-30).cpu()).item()


def scan():
    "The scan and its gradients on the device against the float64 recurrence on the CPU."
    rows = []
    for length, dtype, limit in (1, torch.float32, 1e-4), (77, torch.float32, 1e-4), (1000, torch.float32, 1e-4), (1000, torch.bfloat16, 5e-2):
        torch.manual_seed(0)
        b, d, n = 2, 32, 16
        t = dict(u=torch.randn(b, length, d), delta=torch.randn(b, length, d), A=-torch.rand(d, n) * 8, B=torch.randn(b, length, n), C=torch.randn(b, length, n),
                 D=torch.randn(d), z=torch.randn(b, length, d), delta_bias=torch.randn(d) - 3, initial_state=torch.randn(b, d, n))
        t = {k: v.to(dtype) if k in ("u", "delta", "B", "C", "z") else v for k, v in t.items()}
        ours = {k: v.detach().clone().to(device).requires_grad_() for k, v in t.items()}
        want = {k: v.detach().double().requires_grad_() for k, v in t.items()}
        (y, state), (y64, state64) = selective_scan(**ours, delta_softplus=True, return_state=True), selective_scan_ref(**want, delta_softplus=True, return_state=True)
        g, gs = torch.randn(y64.shape).double(), torch.randn(state64.shape).double()
        ((y.double() * g.to(device)).sum() + (state.double() * gs.to(device)).sum()).backward()
        ((y64 * g).sum() + (state64 * gs).sum()).backward()
        errors = dict(y=relative(y.detach(), y64.detach()), state=relative(state.detach(), state64.detach()), **{f"d{k}": relative(ours[k].grad, want[k].grad) for k in t})
        rows.append(dict(length=length, dtype=str(dtype), errors={k: check(f"scan {length} {dtype} {k}", v, limit) for k, v in errors.items()}))
    return rows


def model():
    "Logits against the CPU; cached generation against uncached."
    rows, small = [], dict(vocab_size=300, hidden_size=64, num_attention_heads=4, sliding_window=16, dropout=0., initializer_range=0.2, scale_embedding=False, tie_word_embeddings=False)
    for pattern in "AMAM", "MMMM", "GAMWF", "WWWW":
        torch.manual_seed(0)
        cpu = HybridForCausalLM(HybridConfig(pattern=pattern, **small)).eval()
        ids = torch.randint(1, 300, (2, 100))
        with torch.no_grad(): want = cpu(ids).logits
        gpu = cpu.to(device)
        with torch.no_grad(): got = gpu(ids.to(device)).logits
        a, b = (gpu.generate(ids[:, :40].to(device), max_new_tokens=40, do_sample=False, pad_token_id=0, use_cache=c) for c in (True, False))
        rows.append(dict(pattern=pattern, logits=check(f"logits {pattern}", relative(got, want), 1e-3), generation_differs=check(f"generation {pattern}", (a != b).sum().item(), 0)))
    return rows


def training():
    "The same run in three precisions, then stopped and resumed."
    from hybrid_nb.data import DataConfig
    from hybrid_nb.train import TrainConfig, train
    rows, folder = [], Path(tempfile.mkdtemp())
    data = DataConfig(corpus="world", max_documents=4000, vocab_size=1024, length=256, cache_dir=args.cache)
    def run(name, on_step=None, **kw):
        cfg = dict(steps=args.steps, batch_size=32, learning_rate=2e-3, eval_every=100, eval_batches=10, checkpoint_every=100, save_best=False, recall_documents=50) | kw
        return train(HybridConfig(pattern="AMAM", hidden_size=128, num_attention_heads=4, dropout=0.1), data, TrainConfig(**cfg), folder/name, progress=False, on_step=on_step)
    for precision in "fp32", "bf16", "fp16":
        s = run(precision, precision=precision)
        rows.append({k: s[k] for k in ("precision", "final_val_loss", "bits_per_byte", "floor_bits_per_byte", "val_accuracy", "tokens_per_second", "peak_memory_bytes", "runtime_seconds")})
        check(f"loss in {precision} away from fp32", abs(s["final_val_loss"] - rows[0]["final_val_loss"]), 0.15)
    class Stop(Exception): pass
    def stop(trainer):
        if trainer.state.step == args.steps // 2 + 7: raise Stop
    try: run("resumed", stop, precision="bf16")
    except Stop: pass
    resumed = run("resumed", precision="bf16")
    steps = [json.loads(l)["step"] for l in (folder/"resumed"/"metrics.jsonl").read_text().splitlines()]
    check("steps written twice", len(steps) - len(set(steps)), 0)
    check("resumed loss away from undisturbed", abs(resumed["final_val_loss"] - rows[1]["final_val_loss"]), 0.02)
    shutil.rmtree(folder)
    return rows + [dict(precision="bf16, resumed", final_val_loss=resumed["final_val_loss"])]


def speed():
    "Training steps of the base study's models: 384 wide, 49,152 words, 32 windows of 512, bf16 autocast."
    rows = []
    for pattern in "AAAAAAAA", "AMAMAMAM", "MMMMMMMM", "GGGGGGGG":
        torch.manual_seed(0)
        torch.cuda.reset_peak_memory_stats()
        m = HybridForCausalLM(HybridConfig(pattern=pattern)).to(device)
        optimizer = torch.optim.AdamW(m.parameters(), lr=4e-4, fused=True)
        ids, seconds = torch.randint(0, 49152, (32, 513), device=device), []
        for _ in range(8):
            torch.cuda.synchronize(); start = time.perf_counter()
            with torch.autocast("cuda", torch.bfloat16): loss = m(ids[:, :-1], shift_labels=ids[:, 1:], use_cache=False).loss
            loss.backward(); optimizer.step(); optimizer.zero_grad()
            torch.cuda.synchronize(); seconds.append(time.perf_counter() - start)
        step = statistics.median(seconds[3:])
        rows.append(dict(pattern=pattern, parameters=count_parameters(m), step_seconds=step, fastest=min(seconds[3:]), slowest=max(seconds[3:]),
                         tokens_per_second=32*512/step, peak_memory_bytes=torch.cuda.max_memory_allocated()))
        del m, optimizer
    return rows


for part in scan, model, training, speed:
    start = time.perf_counter()
    try: report[part.__name__] = part()
    except Exception: report["failed"].append(f"{part.__name__}: {traceback.format_exc()}")
    print(f"{part.__name__}: {time.perf_counter() - start:.0f} s", json.dumps(report.get(part.__name__)), flush=True)
    save_json(report, args.out)
print("\n".join(report["failed"]) or "all checks passed")
sys.exit(bool(report["failed"]))
