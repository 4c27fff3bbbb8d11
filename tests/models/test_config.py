"Each impossible setting is refused in one line that names it; a letter's author is known."
import subprocess, sys
import pytest, torch
from hybrid_nb.core.patterns import blocks
from hybrid_nb.mixers.mlp import GatedMLP
from hybrid_nb.models.config import HybridConfig
from hybrid_nb.models.registry import mixers, own_letters, register

BAD = [
    (dict(pattern="AxM"), "unknown block 'x'"),
    (dict(num_attention_heads=7), "num_attention_heads 7: must be a divisor of hidden_size 384"),
    (dict(num_key_value_heads=3), "num_key_value_heads 3"),
    (dict(norm="batchnorm"), "layernorm or rmsnorm"),
    (dict(dropout=1.0), "dropout 1.0"),
    (dict(sliding_window=1), "sliding_window 1"),
    (dict(scan_backend="gpu"), "scan_backend 'gpu'"),
    (dict(rope_theta=0.), "rope_theta 0.0"),
    (dict(time_step_max=1e-4), "time_step_max 0.0001: must be above time_step_min"),
    (dict(initializer_range=-1.), "initializer_range -1"),
    (dict(hidden_size=72), "num_attention_heads 8: must be a number that makes the head size even"),
    (dict(norm_eps=0.), "norm_eps 0"),
    (dict(hidden_size=0), "hidden_size 0"),
    (dict(state_size=-1), "state_size -1"),
    (dict(time_step_rank="big"), "time_step_rank 'big'"),
    (dict(pattern="S", ssd_head_dim=50), "ssd_head_dim 50: must be a divisor of expand * hidden_size = 768"),
    (dict(ssd_state_size=0), "ssd_state_size 0"),
    (dict(pattern="S", ssd_groups=5), "ssd_groups 5: must be a divisor of the 12 heads"),
    (dict(pattern="L", qk_rope_head_dim=15), "qk_rope_head_dim 15: must be even"),
    (dict(qk_rope_head_dim=0), "qk_rope_head_dim 0"),
    (dict(kv_lora_rank=0), "kv_lora_rank 0"),
    (dict(pattern="L", qk_nope_head_dim=-1), "qk_nope_head_dim -1"),
    (dict(pattern="L", q_lora_rank=0), "q_lora_rank 0: must be none or"),
    (dict(pattern="L", v_head_dim=0), "v_head_dim 0"),
    (dict(pattern="L", num_attention_heads=7),
     "num_attention_heads 7: must be a divisor of hidden_size 384, or v_head_dim given"),
    (dict(rope_type="dynamic"), "rope_type 'dynamic': must be linear, yarn or none"),
    (dict(rope_type="linear", rope_theta=None), "must be none where rope_theta is none"),
    (dict(rope_factor=2.), "rope_factor 2.0: must be 1 unless"),
    (dict(rope_type="linear", rope_factor=0.5), "rope_factor 0.5"),
    (dict(rope_type="yarn", rope_factor=2.), "rope_original_length None: must be the number"),
    (dict(rope_original_length=512), "rope_original_length 512: must be none unless"),
    (dict(rope_type="yarn", rope_original_length=512, rope_theta=1.), "rope_theta 1.0: must be above 1"),
]


@pytest.mark.parametrize("settings, says", BAD, ids=[says[:40] for _, says in BAD])
def test_refuses(settings, says):
    with pytest.raises(ValueError) as e: HybridConfig(**settings)
    assert says in str(e.value) and "\n" not in str(e.value)


@pytest.fixture
def letter():
    "A free letter, which is free again afterwards."
    yield "Q"
    blocks.pop("Q", None), mixers.pop("Q", None)


@pytest.mark.parametrize("make", [torch.nn.Identity, GatedMLP, lambda c, i: torch.nn.Identity()],
                         ids=["torch's", "one of ours", "a function"])
def test_a_registered_letter_is_the_users_own(letter, make):
    "Whatever module the class is from: this package does not register it under that letter."
    register(letter, "of a user", cache="none")(make)
    assert own_letters("AQMQ") == ["Q"] and own_letters("AMSGWFL") == []


NOTEBOOK = """
import torch, sys
from hybrid_nb.models.config import HybridConfig
from hybrid_nb.models.registry import register
@register("Q", "registered in __main__")
class Same(torch.nn.Identity):
    def __init__(self, config, layer_idx): super().__init__()
assert Same.__module__ == "__main__"
HybridConfig(pattern="AQ", hidden_size=32, num_attention_heads=4).save_pretrained("own")
HybridConfig(pattern="AM", hidden_size=32, num_attention_heads=4).save_pretrained("ours")
"""

def test_a_letter_of_a_notebook_is_its_own(tmp_path):
    "In `__main__`, as a notebook's cells are: the folder names the letter whose code is missing, and only then."
    subprocess.run([sys.executable, "-c", NOTEBOOK], cwd=tmp_path, check=True)
    [main] = (tmp_path/"own").glob("*.py")
    assert "pattern with Q: the code of Q is its author's own" in main.read_text()
    assert len([*(tmp_path/"ours").glob("*.py")]) > 5
    assert "author's own" not in (tmp_path/"ours"/"modeling_hybrid_nb.py").read_text()
