"A recurrent mixer of the user's own, without a convolution, generates with its cache what it generates without."
import torch
from torch import nn
import hybrid_nb as hn
from hybrid_nb.core.patterns import blocks
from hybrid_nb.mixers.recurrent import recurrent_state, update_state
from hybrid_nb.models.config import HybridConfig
from hybrid_nb.models.modeling import HybridForCausalLM
from hybrid_nb.models.registry import mixers, register


class RunningAverage(nn.Module):
    "Half of what was, half of what is; its only memory is the recurrent state."
    def __init__(self, config, layer_idx):
        super().__init__()
        self.layer_idx, self.out = layer_idx, nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x, cache=None, **context):
        def average(state, x):
            h, out = x.new_zeros(len(x), x.shape[2]) if state is None else state[..., 0], []
            for token in x.unbind(1): out.append(h := (h + token) / 2)
            return torch.stack(out, 1), h[..., None]
        return self.out(update_state(average, recurrent_state(cache, self.layer_idx), cache, self.layer_idx, x))


def test_a_state_without_a_convolution_is_kept():
    before = mixers.copy(), blocks.copy()
    try:
        register("Q", "running average", cache="linear_attention")(RunningAverage)
        torch.manual_seed(0)
        config = HybridConfig(pattern="QFQ", vocab_size=60, hidden_size=16, num_attention_heads=2, initializer_range=.3)
        model = HybridForCausalLM(config).eval()
        assert {f.verdict for f in hn.audit_model(model) if f.check == "cached mode"} == {"pass"}
        ids = torch.randint(1, 60, (2, 9))
        a, b = (model.generate(ids, max_new_tokens=20, do_sample=False, use_cache=c, pad_token_id=0)
                for c in (True, False))
        assert torch.equal(a, b)
    finally:
        for now, old in zip((mixers, blocks), before):
            now.clear(); now.update(old)
