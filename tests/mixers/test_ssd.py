"""The matrix form of state-space duality against its recurrence in float64."""
from functools import partial
import numpy as np
import pytest, torch
from helpers.mixers import relative_errors, values_and_grads as all_values_and_grads
from hybrid_nb.mixers import ssd as ssd_module
from hybrid_nb.mixers.ssd import ssd, ssd_ref, ssd_step

OPTIONAL = "D", "z", "dt_bias", "initial_state"


@pytest.fixture(params=("tensors", "kernel"))
def form(request, monkeypatch):
    "With the compiled kernels of the CPU, and without."
    if request.param == "tensors":
        for module in [ssd_module]: monkeypatch.setattr(module, "has_cpu_kernel", lambda: False)
    return request.param


def example(batch, length, heads, head_dim, groups, state, options=OPTIONAL, seed=0, dtype=torch.float32):
    "Random inputs of `ssd`, for a Δ that passes through a softplus."
    g = torch.Generator().manual_seed(seed)
    r = lambda *s: torch.randn(*s, generator=g, dtype=torch.float64)
    b, l, h, p, n = batch, length, heads, head_dim, state
    v = dict(x=r(b, l, h, p), dt=r(b, l, h) - 1, A=-r(h).exp(), B=r(b, l, groups, n), C=r(b, l, groups, n), D=r(h),
             z=r(b, l, h, p), dt_bias=r(h), initial_state=r(b, h, p, n))
    return {k: t.to(dtype) for k, t in v.items() if k in options or k not in OPTIONAL}


def values_and_grads(f, v, **kw): return all_values_and_grads(f, v, return_state=True, **kw)
def reference(v, **kw):
    exact = {k: t.double() if t.is_floating_point() else t for k, t in v.items()}
    return values_and_grads(ssd_ref, exact, **kw)


@pytest.mark.parametrize("seed", range(32))
def test_equals_recurrence(seed, form):
    rng = np.random.default_rng(seed)
    batch, length, groups, per_group, head_dim, state, chunk = (int(rng.choice(c)) for c in (
        [1, 2, 3], [1, 2, 5, 31, 63, 64, 65, 100, 200], [1, 2, 3], [1, 2, 4], [1, 3, 16, 64], [1, 2, 5, 16, 40],
        [1, 7, 16, 64, 500]))
    options, softplus = [o for o in OPTIONAL if rng.random() < .5], bool(rng.random() < .7)
    v = example(batch, length, groups * per_group, head_dim, groups, state, options, seed)
    if not softplus: v["dt"] = v["dt"].abs() * .2; v.pop("dt_bias", None)
    if seed % 2: v["starts"] = torch.rand(batch, length, generator=torch.Generator().manual_seed(seed)) < .1
    want = reference(v, dt_softplus=softplus)
    err = relative_errors(values_and_grads(ssd, v, dt_softplus=softplus, chunk=chunk), want)
    if max(err.values()) > 1e-5: # a sum that nearly cancels: compare with the recurrence in float32
        plain = relative_errors(values_and_grads(ssd_ref, v, dt_softplus=softplus), want)
        assert all(err[k] < max(1e-5, 5 * plain[k]) for k in err), (err, plain)


@pytest.mark.parametrize("chunk", (1, 8, 64))
def test_exact_in_float64(chunk):
    v = example(2, 61, 6, 5, 3, 4, dtype=torch.float64)
    err = relative_errors(values_and_grads(ssd, v, dt_softplus=True, chunk=chunk), reference(v, dt_softplus=True))
    assert max(err.values()) < 1e-12, err


@pytest.mark.parametrize("scale", (1e-6, 1., 1e3))
def test_decays_of_any_size(scale, form):
    v = example(1, 700, 3, 8, 1, 4, ())
    v["dt"] = v["dt"].abs() * scale
    err = relative_errors(values_and_grads(ssd, v), reference(v))
    assert max(err.values()) < 1e-5, err


def test_long_memory_beside_thorough_forgetting(form):
    """Within a chunk, differences of 1e-3 between sums of 1e5 must survive; and a token that forgets leaves no
    rounding errors in the gradient of A."""
    v = example(1, 200, 2, 4, 1, 4, ())
    v["dt"] = v["dt"].exp() * 1e-4
    v["dt"][:, 10:20] = 1e4
    v["dt"][:, 70] = 300.
    got, want = values_and_grads(ssd, v), reference(v)
    assert all(t.isfinite().all() for t in got.values())
    assert max(relative_errors(got, want).values()) < 1e-5, relative_errors(got, want)


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
    odd = v | dict(x=v["x"].transpose(1, 3).contiguous().transpose(1, 3), dt=v["dt"].mT.contiguous().mT,
                   C=v["C"][:, :1].expand(-1, 37, -1, -1), B=v["B"].repeat_interleave(2, -1)[..., ::2],
                   z=torch.cat([v["z"]] * 2, -1)[..., :6], initial_state=v["initial_state"].mT.contiguous().mT)
    assert not any(odd[k].is_contiguous() for k in ("x", "dt", "B", "C", "z", "initial_state"))
    dense = {k: t.contiguous() for k, t in odd.items()}
    got, want = (values_and_grads(ssd, u, dt_softplus=True, chunk=16) for u in (odd, dense))
    for k in want: torch.testing.assert_close(got[k], want[k], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_half_precision(dtype, form):
    v = example(2, 150, 4, 8, 2, 8, dtype=dtype)
    got = values_and_grads(ssd, v, dt_softplus=True)
    assert got["y"].dtype == got["x"].dtype == dtype and got["state"].dtype == torch.float32
    err = relative_errors(got, reference(v, dt_softplus=True))
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


@pytest.mark.parametrize("change, message", [
    (dict(x=torch.ones(2, 0, 4, 3)),
     r"x must be a tensor of shape \(batch, length, heads, head_dim\), none of them 0; got \(2, 0, 4, 3\)"),
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
