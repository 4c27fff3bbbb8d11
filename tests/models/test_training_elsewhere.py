"Other people's loops: checkpointed activations beside a cache, a prefix that is kept, logits in training."
import pytest, torch
from transformers import Trainer, TrainingArguments
from helpers.small_models import small_model
from hybrid_nb.models.modeling import HybridForCausalLM
from hybrid_nb.training.optim import parameter_groups

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


def trained_elsewhere(model, tmp_path, **settings):
    "The losses of transformers' Trainer on the same four batches, with our groups of parameters."
    texts = torch.randint(1, 101, (16, 20), generator=torch.Generator().manual_seed(1))
    rows = [dict(input_ids=x, labels=x) for x in texts]
    args = TrainingArguments(str(tmp_path), max_steps=4, per_device_train_batch_size=4, logging_steps=1, report_to=[],
                             save_strategy="no", use_cpu=True, disable_tqdm=True, max_grad_norm=0., seed=0,
                             lr_scheduler_type="constant", **settings)
    class InOrder(Trainer):
        def _get_train_sampler(self, *_): return None
    adamw = torch.optim.AdamW(parameter_groups(model, .1), lr=1e-2)
    trainer = InOrder(model, args, train_dataset=rows, optimizers=(adamw, None))
    trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line], rows


@pytest.mark.parametrize("settings", [dict(), dict(gradient_checkpointing=True)], ids=str)
def test_the_trainer_of_transformers(tmp_path, settings):
    "Its losses are those of a plain loop; and `A` is not pulled towards zero."
    model, same = (small_model(LETTERS, dropout=0.) for _ in range(2))
    losses, rows = trained_elsewhere(model, tmp_path, **settings)
    adamw = torch.optim.AdamW(parameter_groups(same, .1), lr=1e-2)
    for k, loss in enumerate(losses):
        x = torch.stack([r["input_ids"] for r in rows[4*k:4*k+4]])
        want = same.train()(x, labels=x).loss
        assert abs(loss - want.item()) < 1e-3 * want.item()
        adamw.zero_grad(); want.backward(); adamw.step()
    spared = [n for n, p in same.named_parameters() if any(p is q for q in adamw.param_groups[1]["params"])]
    assert {"model.layers.0.mixer.A_log", "model.layers.3.mixer.A"} <= set(spared)


def test_what_must_stay_in_float32_does(tmp_path):
    "The bias of the step sizes of M too; whether its projection is called or not."
    small_model(LETTERS, dropout=0.).save_pretrained(tmp_path)
    m = HybridForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    kept = {n.rpartition("mixer.")[2] for n, p in m.named_parameters() if p.dtype == torch.float32}
    assert kept == {"A_log", "D", "dt_proj.bias", "dt_bias", "A"}
    m.model.layers[0].mixer.dt_proj.bias.data += 1e-3 # lost in bfloat16
    with torch.no_grad():
        want = m(IDS).logits
        m.model.layers[0].mixer.dt_proj.register_forward_hook(lambda *args: None)
        assert (m(IDS).logits - want).float().norm() < .02 * want.float().norm()
