"The derivative of the context-vector model's loop, written by hand, and its dropout."
import pytest, torch
from hybrid_nb.models.context_loop import context_loop, context_loop_plain, LoopSpec, LoopWeights


def random_loop(batch=5, length=7, E=6, D=8, H=10, depth=3, gated=True, padded=False, dropout=0.):
    "Arguments of a loop, with random weights in float64."
    torch.manual_seed(0)
    def r(*shape): return (torch.randn(*shape, dtype=torch.float64) * shape[-1]**-.5).requires_grad_()
    writes = (3 if gated else 1)*D
    w = LoopWeights(r(H, E), r(H, D), r(H), r(writes, H), r(writes), r(D), r(D),
                    tuple(r(H, H) for _ in range(depth-1)), tuple(r(H) for _ in range(depth-1)))
    drawn = torch.multinomial(torch.tensor([.3, .5, .2]), batch*length, True)
    marks = drawn.view(batch, length) if padded else None
    return r(batch, length, E), r(batch, D), marks, w, LoopSpec(gated, (D,), 10., 1e-5, dropout)

def flat(x, c, w): return [x, c, *w[:7], *w.layers, *w.biases]

def weights(flat): return LoopWeights(*flat[2:9], flat[9:(9 + len(flat))//2], flat[(9 + len(flat))//2:])


@pytest.mark.parametrize("padded", [True, False], ids=["padded", "whole"])
@pytest.mark.parametrize("gated", [True, False], ids=["gated", "overwrite"])
def test_gradcheck(gated, padded):
    x, c, marks, w, spec = random_loop(2, 3, 3, 4, 5, 2, gated, padded=padded)
    def f(*args): return context_loop(args[0], args[1], marks, weights(args), spec)
    assert torch.autograd.gradcheck(f, flat(x, c, w))


@pytest.mark.parametrize("which", [0, 1], ids=["activations", "contexts"])
def test_only_one_of_the_results_is_used(which):
    x, c, marks, w, spec = random_loop()
    grads = [torch.autograd.grad(f(x, c, marks, w, spec)[which].square().sum(), [x, w.write])
             for f in (context_loop, context_loop_plain)]
    for a, b in zip(*grads): torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


@torch.no_grad()
def test_masks_follow_the_seed_and_not_the_threads():
    args = random_loop(20, 5, dropout=0.3)
    def seeded(seed=3):
        torch.manual_seed(seed)
        return context_loop(*args)[0]
    assert torch.equal(seeded(), seeded()) and not torch.equal(seeded(4), seeded())
    threads, want = torch.get_num_threads(), seeded()
    try:
        torch.set_num_threads(1)
        torch.testing.assert_close(seeded(), want, atol=1e-12, rtol=0)
    finally: torch.set_num_threads(threads)


def test_the_derivative_fits_differences_under_dropout():
    "With the seed fixed the function is smooth almost everywhere."
    x, c, marks, w, spec = random_loop(20, 5, dropout=0.3)
    def value(inputs):
        torch.manual_seed(3)
        h, cs = context_loop(inputs[0], inputs[1], marks, weights(inputs), spec)
        return h.square().sum() + cs.sum()
    def moved(eps):
        torch.manual_seed(4)
        return value([v + eps * torch.randn_like(v) for v in flat(x, c, w)]).item()
    grads = torch.autograd.grad(value(flat(x, c, w)), flat(x, c, w))
    torch.manual_seed(4)
    slope = sum((g * torch.randn_like(g)).sum() for g in grads).item()
    assert abs(slope - (moved(1e-6) - moved(-1e-6)) / 2e-6) < 1e-4 * abs(slope)
