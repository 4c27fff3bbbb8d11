"""Speed and memory of the selective scan on this machine's CPU, beside its peers in the same process.

    python reports/benchmarks/scan.py [--threads 2] [--repeat 7] [--quick] [--slow]

Prints tables and writes scan-cpu.json beside this file; scan.ipynb draws it. Peers: the Mamba layers of `transformers`
with its `mambapy` option (and without, one token after another, if asked by --slow) and of the package `mambapy`; rows
of absent peers are left out. Rounds go through all contestants in turn, so that a slow moment hits them alike.
"""
import importlib.util, os, resource, statistics, subprocess, sys, time
from pathlib import Path
from fastcore.script import call_parse
import torch, torch.nn.functional as F
from torch import nn
from hybrid_nb.core.runs import environment
from hybrid_nb.core.files import save_json
from hybrid_nb.models.config import HybridConfig
from hybrid_nb.models.modeling import HybridForCausalLM
from hybrid_nb.mixers.scan import selective_scan
from hybrid_nb.mixers.mamba2 import Mamba2
from hybrid_nb.mixers.gated_conv import GatedConv
from hybrid_nb.mixers.mamba import Mamba

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


def transformers_mamba2():
    from transformers import Mamba2Config
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer
    config = Mamba2Config(hidden_size=WIDTH, state_size=64, head_dim=64, num_heads=2*WIDTH//64, n_groups=1,
                          chunk_size=64, num_hidden_layers=1)
    return Mamba2Mixer(config, layer_idx=0)


