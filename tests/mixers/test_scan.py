"""Every form of the selective scan against the recurrence in float64: shapes, options, dtypes; the mixer around it."""
from functools import partial
import pytest, torch
from hypothesis import given
from helpers.mixers import exact_scan, python, relative_errors, scan_example, values_and_grads
from helpers.scan_cases import cases, on_examples
from hybrid_nb.mixers import scan
from hybrid_nb.mixers.mamba import Mamba
from hybrid_nb.mixers.scan import _scan_chunked, selective_scan, selective_scan_ref, selective_scan_step

BACKENDS = "chunked", "cpu"


@pytest.mark.parametrize("backend", BACKENDS)
@on_examples(40)
@given(case=cases())
def test_equals_reference(case, backend):
    x, softplus = case
    f = partial(selective_scan, return_state=True, backend=backend, delta_softplus=softplus)
    err = relative_errors(values_and_grads(f, x), exact_scan(x, delta_softplus=softplus))
    assert max(err.values()) < 1e-5, (x["u"].shape, x["A"].shape, list(x), softplus, err)


@pytest.mark.parametrize("state", (64, 256))
def test_many_states(state):
    x = scan_example(1, 300, 40, state)
    f = partial(selective_scan, return_state=True, backend="cpu", delta_softplus=True)
    err = relative_errors(values_and_grads(f, x), exact_scan(x, delta_softplus=True))
    assert max(err.values()) < 1e-5, err


@pytest.mark.parametrize("size", (16, 48, 256))
def test_chunked_in_float64(size):
    x = scan_example(2, 61, 5, 3, dtype=torch.float64)
    got = values_and_grads(partial(_scan_chunked, size=size), x, delta_softplus=True)
    err = relative_errors(got, exact_scan(x, delta_softplus=True))
    assert max(err.values()) < 1e-12, err


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", (1e-6, 1., 1e3))
def test_decays_of_any_size(backend, scale):
    x = scan_example(1, 700, 8, 4, ())
    x["delta"] = x["delta"].abs() * scale
    f = partial(selective_scan, return_state=True, backend=backend)
    err = relative_errors(values_and_grads(f, x), exact_scan(x))
    assert max(err.values()) < 1e-5, err


