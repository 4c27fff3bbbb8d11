"""The Mamba-2 mixer in transformers' and torch's surroundings."""
import pytest, torch
from transformers import Mamba2Config
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer
from helpers.mixers import need_grouped_norm, python
from hybrid_nb.mixers import mamba2, ssd
from hybrid_nb.mixers.mamba2 import GatedRMSNorm, Mamba2


@pytest.fixture(params=("tensors", "kernel"))
def form(request, monkeypatch):
    "With the compiled kernels of the CPU, and without."
    if request.param == "tensors":
        for module in mamba2, ssd: monkeypatch.setattr(module, "has_cpu_kernel", lambda: False)
    return request.param


def mixer(seed=0, **kw):
    torch.manual_seed(seed)
    return Mamba2(16, 4, head_dim=8, chunk_size=8, **kw)


def test_compiles_without_graph_breaks(form):
    m, x = mixer(), torch.randn(2, 20, 16)
    y = torch.compile(m, backend="aot_eager", fullgraph=True)(x)
    torch.testing.assert_close(y, m(x))
    got, want = (torch.autograd.grad(v.square().sum(), list(m.parameters())) for v in (y, m(x)))
    for a, b in zip(got, want): torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_autocast(form):
    m, x = mixer(), torch.randn(2, 20, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16): y = m(x)
    assert y.dtype == torch.bfloat16
    assert (y.float() - m(x)).norm() < .02 * m(x).norm()
    y.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in m.parameters())


def test_gradient_checkpointing(form):
    m, x = mixer(), torch.randn(2, 20, 16, requires_grad=True)
    ys = torch.utils.checkpoint.checkpoint(m, x, use_reentrant=False), m(x)
    got, want = (torch.autograd.grad(y.square().sum(), [x, *m.parameters()]) for y in ys)
    for a, b in zip(got, want): torch.testing.assert_close(a, b)


@pytest.mark.parametrize("groups, chunk, bias, conv_bias", [
    (1, 64, False, True), (2, 7, False, True), (4, 16, True, False)])
def test_same_as_transformers(groups, chunk, bias, conv_bias, form):
    need_grouped_norm(groups)
    torch.manual_seed(groups)
    c = Mamba2Config(hidden_size=24, state_size=6, head_dim=12, num_heads=4, n_groups=groups, chunk_size=10,
                     num_hidden_layers=1, use_bias=bias, use_conv_bias=conv_bias)
    peer = Mamba2Mixer(c, 0)
    ours = Mamba2(24, 6, head_dim=12, n_groups=groups, chunk_size=chunk, bias=bias, conv_bias=conv_bias)
    for p in peer.parameters(): torch.nn.init.normal_(p, std=.3)
    ours.load_state_dict(peer.state_dict())
    x = torch.randn(2, 33, 24)
    ys = ours(x), peer(x)
    assert (ys[0] - ys[1]).norm() < 1e-5 * ys[1].norm()
    for y, m in zip(ys, (ours, peer)): y.square().sum().backward()
    theirs = dict(peer.named_parameters())
    for name, p in ours.named_parameters():
        want = theirs[name].grad
        assert (p.grad - want).norm() < 1e-5 * want.norm(), name


def test_gated_norm(form):
    norm, (x, z) = GatedRMSNorm(12, groups=3), torch.randn(2, 5, 12)
    with torch.no_grad(): norm.weight.normal_()
    y = (x * z * torch.sigmoid(z)).view(5, 3, 4)
    want = (y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt()).view(5, 12) * norm.weight
    torch.testing.assert_close(norm(x, z), want)
    assert torch.autograd.gradcheck(norm.double(), (x.double().requires_grad_(), z.double().requires_grad_()))


def test_import_is_light():
    code = "import sys, hybrid_nb.mixers.mamba2\n"
    assert python(code + "print({'numba', 'transformers', 'matplotlib'} & set(sys.modules))") == "set()"


@pytest.mark.parametrize("change, message", [
    (dict(head_dim=5), r"head_dim 5 must divide expand \* d_model = 2 \* 16 = 32"),
    (dict(n_groups=3), "n_groups 3 must divide the 2 heads"),
    (dict(d_state=0), "d_state 0 must be a whole number above 0"),
    (dict(chunk_size=-1), "chunk_size -1"),
])
def test_bad_sizes_are_named(change, message):
    with pytest.raises(ValueError, match=message): Mamba2(16, **dict(d_state=4, head_dim=16) | change)