def contestants():
    have = importlib.util.find_spec("mambapy")
    makers = {"M, cpu kernel": lambda: Mamba(WIDTH, STATE, backend="cpu"),
              "M, chunked torch": lambda: Mamba(WIDTH, STATE, backend="chunked"),
              "transformers, mambapy": have and (lambda: transformers_mamba(use_mambapy=True)),
              "mambapy": have and mambapy_block,
              "S, 64 states": lambda: Mamba2(WIDTH, 64),
              "transformers Mamba-2": transformers_mamba2,
              "G": lambda: GatedConv(WIDTH, STATE),
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


def rounds(fs, repeat):
    "Spread of the seconds of each of `fs`, taking turns."
    ts = {k: [] for k in fs}
    for _ in range(repeat):
        for k, f in fs.items(): ts[k].append(seconds(f))
    return {k: spread(v) for k, v in ts.items()}


def time_layers(layers, batch, length, repeat):
    "Seconds of forward + backward for each layer."
    x = torch.randn(batch, length, WIDTH, requires_grad=True)
    for m in layers.values(): step(m, torch.randn(1, 64, WIDTH))  # compile, allocate
    return rounds({k: lambda m=m: step(m, x) for k, m in layers.items()}, repeat)


def time_lengths(layers, lengths, most=2.):
    "`time_layers` by length, batch 1; a layer that took longer than `most` seconds is not asked for more."
    out = {k: {} for k in layers}
    for n in lengths:
        going = {k: m for k, m in layers.items() if all(v["median"] < most for v in out[k].values())}
        for k, v in time_layers(going, 1, n, 3).items(): out[k][n] = v
    return out


class PeerModel(nn.Module):
    "`AMAMAMAM` of the base study from transformers' parts: Llama attention, Mamba with `mambapy`, all logits at once."
    def __init__(self, c):
        super().__init__()
        from transformers import LlamaConfig
        from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding
        attention = LlamaConfig(hidden_size=c.hidden_size, num_attention_heads=c.num_attention_heads,
                                attn_implementation="sdpa")
        self.rope, self.embed = LlamaRotaryEmbedding(attention), nn.Embedding(c.vocab_size, c.hidden_size)
        make = dict(A=lambda i: LlamaAttention(attention, i), M=lambda i: transformers_mamba(use_mambapy=True))
        self.mixers = nn.ModuleList([make[letter](i) for i, letter in enumerate(c.pattern)])
        self.norms = nn.ModuleList([nn.LayerNorm(c.hidden_size) for _ in range(len(c.pattern) + 1)])
        self.drop, self.pattern = nn.Dropout(c.dropout), c.pattern
        nn.init.normal_(self.embed.weight, std=.02)

    def forward(self, input_ids, shift_labels):
        x = self.embed(input_ids) * WIDTH**.5
        rope = self.rope(x, torch.arange(x.shape[1])[None])
        for letter, norm, mixer in zip(self.pattern, self.norms, self.mixers):
            x = x + self.drop(mixer(norm(x), rope, None)[0] if letter == "A" else mixer(norm(x)))
        return F.cross_entropy(F.linear(self.norms[-1](x), self.embed.weight).flatten(0, 1), shift_labels.flatten())


def time_models(repeat, batch=4, length=512):
    "Seconds of a training step (forward, backward, AdamW) of the base model, ours and put together from peers."
    c, fs = HybridConfig(pattern="AMAMAMAM", fused_loss=True), {}
    models = {"ours": HybridForCausalLM(c).train()}
    if importlib.util.find_spec("mambapy"): models["transformers' parts, mambapy"] = PeerModel(c).train()
    tokens = torch.randint(c.vocab_size, (batch, length + 1))
    for k, m in models.items():
        optimizer = torch.optim.AdamW(m.parameters(), fused=True)
        def train_step(m=m, optimizer=optimizer):
            out = m(tokens[:, :-1], shift_labels=tokens[:, 1:])
            (out if isinstance(out, torch.Tensor) else out.loss).backward()
            optimizer.step()
            optimizer.zero_grad()
        train_step()
        fs[k] = train_step
    return {k: v | dict(tokens_per_second=batch * length / v["median"]) for k, v in rounds(fs, repeat).items()}


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
    "The most memory this process has held. (Linux passes `ru_maxrss` on from parent to child: no use there.)"
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
from hybrid_nb.mixers.scan_cpu import scan_cpu
x, b = torch.ones(1, 4, 16, requires_grad=True), torch.ones(1, 4, 2)
scan_cpu(x, x, -torch.ones(16, 2), b, b)[0].sum().backward()
print(time.perf_counter() - t)"""
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


@call_parse
def main(threads: int = 0,  # threads of torch and of the kernels; 0: torch's choice
         repeat: int = 7,   # rounds
         quick: bool = False, # only the layers at length 512 and the models
         slow: bool = False,  # also transformers' Mamba without mambapy (a minute a layer)
         out: str = str(OUT)  # where the JSON goes
        ):
    "Benchmark the selective scan on the CPU."
    if threads: torch.set_num_threads(threads)
    torch.manual_seed(0)
    start = time.time()
    res = dict(environment=environment(), threads=torch.get_num_threads(), width=WIDTH, state=STATE,
               load_at_start=os.getloadavg())
    def say(text): print(f"[{time.time() - start:4.0f} s] {text}", flush=True)
    res["layer"] = time_layers(contestants(), 4, 512, repeat)
    if slow:
        without = {"transformers, no kernels": transformers_mamba(use_mambapy=False)}
        res["layer"] |= time_layers(without, 4, 512, 1)
    say(f"one layer, 4 x 512 x {WIDTH}, forward + backward, {res['threads']} threads, median of {repeat}")
    for k, v in res["layer"].items(): print(f"  {k:24} {v['median']:8.3f} s   ({v['min']:.3f} - {v['max']:.3f})")
    res["model"] = time_models(3)
    steps = ", ".join(f"{k} {v['median']:.2f} s" for k, v in res["model"].items())
    say(f"a training step of AMAMAMAM, 4 x 512 tokens: {steps}")
    res["scan"] = time_scan(512, repeat)
    say("bare scan, 4 x 512 x 768: " + ", ".join(f"{k} {v['median']:.4f} s" for k, v in res["scan"].items()))
    res["decoding"] = time_decoding()
    say("one token after: " + ", ".join(f"{n}: {v['median']*1e3:.2f} ms" for n, v in res["decoding"].items()))
    res["second_process"] = second_process()
    say(f"kernels ready in a second process after {res['second_process']:.2f} s")
    if not quick:
        res["length"] = time_lengths(contestants(), (512, 1024, 2048, 4096, 8192, 16384))
        for k, v in res["length"].items():
            say(f"{k:24} by length: " + ", ".join(f"{n}: {t['median']:.3f} s" for n, t in v.items()))
        res["peak_memory"] = {k: {n: peak_memory(k, n) for n in (1024, 2048, 4096, 8192)} for k in contestants()}
        for k, v in res["peak_memory"].items():
            say(f"{k:24} peak memory: " + ", ".join(f"{n}: {b/2**20:.0f} MB" for n, b in v.items()))
    res["seconds"] = time.time() - start
    save_json(res, out)