@pytest.mark.parametrize("backend", BACKENDS)
def test_pieces_equal_the_whole(backend):
    x = scan_example(2, 90, 20, 4)
    run = partial(selective_scan, delta_softplus=True, backend=backend, return_state=True)
    y, h = run(**x)
    state, i, parts = x["initial_state"], 0, []
    for n in (1, 40, 2, 47):
        cut = {k: v[:, i:i+n] if k in ("u", "delta", "B", "C", "z") else v for k, v in x.items()}
        part, state = run(**cut | dict(initial_state=state))
        parts.append(part)
        i += n
    torch.testing.assert_close(torch.cat(parts, 1), y, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state, h, rtol=1e-5, atol=1e-5)
    token = {k: v[:, 0] for k, v in x.items() if k in ("u", "delta", "B", "C", "z")}
    same = {k: x[k] for k in ("A", "D", "delta_bias")}
    one, _ = selective_scan_step(x["initial_state"], **token, **same, delta_softplus=True)
    torch.testing.assert_close(one, y[:, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_non_contiguous(backend):
    x = scan_example(2, 37, 24, 6)
    wide = torch.cat([x["u"], x["z"], x["delta"]], -1)
    u, z, delta = wide.chunk(3, -1)
    odd = x | dict(u=u, z=z, delta=delta.transpose(1, 2).contiguous().transpose(1, 2), A=x["A"].T.contiguous().T,
                   B=x["B"].repeat_interleave(2, -1)[..., ::2], C=x["C"][:, :1].expand(-1, 37, -1))
    assert not any(odd[k].is_contiguous() for k in ("u", "z", "delta", "A", "B", "C"))
    run = partial(selective_scan, delta_softplus=True, backend=backend)
    torch.testing.assert_close(run(**odd), run(**{k: v.contiguous() for k, v in odd.items()}), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_half_precision(backend, dtype):
    x = scan_example(2, 50, 20, 8, dtype=dtype)
    got = values_and_grads(partial(selective_scan, return_state=True, backend=backend), x, delta_softplus=True)
    assert got["y"].dtype == dtype and got["state"].dtype == torch.float32 and got["u"].dtype == dtype
    err = relative_errors(got, exact_scan(x, delta_softplus=True))
    assert max(err.values()) < 2 * torch.finfo(dtype).eps, err   # no worse than rounding the results


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ("u", "delta", "A", "B", "C", "z"))
def test_nan_stays_visible(backend, name):
    x = scan_example(1, 40, 20, 4)
    x[name].view(-1)[5] = torch.nan
    want = selective_scan_ref(**x, delta_softplus=True).isnan()
    assert want.any() and torch.equal(selective_scan(**x, delta_softplus=True, backend=backend).isnan(), want)


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_without_graph_breaks(backend):
    torch.manual_seed(0)
    m, x = Mamba(16, 4, backend=backend), torch.randn(2, 20, 16)
    y = torch.compile(m, backend="aot_eager", fullgraph=True)(x)
    torch.testing.assert_close(y, m(x))
    got, want = (torch.autograd.grad(v.square().sum(), list(m.parameters())) for v in (y, m(x)))
    for a, b in zip(got, want): torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_autocast():
    torch.manual_seed(0)
    m, x = Mamba(32), torch.randn(2, 20, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16): y = m(x)
    assert y.dtype == torch.bfloat16
    assert (y.float() - m(x)).norm() < .02 * m(x).norm()
    y.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in m.parameters())


def test_without_numba(monkeypatch):
    monkeypatch.setattr(scan, "has_cpu_kernel", lambda: False)
    x = scan_example(1, 10, 8, 4)
    assert torch.equal(selective_scan(**x), selective_scan(**x, backend="chunked"))
    with pytest.raises(ValueError, match="needs numba"): selective_scan(**x, backend="cpu")


def test_without_triton(monkeypatch):
    monkeypatch.setattr(scan, "has_gpu_kernel", lambda: False)
    with pytest.raises(ValueError, match=r"backend 'triton' needs triton \(pip install triton\)"):
        selective_scan(**scan_example(1, 4, 3, 2), backend="triton")


def test_import_without_triton():
    "Neither the package nor its other backends need it; the error says what to install."
    out = python("""
import sys
sys.modules["triton"] = None
import torch, hybrid_nb.mixers.mamba, hybrid_nb.mixers.gated_conv
from hybrid_nb.mixers.scan import has_gpu_kernel, selective_scan
x, b = torch.ones(1, 4, 16), torch.ones(1, 4, 2)
selective_scan(x, x, -torch.ones(16, 2), b, b)
try: selective_scan(x, x, -torch.ones(16, 2), b, b, backend="triton")
except ValueError as e: print(has_gpu_kernel(), e)
""")
    assert out.startswith("False selective scan: backend 'triton' needs triton")


def test_import_is_light():
    code = "import sys, hybrid_nb.mixers.mamba, hybrid_nb.mixers.gated_conv\n"
    assert python(code + "print({'numba', 'transformers', 'matplotlib'} & set(sys.modules))") == "set()"


@pytest.mark.parametrize("change, message", [
    (dict(u=torch.ones(2, 0, 6)),
     r"u must be a tensor of shape \(batch, length, channels\), none of them 0; got \(2, 0, 6\)"),
    (dict(delta=torch.ones(2, 9, 5)), r"delta has shape \(2, 9, 5\), must be \(2, 9, 6\)"),
    (dict(A=torch.ones(6)), r"A must be a tensor of shape \(channels, state\), none of them 0; got \(6,\)"),
    (dict(B=torch.ones(2, 9, 5)), r"B has shape \(2, 9, 5\), must be \(2, 9, 4\)"),
    (dict(C=torch.ones(2, 9, 4, dtype=torch.int32)), "C is torch.int32, must be a floating-point type"),
    (dict(initial_state=torch.ones(2, 4, 6)), r"initial_state has shape \(2, 4, 6\), must be \(2, 6, 4\)"),
    (dict(z=torch.ones(2, 9, 6, device="meta")), "z is on meta, but u is on cpu"),
    (dict(backend="fast"), "unknown backend 'fast' .*auto, ref, chunked"),
])
def test_bad_input_is_named(change, message):
    with pytest.raises(ValueError, match=message): selective_scan(**scan_example(2, 9, 6, 4) | change)
