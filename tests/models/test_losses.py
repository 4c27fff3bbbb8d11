"The loss over a large vocabulary, where its notebook's tests end: text as it is, in half precision."
import pytest, torch
from hybrid_nb.models import losses
from hybrid_nb.models.losses import head_nats, linear_cross_entropy


@pytest.mark.parametrize("dtype, eps", [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_a_frequent_word_does_not_overflow(dtype, eps):
    "Half of 4,096 targets are one word, as in text; every gradient stays finite and near that of float32."
    torch.manual_seed(0)
    h, w = torch.randn(4096, 16), torch.randn(50, 16) * .02
    y = torch.where(torch.rand(4096) < .5, 7, torch.randint(50, (4096,)))
    def gradients(dtype):
        leaves = [x.to(dtype).requires_grad_() for x in (h, w)]
        linear_cross_entropy(*leaves, y)[0].backward()
        return [x.grad.float() for x in leaves]
    for got, want in zip(gradients(dtype), gradients(torch.float32)):
        assert got.isfinite().all()
        assert (got - want).abs().max() < eps * want.abs().max()


@pytest.mark.parametrize("words, tokens", [(50, 700), (4099, 300)])
def test_kernel_and_torch_agree_in_bf16(words, tokens, monkeypatch):
    "The loss with the compiled kernel, and without it as on other machines; one chunk or several."
    torch.manual_seed(0)
    h, w = torch.randn(tokens, 32).bfloat16(), (torch.randn(words, 32) * .2).bfloat16()
    y = torch.randint(words, (tokens,))
    y[::9] = -100
    def found():
        leaves = [x.clone().requires_grad_() for x in (h, w)]
        nats, correct = linear_cross_entropy(*leaves, y)
        nats.backward()
        with torch.no_grad(): each, hit = head_nats(h, head, y)
        return nats.detach(), correct, each, hit, *(x.grad.float() for x in leaves)
    head = torch.nn.Linear(32, words, bias=False).bfloat16()
    head.weight.data = w
    with_kernel, calls = found(), []
    monkeypatch.setattr(losses, "_chunk_tokens", lambda *_: 128)
    in_chunks = found()
    monkeypatch.setattr(losses, "has_cpu_kernel", lambda: calls.append(1))
    without = found()
    assert calls
    for got in (with_kernel, in_chunks):
        torch.testing.assert_close(got[2], without[2], rtol=1e-5, atol=1e-5)
        assert torch.equal(got[1], without[1]) and torch.equal(got[3], without[3])
        assert abs(got[0] / without[0] - 1) < 1e-5
        for a, b in zip(got[4:], without[4:]): assert (a - b).norm() < 5e-3 * b.norm()


def test_a_target_beyond_the_vocabulary_is_refused():
    h, w = torch.randn(3, 8).bfloat16(), torch.randn(5, 8).bfloat16()
    with pytest.raises((IndexError, RuntimeError)): linear_cross_entropy(h, w, torch.tensor([0, 5, 1]))
