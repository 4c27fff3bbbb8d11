"Small models with random weights, for tests and examples."
from contextlib import contextmanager
import torch
from hybrid_nb.core.patterns import blocks
from hybrid_nb.models.config import HybridConfig
from hybrid_nb.models.modeling import HybridForCausalLM
from hybrid_nb.models.registry import mixers

SIZES = dict(vocab_size=101, hidden_size=32, num_attention_heads=4, state_size=8, ssd_state_size=8, ssd_head_dim=16,
             sliding_window=12, q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4)


def small_model(pattern, **settings):
    "A model of `pattern`, in training mode; the same weights each time."
    torch.manual_seed(0)
    return HybridForCausalLM(HybridConfig(pattern=pattern, **SIZES | settings))


@contextmanager
def letters_restored():
    "Forget the letters that are registered within, and restore those that are replaced."
    kept = [(table, dict(table)) for table in (blocks, mixers)]
    try: yield
    finally:
        for table, content in kept: table.clear(); table.update(content)


def small_writer(pattern, tokenizer, seed=0, **settings):
    "A model with random weights for a tokenizer, in evaluation mode; every token is a close decision."
    torch.manual_seed(seed)
    sizes = SIZES | dict(vocab_size=len(tokenizer), state_size=4, sliding_window=8, qk_nope_head_dim=8,
                         dropout=0., initializer_range=.3, eos_token_id=tokenizer.eos_token_id)
    del sizes["q_lora_rank"]
    return HybridForCausalLM(HybridConfig(pattern=pattern, **sizes | settings)).eval()
