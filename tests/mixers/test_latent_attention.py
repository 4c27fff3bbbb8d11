"""Both ways of latent attention: their gradients, which of them a call takes, and the types under autocast."""
import pytest, torch
from torch import nn
from transformers import DynamicCache
from helpers.mixers import attend_in_pieces
from hybrid_nb.mixers.latent_attention import LatentAttention


class Mixed(nn.Module):
    "A `LatentAttention` that always takes the given way."
    def __init__(self, m, way):
        super().__init__()
        self.m, self.way = m, way

    def forward(self, x):
        y = getattr(self.m, self.way)(*self.m.project(x))
        return self.m.o_proj(y.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("way", ("plain", "absorbed"))
@pytest.mark.parametrize("kw", (dict(qk_nope_head_dim=2, q_lora_rank=3), dict(qk_nope_head_dim=0, bias=True)),
                         ids=("both parts", "rotary only"))
def test_gradients(kw, way):
    torch.manual_seed(0)
    m = LatentAttention(5, n_heads=2, kv_lora_rank=3, qk_rope_head_dim=2, v_head_dim=3, **kw).double()
    mixed = Mixed(m, way)
    names = [n for n, _ in mixed.named_parameters()]
    def f(x, *p): return torch.func.functional_call(mixed, dict(zip(names, p)), (x,))
    x = torch.randn(2, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(f, (x, *mixed.parameters()))


def test_prompt_is_read_plainly_and_tokens_after_it_absorbed(monkeypatch):
    called, m = [], LatentAttention(64, layer_idx=0)
    for name in "plain", "absorbed":
        way = getattr(m, name)
        monkeypatch.setattr(m, name, lambda *a, way=way, name=name: (called.append(name), way(*a))[1], raising=False)
    attend_in_pieces(m, torch.randn(2, 24, 64), [20, 1, 1, 2])
    assert called == ["plain", "absorbed", "absorbed", "absorbed"]


def test_autocast_keeps_the_cache_small():
    torch.manual_seed(0)
    m, x = LatentAttention(64, layer_idx=0, q_lora_rank=8), torch.randn(2, 24, 64)
    with torch.autocast("cpu", torch.bfloat16):
        y, cache = m(x), DynamicCache()
        z = attend_in_pieces(m, x, [20, 1, 3], cache)
    assert y.dtype == cache.layers[0].keys.dtype == cache.layers[0].values.dtype == torch.bfloat16
    assert (y.float() - m(x)).abs().max() < .05 and (z.float() - m(x)).abs().max() < .05
