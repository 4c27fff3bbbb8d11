"The model as one graph."
import pytest, torch
from hybrid_nb.model import HybridConfig, HybridForCausalLM
from hybrid_nb.train import Objective


@pytest.mark.parametrize("pattern", ["AMS", "GWF"])
def test_training_compiles_without_graph_breaks(pattern):
    "Loss and gradients of the compiled objective are those of the plain one; `fullgraph` fails at a break."
    torch.manual_seed(0)
    config = HybridConfig(pattern=pattern, hidden_size=32, num_attention_heads=4, vocab_size=300, sliding_window=9, ssd_head_dim=16, dropout=0.)
    objective = Objective(HybridForCausalLM(config).train())
    x, y = torch.randint(300, (2, 2, 40))

    def values(f):
        objective.zero_grad()
        nats, right = f(x, y)
        nats.backward()
        return [nats.detach(), right, *(p.grad.clone() for p in objective.parameters())]

    compiled = torch.compile(objective, fullgraph=True, backend="aot_eager")
    for a, b in zip(values(compiled), values(objective)): torch.testing.assert_close(a, b)
