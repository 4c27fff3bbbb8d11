"""Speed of the context-vector model's loop on this machine's CPU, beside the equations written plainly in torch.

    python reports/benchmarks/context.py [--threads 2] [--repeat 7] [--large 3] [--quick]

Prints a table and writes context-cpu.json beside this file. At the study's size (64-token windows, embedding and
context 256, width 512, 6 layers, vocabulary 1,000, dropout 0.1) it times forward + backward of
  - equations: the study's equations as one would write them in torch, all within the loop over tokens, logits too;
  - plain: `loop="plain"` of the package, which takes logits and loss after the loop;
  - fast: `loop="fast"`.
Rounds go through the contestants in turn, so that a slow moment of the machine hits them alike. Beside the seconds
stand the CPU seconds of all threads, which other programs on the machine disturb less, and the floor: the time of the
matrix products alone at the speed of a large product, measured in the same rounds.
"""
import os, statistics, time
from pathlib import Path
from fastcore.script import call_parse
import torch, torch.nn.functional as F
from torch import nn
from hybrid_nb.models.context_config import ContextConfig
from hybrid_nb.models.context_vector import ContextForCausalLM
from hybrid_nb.core.runs import environment
from hybrid_nb.core.files import save_json

LENGTH, E, D, H, DEPTH, VOCAB, DROPOUT = 64, 256, 256, 512, 6, 1000, 0.1
OUT = Path(__file__).with_name("context-cpu.json")


class Equations(nn.Module):
    "The study's model, as its equations read."
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(VOCAB, E)
        layers = [(nn.Linear(H if i else E + D, H), nn.ReLU(), nn.Dropout(DROPOUT)) for i in range(DEPTH)]
        self.fnn = nn.Sequential(*(m for layer in layers for m in layer))
        self.forget, self.input, self.write = (nn.Linear(H, D) for _ in range(3))
        self.norm, self.head = nn.LayerNorm(D), nn.Linear(H, VOCAB)

    def forward(self, ids, targets):
        c, logits = torch.zeros(len(ids), D), []
        for t in range(ids.shape[1]):
            h = self.fnn(torch.cat([self.embed(ids[:, t]), c], -1))
            logits.append(self.head(h))
            c = self.norm(self.forget(h).sigmoid()*c + self.input(h).sigmoid()*self.write(h)).clamp(-10, 10)
        return F.cross_entropy(torch.stack(logits, 1).flatten(0, 1).float(), targets.flatten())


def in_loop(): return 2 * (D*H + (DEPTH - 1)*H*H + 3*D*H)        # operations of a token, forward, that need the context
def all_products(): return in_loop() + 2 * (E*H + H*VOCAB)
def step_flops(batch): return 3 * all_products() * batch * LENGTH  # forward, and twice that backward


def contestants():
    sizes = dict(vocab_size=VOCAB, dropout=DROPOUT, fused_loss=True)
    def ours(loop): return ContextForCausalLM(ContextConfig(loop=loop, **sizes)).train()
    models = {loop: ours(loop) for loop in ("plain", "fast")}
    def of(m): return lambda ids, targets: m(ids, shift_labels=targets).loss
    return dict(equations=(e := Equations(), e), **{k: (m, of(m)) for k, m in models.items()})


def step(model, loss, ids, targets, half):
    "One forward and backward pass."
    for p in model.parameters(): p.grad = None
    with torch.autocast("cpu", torch.bfloat16, enabled=half): out = loss(ids, targets)
    out.backward()


def timed(f):
    start, cpu = time.perf_counter(), time.process_time()
    f()
    return time.perf_counter() - start, time.process_time() - cpu


def spread(ts): return dict(median=statistics.median(ts), min=min(ts), max=max(ts), runs=len(ts))


def product(dtype):
    "A large matrix product, of 4 x 2048 x 512 x 512 multiply-adds."
    a, b = torch.randn(2048, H, dtype=dtype), torch.randn(H, H, dtype=dtype)
    return lambda: [a @ b for _ in range(4)]


def compare(batch, repeat, half):
    "Seconds and CPU seconds of each contestant, and the floor."
    ids, targets = torch.randint(VOCAB, (2, batch, LENGTH))
    fs = {k: (lambda m=m, loss=loss: step(m, loss, ids, targets, half)) for k, (m, loss) in contestants().items()}
    fs["product"] = product(torch.bfloat16 if half else torch.float32)
    for f in fs.values() if batch < 1000 else [fs["product"]]: f()  # allocate
    ts = {k: [] for k in fs}
    for _ in range(repeat):
        for k, f in fs.items(): ts[k].append(timed(f))
    out = {k: dict(seconds=spread([s for s, _ in v]), cpu_seconds=spread([c for _, c in v])) for k, v in ts.items()}
    done = 4 * 2 * 2048 * H * H
    floor = {k: step_flops(batch) * out["product"][k]["median"] / done for k in ("seconds", "cpu_seconds")}
    ratios = {k: {j: out[k][j]["median"] / out["fast"][j]["median"] for j in floor} for k in ("equations", "plain")}
    return dict(batch=batch, dtype="bf16 autocast" if half else "fp32", flops=step_flops(batch), floor=floor,
                times_faster=ratios, **out)


@call_parse
def main(threads: int = 2, # threads of torch and of the loop
         repeat: int = 7,  # rounds
         large: int = 3,   # rounds at the study's batch of 2,048; 0: without it; in float32 only
         quick: bool = False, # only batch 32 in float32
         out: str = str(OUT)  # where the JSON goes
        ):
    "Benchmark the context-vector loop on the CPU."
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    begin = time.time()
    sizes = dict(length=LENGTH, embedding=E, context=D, hidden=H, depth=DEPTH, vocabulary=VOCAB, dropout=DROPOUT)
    res = dict(environment=environment(), threads=threads, load_at_start=os.getloadavg(), sizes=sizes,
               flops_per_token=dict(in_loop=in_loop(), all=all_products()), rows=[])
    plan = [(b, repeat, half) for half in (False, True) for b in (1, 8, 32, 256)] + [(2048, large, False)] * bool(large)
    if quick: plan = [(32, repeat, False)]
    print(f"forward + backward of {LENGTH}-token windows, {threads} threads, medians; floor: the matrix products alone")
    for batch, rounds, half in plan:
        row = compare(batch, rounds, half)
        res["rows"].append(row)
        save_json(res, out) # a large batch may be more than one has time for
        parts = ", ".join(f"{k} {row[k]['seconds']['median']:.3f} s (CPU {row[k]['cpu_seconds']['median']:.3f})"
                          for k in ("equations", "plain", "fast"))
        floor, faster = row["floor"], row["times_faster"]["equations"]
        print(f"[{time.time() - begin:4.0f} s] {row['dtype']:13} batch {batch:4}: {parts}, "
              f"floor {floor['seconds']:.3f} (CPU {floor['cpu_seconds']:.3f}); "
              f"fast is {faster['seconds']:.2f} x the equations (CPU {faster['cpu_seconds']:.2f} x)", flush=True)
    res["load_at_end"], res["seconds"] = os.getloadavg(), time.time() - begin
    save_json(res, out)
