"Other people's loops: checkpointed activations beside a cache, a prefix that is kept, logits in training."
import pytest, torch
from helpers.small_models import small_model

LETTERS = "MASGWLF"
IDS = torch.randint(1, 101, (2, 24), generator=torch.Generator().manual_seed(0))


def gradients(m, **how):
    m.zero_grad()
    m(IDS, labels=IDS, **how).loss.backward()
    return {n: p.grad.clone() for n, p in m.named_parameters()}


@pytest.mark.parametrize("letter", LETTERS)
@pytest.mark.parametrize("how", [dict(), dict(use_cache=True), dict(use_cache=False)], ids=str)
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_activations_give_the_same_gradients(letter, how, reentrant):
    m = small_model(letter * 2, dropout=0.).train()
    want = gradients(m)
    m.gradient_checkpointing_enable(gradient_checkpointing_kwargs=dict(use_reentrant=reentrant))
    if reentrant: m.enable_input_require_grads()
    got = gradients(m, **how)
    for n in want: torch.testing.assert_close(got[n], want[n], rtol=1e-4, atol=1e-6)
    assert m(IDS, use_cache=True).past_key_values is None
    with torch.no_grad(): kept = m.eval()(IDS[:, :5]).past_key_values
    assert kept is not None # elsewhere a cache is kept as ever
    with pytest.raises(ValueError, match="past_key_values: holds tokens"): m.train()(IDS[:, 5:], past_key_values=kept)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("letter", LETTERS)
def test_a_prefix_in_the_cache_and_a_backward_pass_through_the_rest(letter, learned):
    "Gradients are those of the whole text, with those of the prefix or without."
    m = small_model(letter * 2, dropout=0.).train()
    weights = list(m.parameters())
    whole = m(IDS, use_cache=False).logits[:, 9:]
    want = torch.autograd.grad(whole.square().sum(), weights, retain_graph=True) if learned else None
    with torch.set_grad_enabled(learned): cache = m(IDS[:, :9], use_cache=True).past_key_values
    rest = m(IDS[:, 9:], past_key_values=cache, use_cache=True).logits
    torch.testing.assert_close(rest, whole, rtol=1e-4, atol=1e-5)
    got = torch.autograd.grad(rest.square().sum(), weights, allow_unused=True)
    if learned:
        for a, b in zip(got, want): torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    else: assert all(g is None or g.isfinite().all() for g in got)


@pytest.mark.parametrize("letter", LETTERS)
def test_logits_are_there_in_training_unless_the_loss_alone_is_asked_for(letter):
    m = small_model(letter * 2, dropout=0.).train()
    out = m(IDS, labels=IDS)
    assert out.logits.shape == (*IDS.shape, 101)
    want = torch.nn.functional.cross_entropy(out.logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
    torch.testing.assert_close(out.loss, want)
    m.config.fused_loss = True
    fused = m(IDS, labels=IDS)
    assert fused.logits is None
    torch.testing.assert_close(fused.loss, want)
