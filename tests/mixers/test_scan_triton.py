"""The scan's Triton kernels against the recurrence in float64.

They are compiled where there is a GPU, else run in Triton's interpreter (see conftest.py), which is slow: small shapes.
"""
from functools import partial
import pytest, torch
from hypothesis import given, strategies as st
from helpers.mixers import conv_silu_plain, exact_scan, relative_errors, scan_example, values_and_grads
from helpers.scan_cases import cases, on_examples
from hybrid_nb.mixers.mamba import Mamba
from hybrid_nb.mixers.scan import has_gpu_kernel, selective_scan, selective_scan_ref

if not has_gpu_kernel(): pytest.skip("needs triton", allow_module_level=True)
from hybrid_nb.mixers import scan_triton as kernels

GPU = "cuda" if torch.cuda.is_available() else "cpu"


def on_gpu(x): return {k: v.to(GPU) for k, v in x.items()}


def triton_scan(x, plan=None, softplus=True, monkeypatch=None):
    "Values and gradients by the kernels, with the work cut as `plan` says."
    if plan: monkeypatch.setattr(kernels, "_plan", lambda *shape: kernels.Plan(*plan))
    f = partial(selective_scan, return_state=True, backend="triton", delta_softplus=softplus)
    return {k: v.cpu() for k, v in values_and_grads(f, on_gpu(x)).items()}


# width, tokens forward, tokens backward, tokens between saved states, ranges at most, bytes for sums over channels
PLANS = dict(one=(32, 4, 4, 8, 1), ranges=(32, 8, 4, 8, 3), wide=(64, 4, 8, 16, 2), slabs=(32, 4, 4, 8, 2, 0),
             rows_of_one=(32, 1, 1, 2, 2), single=(128, 16, 8, 16, 1))


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("length", (1, 7, 8, 9, 16, 17, 24))
def test_triton_lengths(length, plan, monkeypatch):
    x = scan_example(2, length, 5, 2, seed=length)
    if length > 8: x["starts"] = torch.rand(2, length, generator=torch.Generator().manual_seed(length)) < .2
    err = relative_errors(triton_scan(x, plan, monkeypatch=monkeypatch), exact_scan(x, delta_softplus=True))
    assert max(err.values()) < 1e-5, err


@on_examples(16)
@given(case=cases((2, 13, 70, 3)), ranges=st.integers(1, 2))
def test_triton_equals_reference(case, ranges, monkeypatch):
    x, softplus = case
    got = triton_scan(x, (32, 4, 4, 8, ranges), softplus, monkeypatch)
    err = relative_errors(got, exact_scan(x, delta_softplus=softplus))
    assert max(err.values()) < 1e-5, (x["u"].shape, x["A"].shape, list(x), softplus, err)


