"The loss over a large vocabulary, where its notebook's tests end: text as it is, in half precision."
import pytest, torch
from hybrid_nb.models.losses import linear_cross_entropy


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
