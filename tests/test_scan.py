"""Every form of the selective scan against the recurrence in float64: shapes, options, dtypes, threads, processes."""
import multiprocessing, subprocess, sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
import pytest, torch
from hypothesis import given, HealthCheck, settings, strategies as st
from torch.utils.data import DataLoader
from hybrid_nb import scan
from hybrid_nb.scan import selective_scan, selective_scan_ref, selective_scan_step, _scan_chunked
from hybrid_nb.ssm import Mamba

OPTIONAL = "D", "z", "delta_bias", "initial_state"
BACKENDS = "chunked", "cpu"


def example(batch, length, channels, state, options=OPTIONAL, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    r = lambda *s: torch.randn(*s, generator=g, dtype=torch.float64)
    b, l, c, n = batch, length, channels, state
    x = dict(u=r(b, l, c), delta=r(b, l, c) - 1, A=-r(c, n).exp(), B=r(b, l, n), C=r(b, l, n), D=r(c), z=r(b, l, c),
             delta_bias=r(c), initial_state=r(b, c, n))
    return {k: v.to(dtype) for k, v in x.items() if k in options or k not in OPTIONAL}


def values_and_grads(f, x, **kw):
    "y, last state and the gradients of a random projection of both."
    x = {k: v.detach().requires_grad_() for k, v in x.items()}
    out = f(**x, **kw)
    g = torch.Generator().manual_seed(1)
    loss = sum((o.double() * torch.randn(o.shape, generator=g, dtype=torch.float64)).sum() for o in out)
    return dict(zip(["y", "h"], (o.detach() for o in out))) | dict(zip(x, torch.autograd.grad(loss, list(x.values()))))


def errors(got, want):
    return {k: ((got[k].double() - want[k]).norm() / want[k].norm().clamp(min=1e-30)).item() for k in want}


def reference(x, **kw):
    return values_and_grads(partial(selective_scan_ref, return_state=True), {k: v.double() for k, v in x.items()}, **kw)


@st.composite
def cases(draw, most=(3, 140, 200, 40)):
    "Inputs of any shape up to `most` (batch, length, channels, states) with any options, and whether Δ passes a softplus."
    shape = [draw(st.integers(1, n)) for n in most]
    options, softplus = [o for o in OPTIONAL if draw(st.booleans())], draw(st.booleans())
    x = example(*shape, options, draw(st.integers(0, 2**16)))
    # a step size that may be negative makes states grow without bound: not what a scan is for
    if not softplus: x["delta"] = x["delta"].abs() * .2; x.pop("delta_bias", None)
    return x, softplus


def on_examples(n): return settings(max_examples=n, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("backend", BACKENDS)
@on_examples(40)
@given(case=cases())
def test_equals_reference(case, backend):
    x, softplus = case
    err = errors(values_and_grads(partial(selective_scan, return_state=True, backend=backend), x, delta_softplus=softplus),
                 reference(x, delta_softplus=softplus))
    assert max(err.values()) < 1e-5, (x["u"].shape, x["A"].shape, list(x), softplus, err)


@pytest.mark.parametrize("state", (64, 256))
def test_many_states(state):
    x = example(1, 300, 40, state)
    err = errors(values_and_grads(partial(selective_scan, return_state=True, backend="cpu"), x, delta_softplus=True),
                 reference(x, delta_softplus=True))
    assert max(err.values()) < 1e-5, err


@pytest.mark.parametrize("size", (16, 48, 256))
def test_chunked_in_float64(size):
    x = example(2, 61, 5, 3, dtype=torch.float64)
    err = errors(values_and_grads(partial(_scan_chunked, size=size), x, delta_softplus=True), reference(x, delta_softplus=True))
    assert max(err.values()) < 1e-12, err


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", (1e-6, 1., 1e3))
def test_decays_of_any_size(backend, scale):
    x = example(1, 700, 8, 4, ())
    x["delta"] = x["delta"].abs() * scale
    err = errors(values_and_grads(partial(selective_scan, return_state=True, backend=backend), x), reference(x))
    assert max(err.values()) < 1e-5, err


@pytest.mark.parametrize("backend", BACKENDS)
def test_pieces_equal_the_whole(backend):
    x = example(2, 90, 20, 4)
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
    one, _ = selective_scan_step(x["initial_state"], **token, A=x["A"], D=x["D"], delta_bias=x["delta_bias"], delta_softplus=True)
    torch.testing.assert_close(one, y[:, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_non_contiguous(backend):
    x = example(2, 37, 24, 6)
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
    x = example(2, 50, 20, 8, dtype=dtype)
    got = values_and_grads(partial(selective_scan, return_state=True, backend=backend), x, delta_softplus=True)
    assert got["y"].dtype == dtype and got["h"].dtype == torch.float32 and got["u"].dtype == dtype
    err = errors(got, reference(x, delta_softplus=True))
    assert max(err.values()) < 2 * torch.finfo(dtype).eps, err   # no worse than rounding the results


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ("u", "delta", "A", "B", "C", "z"))
def test_nan_stays_visible(backend, name):
    x = example(1, 40, 20, 4)
    x[name].view(-1)[5] = torch.nan
    want = selective_scan_ref(**x, delta_softplus=True).isnan()
    assert want.any() and torch.equal(selective_scan(**x, delta_softplus=True, backend=backend).isnan(), want)


def test_thread_count_changes_nothing():
    x, before, got = example(3, 70, 200, 16), torch.get_num_threads(), []
    try:
        for n in (1, 2, 3, 7):
            torch.set_num_threads(n)
            got.append(values_and_grads(partial(selective_scan, return_state=True, backend="cpu"), x, delta_softplus=True))
    finally: torch.set_num_threads(before)
    for other in got[1:]: assert all(torch.equal(other[k], got[0][k]) for k in other)


def one_scan(seed):
    "Forward and backward in whichever thread or process this is called."
    x = example(2, 50, 100, 8, seed=seed)
    return values_and_grads(partial(selective_scan, return_state=True, backend="cpu"), x, delta_softplus=True)["A"].sum().item()


def test_python_threads_at_once():
    want = [one_scan(s) for s in range(8)]
    with ThreadPoolExecutor(4) as pool: assert list(pool.map(one_scan, range(8))) == want


class Scans(torch.utils.data.Dataset):
    def __len__(self): return 4
    def __getitem__(self, i): return one_scan(i)


@pytest.mark.skipif(sys.platform == "win32", reason="no fork on Windows")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_after_fork():
    want, before = [one_scan(s) for s in range(4)], torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert one_scan(0) == want[0]                     # the parent has threads of its own
        loader = DataLoader(Scans(), num_workers=2, multiprocessing_context="fork", batch_size=None)
        assert list(loader) == want
    finally: torch.set_num_threads(before)


def test_operator_is_registered_soundly():
    x = example(1, 10, 20, 4)
    x["delta"] = x["delta"].abs()
    args = [x[k].requires_grad_() for k in ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")]
    from hybrid_nb.scan_cpu import _scan_op
    torch.library.opcheck(_scan_op, (*args, True), rtol=1e-4, atol=1e-4)
    torch.library.opcheck(_scan_op, (*args[:5], None, None, None, None, False), rtol=1e-4, atol=1e-4)


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
    x = example(1, 10, 8, 4)
    assert torch.equal(selective_scan(**x), selective_scan(**x, backend="chunked"))
    with pytest.raises(ValueError, match="needs numba"): selective_scan(**x, backend="cpu")


def python(code): return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_import_is_light():
    assert python("import sys, hybrid_nb.ssm; print({'numba', 'transformers', 'matplotlib'} & set(sys.modules))") == "set()"


def test_compiled_code_is_reused():
    "A second process loads the kernels from disk."
    one_scan(0)
    hits = python("import torch; from hybrid_nb import scan, scan_cpu; x = torch.ones(1, 4, 16, requires_grad=True); b = torch.ones(1, 4, 2);"
                  "scan.selective_scan(x, x, -torch.ones(16, 2), b, b).sum().backward();"
                  "print(*(sum(k.stats.cache_hits.values()) for k in (scan_cpu._forward, scan_cpu._backward)))")
    assert hits == "1 1"


@pytest.mark.parametrize("change, message", [
    (dict(u=torch.ones(2, 0, 6)), r"u must be a tensor of shape \(batch, length, channels\), none of them 0; got \(2, 0, 6\)"),
    (dict(delta=torch.ones(2, 9, 5)), r"delta has shape \(2, 9, 5\), must be \(2, 9, 6\)"),
    (dict(A=torch.ones(6)), r"A must be a tensor of shape \(channels, state\), none of them 0; got \(6,\)"),
    (dict(B=torch.ones(2, 9, 5)), r"B has shape \(2, 9, 5\), must be \(2, 9, 4\)"),
    (dict(C=torch.ones(2, 9, 4, dtype=torch.int32)), "C is torch.int32, must be a floating-point type"),
    (dict(initial_state=torch.ones(2, 4, 6)), r"initial_state has shape \(2, 4, 6\), must be \(2, 6, 4\)"),
    (dict(z=torch.ones(2, 9, 6, device="meta")), "z is on meta, but u is on cpu"),
    (dict(backend="fast"), "unknown backend 'fast' .*auto, ref, chunked"),
])
def test_bad_input_is_named(change, message):
    with pytest.raises(ValueError, match=message): selective_scan(**example(2, 9, 6, 4) | change)


# --- the Triton kernels: compiled where there is a GPU, else in Triton's interpreter (see conftest.py), which is slow: small shapes
GPU = "cuda" if torch.cuda.is_available() else "cpu"
triton_kernels = pytest.mark.skipif(not scan.has_gpu_kernel(), reason="needs triton")


def on_gpu(x): return {k: v.to(GPU) for k, v in x.items()}
def on_cpu(x): return {k: v.cpu() for k, v in x.items()}


def triton_scan(x, plan=None, softplus=True, monkeypatch=None):
    "Values and gradients by the kernels, with the work cut as `plan` says."
    from hybrid_nb import scan_triton
    if plan: monkeypatch.setattr(scan_triton, "_plan", lambda *shape: scan_triton.Plan(*plan))
    f = partial(selective_scan, return_state=True, backend="triton", delta_softplus=softplus)
    x = {k: v.detach().requires_grad_() for k, v in on_gpu(x).items()}
    out = f(**x)
    g = torch.Generator().manual_seed(1)
    loss = sum((o.double() * torch.randn(o.shape, generator=g, dtype=torch.float64).to(GPU)).sum() for o in out)
    return on_cpu(dict(zip(["y", "h"], (o.detach() for o in out))) | dict(zip(x, torch.autograd.grad(loss, list(x.values())))))


# width, tokens forward, tokens backward, tokens between saved states, ranges at most, bytes for sums over channels
PLANS = dict(one=(32, 4, 4, 8, 1), ranges=(32, 8, 4, 8, 3), wide=(64, 4, 8, 16, 2), slabs=(32, 4, 4, 8, 2, 0), rows_of_one=(32, 1, 1, 2, 2), single=(128, 16, 8, 16, 1))


@triton_kernels
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("length", (1, 7, 8, 9, 16, 17, 24))
def test_triton_lengths(length, plan, monkeypatch):
    x = example(2, length, 5, 2, seed=length)
    err = errors(triton_scan(x, plan, monkeypatch=monkeypatch), reference(x, delta_softplus=True))
    assert max(err.values()) < 1e-5, err


@triton_kernels
@on_examples(16)
@given(case=cases((2, 13, 70, 3)), ranges=st.integers(1, 2))
def test_triton_equals_reference(case, ranges, monkeypatch):
    x, softplus = case
    err = errors(triton_scan(x, (32, 4, 4, 8, ranges), softplus, monkeypatch), reference(x, delta_softplus=softplus))
    assert max(err.values()) < 1e-5, (x["u"].shape, x["A"].shape, list(x), softplus, err)


@triton_kernels
@pytest.mark.parametrize("state", (1, 3, 16, 64, 256))
def test_triton_states(state):
    x = example(1, 600 // max(state, 60), 3, state)
    err = errors(triton_scan(x), reference(x, delta_softplus=True))
    assert max(err.values()) < 1e-5, err


@triton_kernels
@pytest.mark.parametrize("shape", ((1, 64, 64, 2), (1, 130, 3, 1), (3, 24, 100, 2)))
def test_triton_default_plan(shape):
    x = example(*shape)
    err = errors(triton_scan(x), reference(x, delta_softplus=True))
    assert max(err.values()) < 1e-5, err


@triton_kernels
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_triton_half_precision(dtype):
    x = example(2, 12, 5, 3, dtype=dtype)
    got = triton_scan(x)
    assert got["y"].dtype == dtype and got["h"].dtype == torch.float32 and all(got[k].dtype == dtype for k in x)
    err = errors(got, reference(x, delta_softplus=True))
    assert max(err.values()) < 2 * torch.finfo(dtype).eps, err
    mixed = x | {k: x[k].float() for k in ("A", "D", "delta_bias", "initial_state", "B")}
    got = triton_scan(mixed)
    assert all(got[k].dtype == mixed[k].dtype for k in mixed)
    err = errors(got, reference(mixed, delta_softplus=True))
    assert max(err.values()) < 2 * torch.finfo(dtype).eps, err


@triton_kernels
@pytest.mark.parametrize("scale", (1e-6, 1., 1e3))
def test_triton_decays_of_any_size(scale, monkeypatch):
    x = example(1, 40, 3, 2, ())
    x["delta"] = x["delta"].abs() * scale
    err = errors(triton_scan(x, PLANS["ranges"], False, monkeypatch), reference(x))
    assert max(err.values()) < 1e-5, err


@triton_kernels
def test_triton_long_memory_keeps_small_steps():
    x = example(1, 30, 3, 2)
    x["delta"] -= 12
    err = errors(triton_scan(x), reference(x, delta_softplus=True))
    assert max(err.values()) < 1e-5, err


@triton_kernels
@pytest.mark.parametrize("name", ("u", "delta", "A", "B", "C", "z"))
def test_triton_nan_stays_visible(name):
    x = example(1, 10, 5, 2)
    x[name].view(-1)[5] = torch.nan
    want = selective_scan_ref(**x, delta_softplus=True).isnan()
    assert want.any() and torch.equal(selective_scan(**on_gpu(x), delta_softplus=True, backend="triton").isnan().cpu(), want)


@triton_kernels
def test_triton_strides_and_pieces():
    x = example(2, 11, 6, 2)
    u, z, delta = torch.cat([x["u"], x["z"], x["delta"]], -1).chunk(3, -1)
    odd = x | dict(u=u, z=z, delta=delta.transpose(1, 2).contiguous().transpose(1, 2), A=x["A"].T.contiguous().T, D=x["D"].repeat_interleave(2)[::2],
                   B=x["B"].repeat_interleave(2, -1)[..., ::2], C=x["C"][:, :1].expand(-1, 11, -1))
    assert not any(odd[k].is_contiguous() for k in ("u", "z", "delta", "A", "B", "C", "D"))
    got, want = triton_scan(odd), triton_scan({k: v.contiguous() for k, v in odd.items()})
    assert all(torch.equal(got[k], want[k]) for k in want)
    run, state, parts, i = partial(selective_scan, delta_softplus=True, backend="triton", return_state=True), x["initial_state"].to(GPU), [], 0
    for n in (1, 6, 4):
        part, state = run(**on_gpu({k: v[:, i:i+n] if k in ("u", "delta", "B", "C", "z") else v for k, v in x.items()}) | dict(initial_state=state))
        parts.append(part)
        i += n
    y, h = run(**on_gpu(x))
    torch.testing.assert_close(torch.cat(parts, 1), y, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state, h, rtol=1e-5, atol=1e-5)


@triton_kernels
@pytest.mark.parametrize("plan", ("ranges", "slabs"))
def test_triton_gradients_are_the_same_every_time(plan, monkeypatch):
    shape = (1, 20, 40, 2) if GPU == "cpu" else (4, 1000, 500, 16)
    x = example(*shape)
    first, second = (triton_scan(x, PLANS[plan], monkeypatch=monkeypatch) for _ in range(2))
    assert all(torch.equal(first[k], second[k]) for k in first)


@triton_kernels
def test_triton_state_only():
    "Gradients when only y, or only the last state, reaches the loss."
    x = {k: v.requires_grad_() for k, v in on_gpu(example(1, 9, 4, 2)).items()}
    want = {k: v.detach().cpu().double().requires_grad_() for k, v in x.items()}
    for i in (0, 1):
        ours, theirs = selective_scan(**x, return_state=True, backend="triton")[i], selective_scan_ref(**want, return_state=True)[i]
        used = [k for k in x if i == 0 or k not in ("C", "D", "z")]
        for k, a, b in zip(used, torch.autograd.grad(ours.sum(), [x[k] for k in used]), torch.autograd.grad(theirs.sum(), [want[k] for k in used])):
            torch.testing.assert_close(a.cpu().double(), b, rtol=1e-4, atol=1e-5, msg=k)


@triton_kernels
def test_triton_operator_is_registered_soundly():
    x = example(1, 9, 4, 2)
    x["delta"] = x["delta"].abs()
    args = [x[k].to(GPU).requires_grad_() for k in ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")]
    from hybrid_nb.scan_triton import _scan_op
    torch.library.opcheck(_scan_op, (*args, True), rtol=1e-4, atol=1e-4)
    torch.library.opcheck(_scan_op, (*args[:5], None, None, None, None, False), rtol=1e-4, atol=1e-4)


@triton_kernels
def test_triton_compiles_without_graph_breaks_and_checkpoints():
    torch.manual_seed(0)
    m, x = Mamba(4, 2, expand=1, backend="triton").to(GPU), torch.randn(1, 9, 4, device=GPU)
    want = m(x)
    got = torch.compile(m, backend="aot_eager", fullgraph=True)(x)
    torch.testing.assert_close(got, want)
    again = torch.utils.checkpoint.checkpoint(m, x, use_reentrant=False)
    grads = [torch.autograd.grad(v.square().sum(), list(m.parameters())) for v in (want, got, again)]
    for other in grads[1:]:
        for a, b in zip(grads[0], other): torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@triton_kernels
@pytest.mark.parametrize("length, kernel, bias", ((1, 4, True), (3, 4, True), (20, 4, False), (17, 2, True), (16, 1, True), (140, 3, True)))
def test_triton_convolution(length, kernel, bias):
    from hybrid_nb.scan_triton import conv_silu_triton
    torch.manual_seed(0)
    x, w, b = torch.randn(2, length, 70), torch.randn(70, 1, kernel), torch.randn(70) if bias else None
    def run(f, dtype, device):
        leaves = [v.to(device, dtype).requires_grad_() for v in (x, w, b) if v is not None]
        y = f(*leaves, *([] if bias else [None]))
        g = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(device, dtype)
        return [v.double().cpu() for v in (y.detach(), *torch.autograd.grad((y * g).sum(), leaves))]
    def plain(x, w, b):
        padded = torch.nn.functional.pad(x.transpose(1, 2), (kernel - 1, 0))
        return torch.nn.functional.silu(torch.nn.functional.conv1d(padded, w, b, groups=70).transpose(1, 2))
    for a, b64 in zip(run(conv_silu_triton, torch.float32, GPU), run(plain, torch.float64, "cpu")): assert (a - b64).norm() < 1e-6 * b64.norm()
    for a, b64 in zip(run(conv_silu_triton, torch.bfloat16, GPU), run(plain, torch.float64, "cpu")): assert (a - b64).norm() < 2e-2 * b64.norm()


@triton_kernels
def test_triton_bad_input_is_named(monkeypatch):
    from hybrid_nb import scan_triton
    with pytest.raises(ValueError, match="'triton' takes float32 or half precision on CUDA, not torch.float64"):
        selective_scan(**on_gpu(example(1, 4, 3, 2, dtype=torch.float64)), backend="triton")
    with pytest.raises(ValueError, match="take no float64"): scan_triton.scan_triton(**on_gpu(example(1, 4, 3, 2, dtype=torch.float64)), delta_softplus=True)
    monkeypatch.setattr(scan_triton, "interpreted", False)
    with pytest.raises(ValueError, match="run on CUDA, got a tensor on cpu"): selective_scan(**example(1, 4, 3, 2), backend="triton")
    with pytest.raises(ValueError, match="run on CUDA, got a tensor on cpu"): scan_triton.conv_silu_triton(torch.ones(1, 4, 3), torch.ones(3, 1, 2), None)


def test_without_triton(monkeypatch):
    monkeypatch.setattr(scan, "has_gpu_kernel", lambda: False)
    with pytest.raises(ValueError, match=r"backend 'triton' needs triton \(pip install triton\)"): selective_scan(**example(1, 4, 3, 2), backend="triton")


def test_import_without_triton():
    "Neither the package nor its other backends need it; the error says what to install."
    out = python("import sys; sys.modules['triton'] = None\nimport torch, hybrid_nb.ssm\nfrom hybrid_nb.scan import selective_scan, has_gpu_kernel\n"
                 "x = torch.ones(1, 4, 16); b = torch.ones(1, 4, 2); selective_scan(x, x, -torch.ones(16, 2), b, b)\n"
                 "try: selective_scan(x, x, -torch.ones(16, 2), b, b, backend='triton')\nexcept ValueError as e: print(has_gpu_kernel(), e)")
    assert out.startswith("False selective scan: backend 'triton' needs triton")