@pytest.mark.parametrize("state", (1, 3, 16, 64, 256))
def test_triton_states(state):
    x = scan_example(1, 600 // max(state, 60), 3, state)
    err = relative_errors(triton_scan(x), exact_scan(x, delta_softplus=True))
    assert max(err.values()) < 1e-5, err


@pytest.mark.parametrize("shape", ((1, 64, 64, 2), (1, 130, 3, 1), (3, 24, 100, 2)))
def test_triton_default_plan(shape):
    x = scan_example(*shape)
    err = relative_errors(triton_scan(x), exact_scan(x, delta_softplus=True))
    assert max(err.values()) < 1e-5, err


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_triton_half_precision(dtype):
    x = scan_example(2, 12, 5, 3, dtype=dtype)
    got = triton_scan(x)
    assert got["y"].dtype == dtype and got["state"].dtype == torch.float32 and all(got[k].dtype == dtype for k in x)
    err = relative_errors(got, exact_scan(x, delta_softplus=True))
    assert max(err.values()) < 2 * torch.finfo(dtype).eps, err
    mixed = x | {k: x[k].float() for k in ("A", "D", "delta_bias", "initial_state", "B")}
    got = triton_scan(mixed)
    assert all(got[k].dtype == mixed[k].dtype for k in mixed)
    err = relative_errors(got, exact_scan(mixed, delta_softplus=True))
    assert max(err.values()) < 2 * torch.finfo(dtype).eps, err


@pytest.mark.parametrize("scale", (1e-6, 1., 1e3))
def test_triton_decays_of_any_size(scale, monkeypatch):
    x = scan_example(1, 40, 3, 2, ())
    x["delta"] = x["delta"].abs() * scale
    err = relative_errors(triton_scan(x, PLANS["ranges"], False, monkeypatch), exact_scan(x))
    assert max(err.values()) < 1e-5, err


def test_triton_long_memory_keeps_small_steps():
    x = scan_example(1, 30, 3, 2)
    x["delta"] -= 12
    err = relative_errors(triton_scan(x), exact_scan(x, delta_softplus=True))
    assert max(err.values()) < 1e-5, err


@pytest.mark.parametrize("name", ("u", "delta", "A", "B", "C", "z"))
def test_triton_nan_stays_visible(name):
    x = scan_example(1, 10, 5, 2)
    x[name].view(-1)[5] = torch.nan
    want = selective_scan_ref(**x, delta_softplus=True).isnan()
    got = selective_scan(**on_gpu(x), delta_softplus=True, backend="triton")
    assert want.any() and torch.equal(got.isnan().cpu(), want)


def test_triton_strides_and_pieces():
    x = scan_example(2, 11, 6, 2)
    u, z, delta = torch.cat([x["u"], x["z"], x["delta"]], -1).chunk(3, -1)
    delta = delta.transpose(1, 2).contiguous().transpose(1, 2)
    odd = x | dict(u=u, z=z, delta=delta, A=x["A"].T.contiguous().T, D=x["D"].repeat_interleave(2)[::2],
                   B=x["B"].repeat_interleave(2, -1)[..., ::2], C=x["C"][:, :1].expand(-1, 11, -1))
    assert not any(odd[k].is_contiguous() for k in ("u", "z", "delta", "A", "B", "C", "D"))
    got, want = triton_scan(odd), triton_scan({k: v.contiguous() for k, v in odd.items()})
    assert all(torch.equal(got[k], want[k]) for k in want)
    run = partial(selective_scan, delta_softplus=True, backend="triton", return_state=True)
    state, parts, i = x["initial_state"].to(GPU), [], 0
    for n in (1, 6, 4):
        cut = {k: v[:, i:i+n] if k in ("u", "delta", "B", "C", "z") else v for k, v in x.items()}
        part, state = run(**on_gpu(cut) | dict(initial_state=state))
        parts.append(part)
        i += n
    y, h = run(**on_gpu(x))
    torch.testing.assert_close(torch.cat(parts, 1), y, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state, h, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("plan", ("ranges", "slabs"))
def test_triton_gradients_are_the_same_every_time(plan, monkeypatch):
    shape = (1, 20, 40, 2) if GPU == "cpu" else (4, 1000, 500, 16)
    x = scan_example(*shape)
    first, second = (triton_scan(x, PLANS[plan], monkeypatch=monkeypatch) for _ in range(2))
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_triton_state_only():
    "Gradients when only y, or only the last state, reaches the loss."
    x = {k: v.requires_grad_() for k, v in on_gpu(scan_example(1, 9, 4, 2)).items()}
    want = {k: v.detach().cpu().double().requires_grad_() for k, v in x.items()}
    for i in (0, 1):
        ours = selective_scan(**x, return_state=True, backend="triton")[i]
        theirs = selective_scan_ref(**want, return_state=True)[i]
        used = [k for k in x if i == 0 or k not in ("C", "D", "z")]
        grads = (torch.autograd.grad(y.sum(), [v[k] for k in used]) for y, v in ((ours, x), (theirs, want)))
        for k, a, b in zip(used, *grads):
            torch.testing.assert_close(a.cpu().double(), b, rtol=1e-4, atol=1e-5, msg=k)


def test_triton_operator_is_registered_soundly():
    x = scan_example(1, 9, 4, 2)
    x["delta"] = x["delta"].abs()
    names = "u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state"
    args = [x[k].to(GPU).requires_grad_() for k in names]
    border = torch.zeros(1, 9, device=GPU).index_fill(1, torch.tensor([4], device=GPU), -1000)
    torch.library.opcheck(kernels._scan_op, (*args, border, True), rtol=1e-4, atol=1e-4)
    torch.library.opcheck(kernels._scan_op, (*args[:5], None, None, None, None, None, False), rtol=1e-4, atol=1e-4)


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


@pytest.mark.parametrize("length, kernel, bias, texts", (
    (1, 4, True, 1), (3, 4, True, 1), (20, 4, False, 1), (17, 2, True, 1), (16, 1, True, 1), (140, 3, True, 1),
    (20, 4, False, 5), (17, 2, True, 17), (140, 4, True, 9)))
def test_triton_convolution(length, kernel, bias, texts):
    torch.manual_seed(0)
    x, w, b = torch.randn(2, length, 70), torch.randn(70, 1, kernel), torch.randn(70) if bias else None
    parts = [len(v) for v in torch.arange(length).chunk(texts)]
    since = torch.cat([torch.arange(n) for n in parts]).int().expand(2, -1).to(GPU) if texts > 1 else None
    def alone(x, w, b=None): return torch.cat([conv_silu_plain(v, w, b) for v in x.split(parts, 1)], 1)
    def run(f, dtype, device):
        leaves = [v.to(device, dtype).requires_grad_() for v in (x, w, b) if v is not None]
        y = f(*leaves, *([] if bias else [None]))
        g = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(device, dtype)
        return [v.double().cpu() for v in (y.detach(), *torch.autograd.grad((y * g).sum(), leaves))]
    for dtype, eps in (torch.float32, 1e-6), (torch.bfloat16, 2e-2):
        exact = run(alone, torch.float64, "cpu")
        got = run(partial(kernels.conv_silu_triton, since=since), dtype, GPU)
        for a, b64 in zip(got, exact): assert (a - b64).norm() < eps * b64.norm()


def test_triton_bad_input_is_named(monkeypatch):
    double, single = (scan_example(1, 4, 3, 2, dtype=t) for t in (torch.float64, torch.float32))
    x, w = torch.ones(1, 4, 3), torch.ones(3, 1, 2)
    def refused(message): return pytest.raises(ValueError, match=message)
    with refused("'triton' takes float32 or half precision on CUDA, not torch.float64"):
        selective_scan(**on_gpu(double), backend="triton")
    with refused("take no float64"): kernels.scan_triton(**on_gpu(double), delta_softplus=True)
    monkeypatch.setattr(kernels, "interpreted", False)
    with refused("run on CUDA, got a tensor on cpu"): selective_scan(**single, backend="triton")
    with refused("run on CUDA, got a tensor on cpu"): kernels.conv_silu_triton(x, w, None)
