"""Speed and memory of the selective scan on this machine's CPU, beside its peers in the same process.

    python reports/benchmarks/scan.py [--threads 2] [--repeat 7] [--quick]

Prints a table and writes scan-cpu.json beside this file. Peers: the Mamba layers of `transformers` (with and without its
`mambapy` option; without it one token after another, so that is timed once and only with --slow) and of the package
`mambapy` (pip install mambapy); rows of absent peers are left out. Rounds go through all contestants in turn, so that
a slow moment of the machine hits them alike.
"""
import importlib.util, os, resource, statistics, subprocess, sys, time
from pathlib import Path
from fastcore.script import call_parse, store_true
import torch, torch.nn.functional as F
from torch import nn
from hybrid_nb.core import environment, save_json
from hybrid_nb.scan import selective_scan
from hybrid_nb.ssm import GatedConv, Mamba

WIDTH, STATE = 384, 16
OUT = Path(__file__).with_name("scan-cpu.json")


class Attention(nn.Module):
    "Causal self-attention of the same width, 8 heads."
    def __init__(self, d=WIDTH, heads=8):
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(d, 3*d, bias=False), nn.Linear(d, d, bias=False)
    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class Projections(nn.Module):
    "The in- and out-projection of a Mamba layer and nothing between them: the floor."
    def __init__(self, d=WIDTH):
        super().__init__()
        self.i, self.o = nn.Linear(d, 4*d, bias=False), nn.Linear(2*d, d, bias=False)
    def forward(self, x): return self.o(self.i(x).chunk(2, -1)[0])


def transformers_mamba(**kw):
    from transformers import MambaConfig
    from transformers.models.mamba.modeling_mamba import MambaMixer
    return MambaMixer(MambaConfig(hidden_size=WIDTH, state_size=STATE, num_hidden_layers=1, **kw), layer_idx=0)


def mambapy_block():
    from mambapy.mamba import MambaBlock, MambaConfig
    return MambaBlock(MambaConfig(d_model=WIDTH, n_layers=1, d_state=STATE))


def contestants(slow=False):
    have = importlib.util.find_spec("mambapy")
    makers = {"ours, cpu kernel": lambda: Mamba(WIDTH, STATE, backend="cpu"),
              "ours, chunked torch": lambda: Mamba(WIDTH, STATE, backend="chunked"),
              "transformers, mambapy": have and (lambda: transformers_mamba(use_mambapy=True)),
              "mambapy": have and mambapy_block,
              "transformers, slow path": slow and (lambda: transformers_mamba(use_mambapy=False)),
              "gated convolution G": lambda: GatedConv(WIDTH, STATE),
              "two projections": Projections, "attention": Attention}
    return {k: make() for k, make in makers.items() if make}


def seconds(f):
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


def step(m, x):
    "One forward and backward pass."
    for p in m.parameters(): p.grad = None
    m(x).square().mean().backward()


def spread(ts): return dict(median=statistics.median(ts), min=min(ts), max=max(ts), runs=len(ts))


def time_layers(layers, batch, length, repeat):
    "Seconds of forward + backward for each layer; the slow path only once."
    x = torch.randn(batch, length, WIDTH, requires_grad=True)
    ts = {k: [] for k in layers}
    for k, m in layers.items():
        if "slow" not in k: step(m, x)  # compile, allocate
    for i in range(repeat):
        for k, m in layers.items():
            if i == 0 or "slow" not in k: ts[k].append(seconds(lambda: step(m, x)))
    return {k: spread(v) for k, v in ts.items()}


def time_scan(length, repeat, batch=4, channels=2*WIDTH):
    "Seconds of the bare scan, forward and backward apart."
    r = lambda *s: torch.randn(*s, requires_grad=True)
    x = [r(batch, length, channels), r(batch, length, channels), (-torch.rand(channels, STATE)).requires_grad_(),
         r(batch, length, STATE), r(batch, length, STATE), r(channels), r(batch, length, channels), r(channels)]
    fwd, bwd = [], []
    for _ in range(repeat + 1):
        start = time.perf_counter()
        y = selective_scan(*x, delta_softplus=True, backend="cpu")
        mid = time.perf_counter()
        torch.autograd.grad(y, x, torch.ones_like(y))
        fwd.append(mid - start)
        bwd.append(time.perf_counter() - mid)
    return dict(forward=spread(fwd[1:]), backward=spread(bwd[1:]))


