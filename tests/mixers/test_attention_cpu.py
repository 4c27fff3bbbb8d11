"Attention by the compiled kernel is attention by torch with a mask: alone, in a window, in rows of several texts."
import pytest, torch
from hybrid_nb.mixers import attention_cpu
from hybrid_nb.mixers.attention import Attention
from hybrid_nb.mixers.segments import text_segments
from hybrid_nb.models.config import HybridConfig
from hybrid_nb.models.modeling import HybridForCausalLM


class ByTorch(Attention):
    def mix(self, *args): return super().mix(*args) # not `Attention.mix`, so the kernel is not used


@pytest.fixture
def calls(monkeypatch):
    "Lengths of the texts that the kernel has read."
    lengths, op = [], attention_cpu.attention_cpu
    def counted(q, *args):
        lengths.append(q.shape[2])
        return op(q, *args)
    monkeypatch.setattr(attention_cpu, "attention_cpu", counted)
    return lengths


def outcome(m, x, **kw):
    "Output, and gradients of input and weights."
    x = x.detach().requires_grad_()
    y = m(x, **kw)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(2))
    return [y, *torch.autograd.grad((y.float() * weight).sum(), [x, *m.parameters()])]


@pytest.mark.parametrize("several", (False, True))
@pytest.mark.parametrize("kw", (dict(), dict(n_kv_heads=1), dict(window=5), dict(rope_theta=None, bias=True)))
def test_equals_torch(kw, several, calls):
    torch.manual_seed(0)
    m, x = Attention(32, 2, **kw), torch.randn(2, 23, 32)
    other = ByTorch(32, 2, **kw)
    other.load_state_dict(m.state_dict())
    said = dict(segments=text_segments((torch.rand(2, 23) < .2).cumsum(1) + 1)) if several else {}
    for a, b in zip(outcome(m, x, **said), outcome(other, x, **said)):
        assert (a - b).abs().max() < 3e-6 * max(1, b.abs().max())
    assert calls == [23]


def test_in_bf16(calls):
    torch.manual_seed(0)
    m, x = Attention(64, 4), torch.randn(2, 40, 64)
    other = ByTorch(64, 4)
    other.load_state_dict(m.state_dict())
    exact = outcome(other, x)
    with torch.autocast("cpu", torch.bfloat16): found = outcome(m, x)
    assert found[0].dtype == torch.bfloat16 and calls == [40]
    for a, b in zip(found, exact): assert (a - b).norm() < 2e-2 * b.norm()


def test_where_it_does_not_fit(calls):
    torch.manual_seed(0)
    Attention(16, 2)(torch.randn(1, 9, 16)) # heads of 8
    Attention(32, 2).double()(torch.randn(1, 9, 32).double())
    Attention(32, 2)(torch.randn(1, 4100, 32)) # too long
    Attention(32, 2)(torch.randn(1, 9, 32), segments=torch.tensor([[0]*2 + [1]*7])) # padding
    assert not calls


@pytest.mark.parametrize("pattern, masks", (("AW", 0), ("AL", 1)))
def test_a_model_makes_no_mask_that_nobody_needs(pattern, masks, monkeypatch, calls):
    from hybrid_nb.models import modeling
    made, make = [], modeling.text_mask
    monkeypatch.setattr(modeling, "text_mask", lambda *args: made.append(args) or make(*args))
    torch.manual_seed(0)
    m = HybridForCausalLM(HybridConfig(pattern=pattern, vocab_size=30, hidden_size=32, num_attention_heads=2,
                                       sliding_window=4, dropout=0.)).eval()
    ids, segments = torch.randint(1, 30, (1, 12)), torch.tensor([[1]*5 + [2]*7])
    got = m(ids, segments=segments, use_cache=False).logits
    assert len(made) == masks and len(calls) == 2 - masks
    alone = [m(part, use_cache=False).logits for part in ids.split((5, 7), 1)]
    torch.testing.assert_close(got, torch.cat(alone, 1), rtol=1e-4, atol=1e-5)
