"Inputs of the selective scan that hypothesis draws."
import torch
from hypothesis import HealthCheck, settings, strategies as st
from helpers.mixers import scan_example, scan_options


@st.composite
def cases(draw, most=(3, 140, 200, 40)):
    "Inputs of any shape up to `most` (batch, length, channels, states), any options, and if Δ passes a softplus."
    shape = [draw(st.integers(1, n)) for n in most]
    options, softplus = [o for o in scan_options if draw(st.booleans())], draw(st.booleans())
    x = scan_example(*shape, options, draw(st.integers(0, 2**16)))
    # a step size that may be negative makes states grow without bound: not what a scan is for
    if not softplus: x["delta"] = x["delta"].abs() * .2; x.pop("delta_bias", None)
    if draw(st.booleans()): # several texts in a row
        rng = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
        x["starts"] = torch.rand(shape[:2], generator=rng) < draw(st.sampled_from((.02, .2, .9)))
    return x, softplus


def on_examples(n):
    return settings(max_examples=n, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
