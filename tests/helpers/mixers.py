"Tests and notebooks of the mixers share these: random inputs, values with gradients, sequences that arrive in pieces."
import subprocess, sys
from functools import partial
from pathlib import Path
import pytest, torch, torch.nn.functional as F
from transformers import DynamicCache, Mamba2Config, PretrainedConfig
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer
from hybrid_nb.mixers.scan import selective_scan_ref
from hybrid_nb.models.cache import HybridCache


def assert_near(a, b, eps=1e-5):
    "`a` equals `b` up to `eps`, relative to the size of `b`."
    err = ((a - b).norm() / b.norm()).item()
    assert err < eps, f"relative error {err:.1e}"


def grouped_norm() -> bool:
    "Does this transformers normalise each group of a Mamba-2 by itself? (5.17 takes the norm over all groups.)"
    config = Mamba2Config(hidden_size=8, num_heads=2, head_dim=8, state_size=2, n_groups=2, num_hidden_layers=1)
    return hasattr(Mamba2Mixer(config, 0).norm, "group_size")


def need_grouped_norm(n_groups):
    if n_groups > 1 and not grouped_norm(): pytest.skip("this transformers takes the norm of a Mamba-2 over all groups")


scan_options = "D", "z", "delta_bias", "initial_state"


def scan_example(batch, length, channels, state, options=scan_options, seed=0, dtype=torch.float32):
    "Random inputs of `selective_scan`, for a Δ that passes through a softplus."
    g = torch.Generator().manual_seed(seed)
    r = lambda *s: torch.randn(*s, generator=g, dtype=torch.float64)
    b, l, c, n = batch, length, channels, state
    x = dict(u=r(b, l, c), delta=r(b, l, c) - 1, A=-r(c, n).exp(), B=r(b, l, n), C=r(b, l, n), D=r(c), z=r(b, l, c),
             delta_bias=r(c), initial_state=r(b, c, n))
    return {k: v.to(dtype) for k, v in x.items() if k in options or k not in scan_options}


def relative_errors(got, want):
    "By name, how far tensors are from what they should be, relative to the size of that."
    def error(k): return ((got[k].double() - want[k]).norm() / want[k].norm().clamp(min=1e-30)).item()
    return {k: error(k) for k in want}


def values_and_grads(f, x, **kw):
    "The two outputs of `f(**x)`, y and last state, and the gradients of a random projection of both."
    x = {k: v.detach().requires_grad_(v.is_floating_point()) for k, v in x.items()}
    out = f(**x, **kw)
    x = {k: v for k, v in x.items() if v.requires_grad}
    g = torch.Generator().manual_seed(1)
    noise = [torch.randn(o.shape, generator=g, dtype=torch.float64).to(o.device) for o in out]
    loss = sum((o.double() * w).sum() for o, w in zip(out, noise))
    grads = torch.autograd.grad(loss, list(x.values()))
    return dict(zip(["y", "state"], (o.detach() for o in out))) | dict(zip(x, grads))


def outputs_and_grads(mixer, x, w, **kw):
    "Output of a mixer, and the gradients of its product with `w` for the input and each parameter."
    x = x.clone().requires_grad_()
    y = mixer(x, **kw)
    parameters = dict(mixer.named_parameters())
    grads = torch.autograd.grad((y * w).sum(), [x, *parameters.values()])
    return y.detach(), dict(zip(["x", *parameters], grads))


def conv_silu_plain(x, w, bias):
    "SiLU of a causal depthwise convolution by torch; x (batch, length, channels), w (channels, 1, kernel)."
    x = F.pad(x.transpose(1, 2), (w.shape[-1] - 1, 0))
    return F.silu(F.conv1d(x, w, bias, groups=len(w)).transpose(1, 2))


def new_cache():
    "The cache of a model with one recurrent layer."
    return HybridCache(PretrainedConfig(num_hidden_layers=1, layer_types=["linear_attention"]))


def exact_scan(x, **kw):
    "`values_and_grads` of the recurrence in float64."
    f = partial(selective_scan_ref, return_state=True)
    return values_and_grads(f, {k: v.double() if v.is_floating_point() else v for k, v in x.items()}, **kw)


def python(code):
    "What `code` prints in a fresh process, which finds `helpers`, too."
    code = f"import sys; sys.path.append({str(Path(__file__).parents[1])!r})\n{code}"
    r = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert r.returncode == 0, r.stderr
    return r.stdout.strip()


def in_pieces(mixer, x, sizes, mask=None):
    "Outputs of a recurrent mixer when `x` arrives in pieces of these sizes, and its cache."
    cache, ys, i = new_cache(), [], 0
    for n in sizes:
        ys.append(mixer(x[:, i:i+n], cache=cache, segments=None if mask is None else mask[:, i:i+n]))
        i += n
    return torch.cat(ys, 1), cache


cuts = [[37], [1]*37, [20] + [1]*17, [2, 5, 1, 13, 16], [3]*12 + [1]] # ways in which 37 tokens may arrive


def attend_in_pieces(mixer, x, sizes, cache=None):
    "Outputs of an attention mixer when `x` arrives in pieces of these sizes."
    out, at, cache = [], 0, DynamicCache() if cache is None else cache
    for n in sizes:
        out.append(mixer(x[:, at:at+n], cache=cache, position_ids=torch.arange(at, at+n)[None]))
        at += n
    return torch.cat(out, 1)
