"""The matrix form of Mamba-2 against its recurrence in float64, and the mixer in transformers' and torch's surroundings."""
import subprocess, sys
from functools import partial
import numpy as np
import pytest, torch
from transformers import Mamba2Config
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer
from hybrid_nb import ssd as module
from hybrid_nb.ssd import GatedRMSNorm, Mamba2, ssd, ssd_ref, ssd_step

OPTIONAL = "D", "z", "dt_bias", "initial_state"


@pytest.fixture(params=("tensors", "kernel"))
def form(request, monkeypatch):
    "With the compiled kernels of the CPU, and without."
    if request.param == "tensors": monkeypatch.setattr(module, "has_cpu_kernel", lambda: False)
    return request.param


def example(batch, length, heads, head_dim, groups, state, options=OPTIONAL, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    r = lambda *s: torch.randn(*s, generator=g, dtype=torch.float64)
    b, l, h, p, n = batch, length, heads, head_dim, state
    v = dict(x=r(b, l, h, p), dt=r(b, l, h) - 1, A=-r(h).exp(), B=r(b, l, groups, n), C=r(b, l, groups, n), D=r(h), z=r(b, l, h, p), dt_bias=r(h),
             initial_state=r(b, h, p, n))
    return {k: t.to(dtype) for k, t in v.items() if k in options or k not in OPTIONAL}


def values_and_grads(f, v, **kw):
    "y, last state and the gradients of a random projection of both."
    v = {k: t.detach().clone().requires_grad_() for k, t in v.items()}
    out = f(**v, return_state=True, **kw)
    g = torch.Generator().manual_seed(1)
    loss = sum((o.double() * torch.randn(o.shape, generator=g, dtype=torch.float64)).sum() for o in out)
    return dict(zip(["y", "h"], (o.detach() for o in out))) | dict(zip(v, torch.autograd.grad(loss, list(v.values()))))


def errors(got, want): return {k: ((got[k].double() - want[k]).norm() / want[k].norm().clamp(min=1e-30)).item() for k in want}
def reference(v, **kw): return values_and_grads(ssd_ref, {k: t.double() for k, t in v.items()}, **kw)


@pytest.mark.parametrize("seed", range(32))
def test_equals_recurrence(seed, form):
    rng = np.random.default_rng(seed)
    batch, length, groups, per_group, head_dim, state, chunk = (int(rng.choice(c)) for c in (
        [1, 2, 3], [1, 2, 5, 31, 63, 64, 65, 100, 200], [1, 2, 3], [1, 2, 4], [1, 3, 16, 64], [1, 2, 5, 16, 40], [1, 7, 16, 64, 500]))
    options, softplus = [o for o in OPTIONAL if rng.random() < .5], bool(rng.random() < .7)
    v = example(batch, length, groups * per_group, head_dim, groups, state, options, seed)
    if not softplus: v["dt"] = v["dt"].abs() * .2; v.pop("dt_bias", None)
    want = reference(v, dt_softplus=softplus)
    err = errors(values_and_grads(ssd, v, dt_softplus=softplus, chunk=chunk), want)
    if max(err.values()) > 1e-5: # a sum over all tokens may nearly cancel: the recurrence in float32 then shows what can be had
        plain = errors(values_and_grads(ssd_ref, v, dt_softplus=softplus), want)
        assert all(err[k] < max(1e-5, 5 * plain[k]) for k in err), (err, plain)


@pytest.mark.parametrize("chunk", (1, 8, 64))
def test_exact_in_float64(chunk):
    v = example(2, 61, 6, 5, 3, 4, dtype=torch.float64)
    err = errors(values_and_grads(ssd, v, dt_softplus=True, chunk=chunk), reference(v, dt_softplus=True))
    assert max(err.values()) < 1e-12, err


@pytest.mark.parametrize("scale", (1e-6, 1., 1e3))
def test_decays_of_any_size(scale, form):
    v = example(1, 700, 3, 8, 1, 4, ())
    v["dt"] = v["dt"].abs() * scale
    err = errors(values_and_grads(ssd, v), reference(v))
    assert max(err.values()) < 1e-5, err


def test_long_memory_beside_thorough_forgetting(form):
    "Within a chunk, differences of 1e-3 between sums of 1e5 must survive; and a token that forgets leaves no rounding errors in the gradient of A."
    v = example(1, 200, 2, 4, 1, 4, ())
    v["dt"] = v["dt"].exp() * 1e-4
    v["dt"][:, 10:20] = 1e4
    v["dt"][:, 70] = 300.
    got, want = values_and_grads(ssd, v), reference(v)
    assert all(t.isfinite().all() for t in got.values())
    assert max(errors(got, want).values()) < 1e-5, errors(got, want)


def test_pieces_equal_the_whole(form):
    v = example(2, 90, 4, 5, 2, 3)
    run = partial(ssd, dt_softplus=True, return_state=True, chunk=16)
    y, h = run(**v)
    state, i, parts = v["initial_state"], 0, []
    for n in (1, 40, 2, 47):
        cut = {k: t[:, i:i+n] if k in ("x", "dt", "B", "C", "z") else t for k, t in v.items()}
        part, state = run(**cut | dict(initial_state=state))
        parts.append(part)
        i += n
    torch.testing.assert_close(torch.cat(parts, 1), y, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state, h, rtol=1e-5, atol=1e-5)
    token = {k: t[:, 0] for k, t in v.items() if k in ("x", "dt", "B", "C", "z")}
    one, _ = ssd_step(v["initial_state"], **token, A=v["A"], D=v["D"], dt_bias=v["dt_bias"], dt_softplus=True)
    torch.testing.assert_close(one, y[:, 0], rtol=1e-5, atol=1e-5)


def test_non_contiguous(form):
    v = example(2, 37, 4, 6, 1, 5)
    odd = v | dict(x=v["x"].transpose(1, 3).contiguous().transpose(1, 3), dt=v["dt"].mT.contiguous().mT, C=v["C"][:, :1].expand(-1, 37, -1, -1),
                   B=v["B"].repeat_interleave(2, -1)[..., ::2], z=torch.cat([v["z"]] * 2, -1)[..., :6], initial_state=v["initial_state"].mT.contiguous().mT)
    assert not any(odd[k].is_contiguous() for k in ("x", "dt", "B", "C", "z", "initial_state"))
    got, want = (values_and_grads(ssd, u, dt_softplus=True, chunk=16) for u in (odd, {k: t.contiguous() for k, t in odd.items()}))
    for k in want: torch.testing.assert_close(got[k], want[k], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_half_precision(dtype, form):
    v = example(2, 150, 4, 8, 2, 8, dtype=dtype)
    got = values_and_grads(ssd, v, dt_softplus=True)
    assert got["y"].dtype == got["x"].dtype == dtype and got["h"].dtype == torch.float32
    err = errors(got, reference(v, dt_softplus=True))
    assert max(err.values()) < 2 * torch.finfo(dtype).eps, err   # no worse than rounding the results


@pytest.mark.parametrize("name", ("x", "dt", "A", "B", "C", "z"))
def test_nan_stays_visible(name, form):
    v = example(1, 40, 4, 3, 1, 4)
    v[name].view(-1)[-1] = torch.nan
    want = ssd_ref(**v, dt_softplus=True).isnan()
    assert want.any() and ssd(**v, dt_softplus=True, chunk=8)[want].isnan().all()


def test_memory_grows_with_the_length_and_not_its_square(form):
    "Numbers kept for the backward pass, by the lengths of a pair of sequences."
    def kept(length):
        total, v = set(), {k: t.requires_grad_() for k, t in example(1, length, 4, 16, 1, 16, ()).items()}
        def pack(t): total.add((t.untyped_storage().data_ptr(), t.untyped_storage().nbytes())); return t
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t): ssd(**v, dt_softplus=True)
        return sum(n for _, n in total)
    assert kept(4096) < 4.2 * kept(1024)


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
    got, want = (torch.autograd.grad(y.square().sum(), [x, *m.parameters()]) for y in (torch.utils.checkpoint.checkpoint(m, x, use_reentrant=False), m(x)))
    for a, b in zip(got, want): torch.testing.assert_close(a, b)


@pytest.mark.parametrize("groups, chunk, bias, conv_bias", [(1, 64, False, True), (2, 7, False, True), (4, 16, True, False)])
def test_same_as_transformers(groups, chunk, bias, conv_bias, form):
    torch.manual_seed(groups)
    c = Mamba2Config(hidden_size=24, state_size=6, head_dim=12, num_heads=4, n_groups=groups, chunk_size=10, num_hidden_layers=1, use_bias=bias, use_conv_bias=conv_bias)
    peer = Mamba2Mixer(c, 0)
    ours = Mamba2(24, 6, head_dim=12, n_groups=groups, chunk_size=chunk, bias=bias, conv_bias=conv_bias)
    for p in peer.parameters(): torch.nn.init.normal_(p, std=.3)
    ours.load_state_dict(peer.state_dict())
    x = torch.randn(2, 33, 24)
    ys = ours(x), peer(x)
    assert (ys[0] - ys[1]).norm() < 1e-5 * ys[1].norm()
    for y, m in zip(ys, (ours, peer)): y.square().sum().backward()
    theirs = dict(peer.named_parameters())
    for name, p in ours.named_parameters(): assert (p.grad - theirs[name].grad).norm() < 1e-5 * theirs[name].grad.norm(), name


def test_gated_norm(form):
    norm, (x, z) = GatedRMSNorm(12, groups=3), torch.randn(2, 5, 12)
    with torch.no_grad(): norm.weight.normal_()
    y = (x * z * torch.sigmoid(z)).view(5, 3, 4)
    want = (y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt()).view(5, 12) * norm.weight
    torch.testing.assert_close(norm(x, z), want)
    assert torch.autograd.gradcheck(norm.double(), (x.double().requires_grad_(), z.double().requires_grad_()))


def test_thread_count_changes_nothing():
    from hybrid_nb.ssd_cpu import chunk_matrix_cpu, gated_norm_cpu
    s, a, dt, D = torch.randn(3, 4, 2, 9, 9), -torch.rand(3, 4, 2, 5, 9).double().cumsum(-1), torch.rand(3, 4, 2, 5, 9), torch.randn(2, 5)
    x, z, w = torch.randn(150, 24), torch.randn(150, 24), torch.randn(24)
    leaves, before, got = [t.requires_grad_() for t in (s, a, dt, D, x, z, w)], torch.get_num_threads(), []
    try:
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            M, y = chunk_matrix_cpu(s, a, dt, D), gated_norm_cpu(x, z, w, 3)
            got.append([M, y, *torch.autograd.grad(M.square().sum() + y.pow(3).sum(), leaves)])
    finally: torch.set_num_threads(before)
    for other in got[1:]: assert all(torch.equal(p, q) for p, q in zip(other, got[0]))


def test_import_is_light():
    code = "import sys, hybrid_nb.ssd; print({'numba', 'transformers', 'matplotlib'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "set()"


@pytest.mark.parametrize("change, message", [
    (dict(x=torch.ones(2, 0, 4, 3)), r"x must be a tensor of shape \(batch, length, heads, head_dim\), none of them 0; got \(2, 0, 4, 3\)"),
    (dict(x=torch.ones(2, 9, 12)), r"x must be a tensor of shape .* got \(2, 9, 12\)"),
    (dict(dt=torch.ones(2, 9, 5)), r"dt has shape \(2, 9, 5\), must be \(2, 9, 4\)"),
    (dict(A=torch.ones(4, 5)), r"A has shape \(4, 5\), must be \(4,\)"),
    (dict(B=torch.ones(2, 9, 3, 5)), "3 groups of B must divide 4 heads of x"),
    (dict(C=torch.ones(2, 9, 1, 5)), r"C has shape \(2, 9, 1, 5\), must be \(2, 9, 2, 5\)"),
    (dict(x=torch.ones(2, 9, 4, 3, dtype=torch.int32)), "x is torch.int32, must be a floating-point type"),
    (dict(initial_state=torch.ones(2, 4, 5, 3)), r"initial_state has shape \(2, 4, 5, 3\), must be \(2, 4, 3, 5\)"),
    (dict(z=torch.ones(2, 9, 4, 3, device="meta")), "z is on meta, but x is on cpu"),
    (dict(dt=None), "dt must be a tensor, got NoneType"),
    (dict(chunk=0), "chunk 0 must be a whole number above 0"),
    (dict(chunk=2.5), "chunk 2.5 must be a whole number above 0"),
])
def test_bad_input_is_named(change, message):
    with pytest.raises(ValueError, match=message): ssd(**example(2, 9, 4, 3, 2, 5) | change)


@pytest.mark.parametrize("change, message", [
    (dict(head_dim=5), r"head_dim 5 must divide expand \* d_model = 2 \* 16 = 32"),
    (dict(n_groups=3), "n_groups 3 must divide the 2 heads"),
    (dict(d_state=0), "d_state 0 must be a whole number above 0"),
    (dict(chunk_size=-1), "chunk_size -1"),
])
def test_bad_sizes_are_named(change, message):
    with pytest.raises(ValueError, match=message): Mamba2(16, **dict(d_state=4, head_dim=16) | change)
