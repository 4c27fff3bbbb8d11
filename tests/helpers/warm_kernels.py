"""Compiles the kernels of the CPU, so that tests load them.

The process that compiles a kernel may round its results otherwise than those that load it from the cache, and some
tests compare runs of several processes to the last digit.
"""
import torch
from hybrid_nb.models.config import HybridConfig
from hybrid_nb.models.modeling import HybridForCausalLM

torch.manual_seed(0)
sizes = dict(vocab_size=60, hidden_size=32, num_attention_heads=2, state_size=4, ssd_state_size=8, ssd_head_dim=16)
ids = torch.randint(1, 60, (2, 40))
for pattern in "MSG", "AM": # in one call the kernels of all recurrent mixers; then as most tests use them
    model = HybridForCausalLM(HybridConfig(pattern=pattern, **sizes))
    model(ids, labels=ids).loss.backward()
    model.eval().generate(ids[:, :8], max_new_tokens=4, do_sample=False, pad_token_id=0)
