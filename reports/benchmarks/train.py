"""Tokens a second of training and evaluation on this machine's CPU, beside an earlier commit and the rate of a product.

    python reports/benchmarks/train.py [--before CHECKOUT] [--threads 2] [--repeat 5] [--patterns "A8 M8"] [--small]

Prints a table and writes train-cpu.json beside this file, or train-small-cpu.json with --small, for the models of the
quick study instead of the base study's. Each measurement is a process of its own: it builds the model, takes a step to
warm up, and then times whole steps (forward, backward, clipping, AdamW) and evaluations, by sums and by document. With
--before, the package of another checkout takes turns with ours.
"""
import json, os, resource, statistics, subprocess, sys, time
from pathlib import Path
from fastcore.script import call_parse

ROOT = Path(__file__).resolve().parents[2]
SIZES = dict(base=dict(length=512, vocab_size=49_152), # the base study's width and heads
             small=dict(length=256, vocab_size=2048, hidden_size=64, num_attention_heads=4, state_size=8, dropout=0.))
PATTERNS = dict(base="AMAMAMAM A8 M8 S8 (AF)4", small="AAAA MMMM AMAM GGGG SSSS")
BATCH = 4


def timed(f):
    "What a call takes: seconds, seconds of the processor, page faults."
    def now(): return time.perf_counter(), time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    before = now()
    f()
    return dict(zip(("seconds", "processor", "faults"), (b - a for a, b in zip(before, now()))))


def repeated(f, repeat):
    "Medians of what a call takes, after one that compiles and allocates."
    f()
    rows = [timed(f) for _ in range(repeat)]
    return {k: statistics.median(r[k] for r in rows) for k in rows[0]}


def product_gflops(precision, threads, n=2048):
    "Billions of operations a square product has in a second, and in a second of all threads' processor time."
    import torch
    a, b = torch.randn(2, n, n).to(dict(fp32=torch.float32, bf16=torch.bfloat16)[precision])
    took = repeated(lambda: a @ b, 5)
    return dict(seconds=2 * n**3 / took["seconds"] / 1e9, processor=2 * n**3 * threads / took["processor"] / 1e9)


def measure(pattern, precision, threads, repeat, size):
    "One model in this process: a step, evaluations by sums and by document, peak memory."
    try:
        from hybrid_nb.core.memory import keep_memory
        keep_memory()
    except ImportError: pass # a commit from before there was one
    import torch
    from hybrid_nb.models.config import HybridConfig
    from hybrid_nb.models.cost import training_flops
    from hybrid_nb.models.modeling import HybridForCausalLM
    from hybrid_nb.training.config import TrainConfig
    from hybrid_nb.training.objective import Objective
    from hybrid_nb.training.optim import make_optimizers
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    sizes = dict(SIZES[size])
    length = sizes.pop("length")
    model = HybridForCausalLM(HybridConfig(pattern=pattern, **sizes)).train()
    objective, [optimizer] = Objective(model), make_optimizers(model, TrainConfig())
    x, y = torch.randint(0, sizes["vocab_size"], (2, BATCH, length))

    def forward(*args):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"): return objective(x, y, *args)

    def step():
        forward(BATCH * length)[0].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.)
        optimizer.step()
        optimizer.zero_grad()

    @torch.no_grad()
    def evaluation(each): objective.eval(); forward(1, each); objective.train()

    found = dict(step=repeated(step, repeat))
    found |= dict(peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    for name, each in dict(evaluation=False, evaluation_by_document=True).items():
        found[name] = repeated(lambda: evaluation(each), repeat)
    flops = BATCH * length * sum(training_flops(model.config, length).values())
    return found | dict(flops=flops, product_gflops=product_gflops(precision, threads))


def run_child(checkout, *args):
    "`measure` in a new process, with the package of a checkout."
    command = [sys.executable, __file__, "--child", json.dumps(args)]
    out = subprocess.run(command, check=True, capture_output=True, text=True, cwd=checkout,
                         env=os.environ | dict(PYTHONPATH=str(checkout)))
    return json.loads(out.stdout.splitlines()[-1])


def show(row, threads, length):
    "A line of the table. Rates by the processor's time, which others on the machine disturb less than the clock."
    step, tokens = row["step"], BATCH * length * threads
    rates = [tokens / row[k]["processor"] for k in ("step", "evaluation", "evaluation_by_document")]
    share = row["flops"] / step["processor"] * threads / 1e9 / row["product_gflops"]["processor"]
    print(f"{row['pattern']:9} {row['precision']} {row['commit']:7}", *(f"{r:8,.0f}" for r in rates),
          f"{share:5.0%} of the product {step['faults']:9,.0f} faults {row['peak_bytes']/2**20:7,.0f} MiB "
          f"{BATCH * length / step['seconds']:6,.0f} by the clock", flush=True)


@call_parse
def main(before: str = None, # a checkout of an earlier commit
         threads: int = 2, # torch's threads
         repeat: int = 5, # measurements of which the median counts
         patterns: str = None, # with spaces between; default: some of the base study's, or of the quick study's
         precisions: str = "fp32 bf16", # with spaces between
         small: bool = False, # the quick study's models instead of the base study's
         out: str = None, # file to write
         child: str = None # for the processes that measure
        ):
    "Measure training and evaluation on the CPU."
    if child: return print(json.dumps(measure(*json.loads(child))))
    from hybrid_nb.core.files import save_json
    from hybrid_nb.core.runs import environment, git_revision
    checkouts = (dict(before=Path(before).resolve()) if before else {}) | dict(after=ROOT)
    size = "small" if small else "base"
    out = out or Path(__file__).with_name("train-small-cpu.json" if small else "train-cpu.json")
    about = dict(batch=BATCH, **SIZES[size], threads=threads, environment=environment(),
                 revisions={k: git_revision(v) for k, v in checkouts.items()})
    rows = []
    for pattern in (patterns or PATTERNS[size]).split():
        for precision in precisions.split():
            for commit, folder in checkouts.items():
                found = run_child(folder, pattern, precision, threads, repeat, size)
                rows.append(dict(pattern=pattern, precision=precision, commit=commit) | found)
                show(rows[-1], threads, SIZES[size]["length"])
                save_json(about | dict(rows=rows), out) # what is measured stays, whatever comes
