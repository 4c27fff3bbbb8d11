"""Speed and memory of generation on a CPU, beside transformers' models of equal size.

Writes generation-cpu.json; `--quick` is for trying out.
"""
import argparse, json, os, resource, time
from pathlib import Path
from statistics import median
import torch
from transformers import (BambaConfig, BambaForCausalLM, JambaConfig, JambaForCausalLM, LlamaConfig, LlamaForCausalLM,
                          Mamba2Config, Mamba2ForCausalLM, MambaConfig, MambaForCausalLM)
from transformers.utils import logging
from hybrid_nb.core.runs import environment
from hybrid_nb.core.files import save_json
from hybrid_nb.models.config import HybridConfig
from hybrid_nb.models.modeling import HybridForCausalLM

logging.set_verbosity_error()
WIDTH, LAYERS, HEADS = 384, 8, 8

def ours(pattern, vocab):
    return HybridForCausalLM(HybridConfig(pattern=pattern, vocab_size=vocab, hidden_size=WIDTH,
                                          num_attention_heads=HEADS, intermediate_size=1024, dropout=0.)).eval()

def peers(vocab):
    "transformers' models of about the same size; Jamba's and Bamba's blocks have a gated MLP each."
    common = dict(vocab_size=vocab, hidden_size=WIDTH, pad_token_id=0, bos_token_id=0, eos_token_id=None,
                  tie_word_embeddings=True)
    heads = dict(num_attention_heads=HEADS, num_key_value_heads=HEADS, intermediate_size=1024)
    mamba2 = dict(num_heads=12, head_dim=64, n_groups=1, state_size=64)
    jamba = dict(attn_layer_period=4, attn_layer_offset=2, num_experts=1, num_experts_per_tok=1,
                 use_mamba_kernels=False)
    bamba = dict(attn_layer_indices=[2], mamba_n_heads=12, mamba_d_head=64, mamba_d_state=64, mamba_n_groups=1)
    return {"Mamba": MambaForCausalLM(MambaConfig(num_hidden_layers=LAYERS, **common)),
            "Mamba-2": Mamba2ForCausalLM(Mamba2Config(num_hidden_layers=LAYERS, **mamba2, **common)),
            "Llama": LlamaForCausalLM(LlamaConfig(num_hidden_layers=4, **heads, **common)),
            "Jamba": JambaForCausalLM(JambaConfig(num_hidden_layers=4, **jamba, **heads, **common)),
            "Bamba": BambaForCausalLM(BambaConfig(num_hidden_layers=4, **bamba, **heads, **common))}

twins = {"Mamba": "M8", "Mamba-2": "S8", "Llama": "(AF)4", "Jamba": "MFMFAFMF", "Bamba": "SFSFAFSF"}

@torch.no_grad()
def seconds(model, prompt, n, **kw):
    start = time.perf_counter()
    model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=n, min_new_tokens=n, do_sample=False,
                   pad_token_id=0, **kw)
    return time.perf_counter() - start

def speed(vocab, batches, n, rounds):
    "Tokens a second, greedy, after a prompt of 32 tokens; the models take turns."
    models = {f"transformers {k}": m.eval() for k, m in peers(vocab).items()}
    models |= {f"{twins[k]} beside {k}": ours(twins[k], vocab) for k in twins}
    found = []
    for batch in batches:
        prompt = torch.randint(1, vocab, (batch, 32))
        times = {k: [] for k in models}
        for i in range(rounds + 1):
            for k, m in models.items():
                t = seconds(m, prompt, n)
                if i: times[k].append(t)
        found += [dict(model=k, vocabulary=vocab, parameters=m.num_parameters(), batch=batch, new_tokens=n,
                       seconds=times[k], tokens_per_second=batch * n / median(times[k])) for k, m in models.items()]
    return found

def held(cache): return sum(t.numel() * t.element_size() for t in cache.tensors().values())

@torch.no_grad()
def flatness(pattern, contexts, rounds, vocab=2048, chunk=2048):
    "Seconds for one more token after contexts of several lengths, which take turns; the prompts are read in chunks."
    model = ours(pattern, vocab)
    caches, prefill = {}, {}
    for n in contexts:
        cache, ids, start = model.new_cache(), torch.randint(1, vocab, (1, n)), time.perf_counter()
        for part in ids.split(chunk, 1): model(part, past_key_values=cache, use_cache=True, logits_to_keep=1)
        caches[n], prefill[n] = cache, time.perf_counter() - start
    token, times = torch.ones(1, 1, dtype=torch.long), {n: [] for n in contexts}
    for i in range(rounds + 10):
        for n in contexts if i % 2 else reversed(contexts): # each follows each
            start = time.perf_counter()
            model(token, past_key_values=caches[n], use_cache=True, logits_to_keep=1)
            if i >= 10: times[n].append(time.perf_counter() - start)
    return [dict(pattern=pattern, context=n, seconds_per_token=median(times[n]), cache_bytes=held(caches[n]),
                 prefill_seconds=prefill[n]) for n in contexts]

if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--out", default=Path(__file__).with_name("generation-cpu.json"))
    p.add_argument("--quick", action="store_true")
    p.add_argument("--threads", type=int, default=0)
    args = p.parse_args()
    if args.threads: torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    n, rounds = (8, 1) if args.quick else (64, 5)
    result = dict(environment=environment(), threads=torch.get_num_threads(), load=list(os.getloadavg()))
    batches = {2048: (1,) if args.quick else (1, 8), 49152: (1,)}
    result["speed"] = [r for vocab in batches for r in speed(vocab, batches[vocab], n, rounds)]
    contexts = [256, 1024] if args.quick else [1024, 4096, 16384, 65536]
    result["flat"] = []
    for pattern in ("M8", "S8", "G8", "(MW)4", "(MA)4"):
        shorter = [n for n in contexts if n <= 16384 or "A" not in pattern]
        result["flat"] += flatness(pattern, shorter, 20 if args.quick else 150)
    result["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    result["load_after"] = list(os.getloadavg())
    save_json(result, args.out)
    rows = [r for r in result["speed"] if r["batch"] == 1 and r["vocabulary"] == 2048]
    print(json.dumps({r["model"]: round(r["tokens_per_second"], 1) for r in rows}, indent=1))
