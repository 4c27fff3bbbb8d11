"""What it costs that a row holds several texts: steps of training joined, packed and padded, in turns, by one thread.

    python reports/benchmarks/segments.py [--repeat 15]

Prints a table and writes segments-cpu.json beside this file. Packed: documents of about 80 tokens that do not see each
other (`documents="separate"`). Padded: a third of each row is padding on the left (on the right it is free).
Processor time of forward and backward, medians.
"""
import statistics, time
from pathlib import Path
from fastcore.script import call_parse
import torch
from hybrid_nb.core.files import save_json
from hybrid_nb.core.runs import environment
from hybrid_nb.models.config import HybridConfig
from hybrid_nb.models.modeling import HybridForCausalLM
from hybrid_nb.training.objective import Objective

OUT = Path(__file__).with_name("segments-cpu.json")
SHAPES = [(p, 4, 512, 256) for p in ("A8", "W8", "L8", "M8", "S8", "G8", "AMAMAMAM")]
SHAPES += [(p, 4, 256, 64) for p in ("AAAA", "AMAM")]


def steps(pattern, batch, length, width):
    "Functions that do a step each: joined, packed, padded."
    torch.manual_seed(0)
    model = HybridForCausalLM(HybridConfig(pattern=pattern, vocab_size=2048, hidden_size=width, num_attention_heads=8))
    x = torch.randint(1, 2048, (batch, length))
    x[torch.rand(batch, length) < 1/80] = 0
    y, mask = x.roll(-1, 1), torch.ones_like(x)
    mask[:, :length//3] = 0
    joined, packed = Objective(model.train()), Objective(model, 0)
    def padded(): return model.model(x, attention_mask=mask, use_cache=False).last_hidden_state.square().sum()
    def whole(): return model.model(x, use_cache=False).last_hidden_state.square().sum()
    return dict(joined=lambda: joined(x, y)[0], packed=lambda: packed(x, y)[0], whole=whole, padded=padded)


def measure(shape, repeat):
    "Median seconds of each."
    kinds, seconds = steps(*shape), {}
    for i in range(repeat + 1):
        for name, f in kinds.items():
            start = time.process_time()
            f().backward()
            if i: seconds.setdefault(name, []).append(time.process_time() - start)
    return {k: statistics.median(v) for k, v in seconds.items()}


@call_parse
def main(repeat: int = 15, # rounds
         out: Path = OUT # where to write
        ):
    "Measure, print and write."
    torch.set_num_threads(1)
    rows = []
    for shape in SHAPES:
        s = measure(shape, repeat)
        row = dict(zip(("pattern", "batch", "length", "width"), shape)) | s
        row |= dict(packed_costs=s["packed"]/s["joined"] - 1, padded_costs=s["padded"]/s["whole"] - 1)
        rows.append(row)
        print(f"{shape[0]:10} width {shape[3]:4}  step {s['joined']*1e3:6.0f} ms  packed {row['packed_costs']:+6.1%}  "
              f"padded {row['padded_costs']:+6.1%}", flush=True)
    save_json(out, dict(environment=environment(), rows=rows))
