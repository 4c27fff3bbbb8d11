"Leaks in places that are easily overlooked, and checks that leave no trace."
from copy import deepcopy
import pytest, torch
from helpers.small_models import letters_restored, small_model
from hybrid_nb.audit.causality import check_cached_mode, random_tokens
from hybrid_nb.audit.checks import undisturbed
from hybrid_nb.audit.every_cut import check_causality, plain_reader
from hybrid_nb.audit.reach import check_recurrence
from hybrid_nb.models.modeling import HybridForCausalLM
from hybrid_nb.models.registry import register


@pytest.fixture(scope="module", autouse=True)
def time_norm():
    "The letter Y: a batch normalisation, with statistics over batch and time in training, running ones in evaluation."
    with letters_restored():
        @register("Y", "normalised over time", cache=None)
        class TimeNorm(torch.nn.Module):
            def __init__(self, c, layer_idx=None):
                super().__init__()
                self.norm = torch.nn.BatchNorm1d(c.hidden_size)

            def forward(self, x, **context): return self.norm(x.transpose(1, 2)).transpose(1, 2)
        yield


def result_of(model, check, *args):
    with undisturbed(model): return check(model, random_tokens(model, 48), *args)


def causality(model, training):
    with undisturbed(model): return check_causality(model, plain_reader(model, 48), training, 10**5)


def test_a_normalisation_over_time_leaks_in_training_only():
    assert [causality(small_model("AYF"), t)[0] for t in (True, False)] == ["fail", "pass"]
    assert "leaking: block 1 (Y normalised over time)" in causality(small_model("AYF"), True)[1]


def test_a_leak_outside_the_blocks():
    class EndOfText(HybridForCausalLM):
        "A model that looks at the last token outside its blocks."
        def forward(self, input_ids=None, **kw):
            out = super().forward(input_ids, **kw)
            if input_ids is not None: out.logits = out.logits + input_ids[:, -1:, None] / 100
            return out
    torch.manual_seed(0)
    verdict, evidence = causality(EndOfText(small_model("AF").config), False)
    assert verdict == "fail" and "it is outside the blocks" in evidence


def test_checks_disturb_nothing():
    model = small_model("AYM").train()
    before = deepcopy(model.state_dict())
    torch.manual_seed(5); want = torch.rand(3); torch.manual_seed(5)
    for training in True, False: causality(model, training)
    assert torch.equal(torch.rand(3), want)
    for k, v in model.state_dict().items(): assert torch.equal(v, before[k]), k
    assert model.training and all(p.grad is None for p in model.parameters())
    assert not any(b._forward_pre_hooks for b in model.model.layers)


def test_a_letter_of_the_users_own():
    "It promises no reach; without a cache it cannot be checked with one."
    assert result_of(small_model("AY"), check_recurrence)[0] == "pass"
    assert result_of(small_model("AY"), check_cached_mode)[0] == "not checked"
