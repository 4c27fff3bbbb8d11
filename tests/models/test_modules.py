"Every module of every letter is called where it is more than its weights: hooks, adapters, quantised projections."
from copy import deepcopy
import pytest, torch
from torch import nn
from helpers.small_models import small_model
from hybrid_nb.mixers.plain_modules import plain_types
from hybrid_nb.models.context_config import ContextConfig
from hybrid_nb.models.context_vector import ContextForCausalLM
from hybrid_nb.training.objective import Objective

LETTERS = "MASGWLF"
IDS = torch.randint(1, 101, (2, 24), generator=torch.Generator().manual_seed(0))
TARGETS = IDS.roll(-1, 1)


def context_model(std):
    torch.manual_seed(0)
    return ContextForCausalLM(ContextConfig(vocab_size=101, embedding_size=12, context_dim=10, context_blocks=[4, 6],
                                            network_size=16, depth=3, dropout=0.,
                                            initializer_range=std))

def make(kind, std=.3):
    return context_model(std) if kind == "context" else small_model(kind, dropout=0., initializer_range=std)

KINDS = [*LETTERS, "context"]


def logits_whole(m): return m.eval()(IDS, use_cache=False).logits

def logits_by_token(m):
    m.eval()
    cache, found = m.new_cache(), []
    for t in IDS.split(1, 1):
        out = m(t, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        found.append(out.logits)
    return torch.cat(found, 1)

def training_loss(m): return m.train()(IDS, labels=IDS).loss

def fused_loss(m):
    m.config.fused_loss = True
    return m.train()(IDS, labels=IDS).loss

def own_objective(m): return Objective(m.train())(IDS, TARGETS)[0]

WAYS = logits_whole, logits_by_token, training_loss, fused_loss, own_objective

def leaves(m): return [n for n, x in m.named_modules() if type(x) in plain_types]


@pytest.mark.parametrize("way", WAYS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_a_hook_is_seen(kind, way):
    "It runs, and what it changes reaches the result."
    m = make(kind)
    with torch.set_grad_enabled(way not in (logits_whole, logits_by_token)):
        want = way(m).detach()
        for name in leaves(m):
            seen = []
            def hook(module, args, out): seen.append(name); return out + .5 * out.roll(1, -1)
            handle = m.get_submodule(name).register_forward_hook(hook)
            got = way(m).detach()
            handle.remove()
            assert seen, f"{name} was not called"
            assert not torch.allclose(got, want, rtol=1e-6, atol=1e-7), f"what the hook of {name} returned was not used"
        torch.testing.assert_close(way(m).detach(), want)


@pytest.mark.parametrize("way", WAYS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_a_hook_that_changes_nothing_changes_nothing(kind, way):
    m = make(kind)
    with torch.set_grad_enabled(way not in (logits_whole, logits_by_token)):
        want = way(m).detach()
        for name in leaves(m): m.get_submodule(name).register_forward_hook(lambda *args: None)
        torch.testing.assert_close(way(m).detach(), want, rtol=1e-4, atol=1e-5)


class Adapter(nn.Module):
    "A projection and a change of low rank, as LoRA has it."
    def __init__(self, base, rank=2):
        super().__init__()
        self.base, g = base, torch.Generator().manual_seed(1)
        self.down = nn.Parameter(torch.randn(rank, base.in_features, generator=g) * .1)
        self.up = nn.Parameter(torch.randn(base.out_features, rank, generator=g) * .1)
    def forward(self, x): return self.base(x) + x @ self.down.T @ self.up.T


def adapt(m):
    for name in [n for n, x in m.named_modules() if type(x) is nn.Linear and n != "lm_head"]:
        parent, _, last = name.rpartition(".")
        setattr(m.get_submodule(parent), last, Adapter(m.get_submodule(name)))
    return m

def merged(m):
    "The adapted model as one of plain projections."
    m = deepcopy(m)
    for name in [n for n, x in m.named_modules() if isinstance(x, Adapter)]:
        parent, _, last = name.rpartition(".")
        a = m.get_submodule(name)
        a.base.weight.data += a.up.data @ a.down.data
        setattr(m.get_submodule(parent), last, a.base)
    return m


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_learns_as_if_it_were_merged(kind):
    m = adapt(make(kind))
    plain = merged(m)
    for way in WAYS[:2]:
        with torch.no_grad(): torch.testing.assert_close(way(m), way(plain), rtol=1e-3, atol=1e-4)
    for way in WAYS[2:]:
        for x in (m, plain): x.zero_grad(); way(x).backward()
        for name, a in m.named_modules():
            if not isinstance(a, Adapter): continue
            d = plain.get_submodule(name).weight.grad # of the merged weight
            for got, want in ((a.up.grad, d @ a.down.T), (a.down.grad, a.up.T @ d)):
                assert got is not None, f"{name} got no gradient"
                assert (got - want).norm() < 1e-3 * want.norm() + 1e-7, name


@pytest.mark.parametrize("kind", KINDS)
def test_quantised_projections(kind):
    "torch's dynamic int8 quantisation replaces them by others."
    m = make(kind, .02).eval()
    for x in m.modules(): x._tied_weights_keys = None
    m.lm_head.weight = nn.Parameter(m.lm_head.weight.detach().clone())
    q = torch.ao.quantization.quantize_dynamic(deepcopy(m), {nn.Linear}, dtype=torch.qint8)
    with torch.no_grad():
        for way in WAYS[:2]:
            got, want = way(q), way(m)
            assert (got - want).norm() < .1 * want.norm()
        torch.testing.assert_close(logits_by_token(q), logits_whole(q), rtol=.1, atol=.05)