def time_decoding(contexts=(16, 512, 4096), tokens=64):
    "Seconds for one more token of one layer, after contexts of several lengths."
    from transformers import DynamicCache, PretrainedConfig
    m, out = Mamba(WIDTH, STATE, layer_idx=0).eval(), {}
    with torch.no_grad():
        for n in contexts:
            cache = DynamicCache(config=PretrainedConfig(num_hidden_layers=1, layer_types=["linear_attention"]))
            m(torch.randn(1, n, WIDTH), cache=cache)
            x = torch.randn(1, 1, WIDTH)
            out[n] = spread([seconds(lambda: m(x, cache=cache)) for _ in range(tokens)])
    return out


def peak_bytes():
    "The most memory this process has held. (Linux passes `ru_maxrss` on from parent to child, so it is of no use there.)"
    status = Path("/proc/self/status")
    if status.exists(): return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def peak_memory(name, length):
    "Bytes by which forward + backward of one layer at `length` raise the memory of a fresh process."
    code = f"""
import sys, torch; sys.path.insert(0, {str(OUT.parent)!r}); import scan
m = scan.contestants()[{name!r}]
scan.step(m, torch.randn(1, 16, scan.WIDTH)); before = scan.peak_bytes()
scan.step(m, torch.randn(1, {length}, scan.WIDTH, requires_grad=True)); print(scan.peak_bytes() - before)"""
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def second_process():
    "Seconds a new process spends on the first call of the kernels, compiled before."
    code = """
import time, torch, torch._dynamo  # what any optimizer imports
t = time.perf_counter()
from hybrid_nb.scan_cpu import scan_cpu
x, b = torch.ones(1, 4, 16, requires_grad=True), torch.ones(1, 4, 2)
scan_cpu(x, x, -torch.ones(16, 2), b, b)[0].sum().backward()
print(time.perf_counter() - t)"""
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


@call_parse
def main(threads: int = 0,  # threads of torch and of the kernels; 0: torch's choice
         repeat: int = 7,   # rounds
         quick: store_true = False, # no lengths beyond 2,048, no memory
         slow: store_true = False,  # also transformers' slow path (about a minute)
         out: str = str(OUT)        # where the JSON goes
        ):
    "Benchmark the selective scan on the CPU."
    if threads: torch.set_num_threads(threads)
    torch.manual_seed(0)
    res = dict(environment=environment(), threads=torch.get_num_threads(), width=WIDTH, state=STATE, load_at_start=os.getloadavg())
    res["layer"] = time_layers(contestants(slow), 4, 512, repeat)
    print(f"one layer, 4 x 512 x {WIDTH}, forward + backward, {res['threads']} threads, median of {repeat}")
    for k, v in res["layer"].items(): print(f"  {k:24} {v['median']:8.3f} s   ({v['min']:.3f} - {v['max']:.3f})")
    ours = {"ours, cpu kernel": Mamba(WIDTH, STATE, backend="cpu")}
    res["length"] = {n: time_layers(ours, 1, n, 3)["ours, cpu kernel"] for n in (512, 1024, 2048, 4096, 8192, 16384) if n <= 2048 or not quick}
    print("layer by length, batch 1:", ", ".join(f"{n}: {v['median']:.3f} s" for n, v in res["length"].items()))
    res["scan"] = time_scan(512, repeat)
    print("bare scan, 4 x 512 x 768:", ", ".join(f"{k} {v['median']:.4f} s" for k, v in res["scan"].items()))
    res["decoding"] = time_decoding()
    print("one token after:", ", ".join(f"{n}: {v['median']*1e3:.2f} ms" for n, v in res["decoding"].items()))
    res["second_process"] = second_process()
    print(f"kernels ready in a second process after {res['second_process']:.2f} s")
    if not quick:
        res["peak_memory_8192"] = {k: peak_memory(k, 8192) for k in contestants() if "G" not in k}
        for k, v in res["peak_memory_8192"].items(): print(f"  peak memory at 8,192 tokens: {k:24} {v/2**20:8.0f} MB")
    save_json(res, out)
