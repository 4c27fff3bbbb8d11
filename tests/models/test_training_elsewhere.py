"Other people's loops: checkpointed activations beside a cache, a prefix that is kept, logits in training."
import contextlib, copy
from functools import partial
import pytest, torch
from transformers import Trainer, TrainingArguments
from helpers.small_models import small_model
from hybrid_nb.models.context_config import ContextConfig
from hybrid_nb.models.context_vector import ContextForCausalLM
from hybrid_nb.models.modeling import HybridForCausalLM
from hybrid_nb.training.config import TrainConfig
from hybrid_nb.training.optim import decayed, make_optimizers

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


def small_context(**settings):
    torch.manual_seed(0)
    sizes = dict(vocab_size=101, embedding_size=12, context_dim=16, hidden_size=24, depth=3, dropout=0.)
    return ContextForCausalLM(ContextConfig(**sizes | settings))

MODELS = dict(letters=lambda: small_model(LETTERS, dropout=0.), context=small_context,
              parts=lambda: small_context(context_blocks=[4, 12], reconstruction_weight=.5))


@pytest.mark.parametrize("settings", [dict(), dict(context_blocks=[4, 12]), dict(update="overwrite"),
                                      dict(loop="plain"), dict(reconstruction_weight=1.), dict(dropout=.3)], ids=str)
@pytest.mark.parametrize("reentrant", [True, False])
def test_a_context_vector_computes_stretches_of_tokens_again(settings, reentrant):
    m = small_context(**settings).train()
    def gradients(**how):
        torch.manual_seed(1); m.zero_grad()
        m(IDS, attention_mask=mask, labels=IDS, **how).loss.backward()
        return [p.grad.clone() for p in m.parameters()]
    mask = torch.ones_like(IDS); mask[1, :3] = 0
    if settings.get("dropout"): # the same stretches, kept
        m.model.gradient_checkpointing, m.model._gradient_checkpointing_func = True, lambda f, *args: f(*args)
    want, runs, run = gradients(), [], type(m.model).run
    m.gradient_checkpointing_enable(gradient_checkpointing_kwargs=dict(use_reentrant=reentrant))
    m.model.run = lambda *args: (runs.append(1), run(m.model, *args))[1]
    for a, b in zip(gradients(use_cache=True), want): torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert len(runs) == 10 # five stretches of up to five tokens, twice
    assert m(IDS, use_cache=True).past_key_values is None
    assert m.eval()(IDS, use_cache=True).past_key_values is not None


def undecayed(model, tmp_path):
    "Names of parameters that the optimiser of transformers' Trainer does not decay."
    args = TrainingArguments(str(tmp_path), report_to=[], use_cpu=True, weight_decay=.1)
    groups = Trainer(model, args).create_optimizer().param_groups
    taken = [id(p) for g in groups for p in g["params"]]
    assert sorted(taken) == sorted(map(id, model.parameters()))
    free = {id(p) for g in groups if g["weight_decay"] == 0 for p in g["params"]}
    return {n for n, p in model.named_parameters() if id(p) in free}


@pytest.mark.parametrize("norm", ["rmsnorm", "layernorm"])
@pytest.mark.parametrize("model", ["letters", "context", "parts"])
def test_trainers_spare_what_must_not_decay(tmp_path, model, norm):
    "In a new model, a copy, and one that was loaded; the same weights as our optimiser."
    m = MODELS[model]() if model != "letters" else small_model(LETTERS, norm=norm, attention_bias=True, use_bias=True)
    want = {n for n, p in m.named_parameters()} - decayed(m)
    assert want >= {n for n, p in m.named_parameters() if p.ndim < 2}
    if model == "letters": assert {f"model.layers.{n}.mixer.{k}" for n, k in ((0, "A_log"), (3, "A"))} <= want
    m.save_pretrained(tmp_path/"saved")
    loaded = type(m).from_pretrained(tmp_path/"saved")
    for each in m, copy.deepcopy(m), loaded, copy.deepcopy(loaded): assert undecayed(each, tmp_path) == want


def test_modules_of_others_are_asked_for_nothing(tmp_path):
    "Some have a `no_weight_decay` of another meaning, others none."
    class Others(torch.nn.Linear):
        def no_weight_decay(self): return {"weight"}
    m = torch.nn.Sequential(Others(2, 2), torch.nn.Linear(2, 2), torch.nn.LayerNorm(2))
    assert undecayed(m, tmp_path) == {"0.bias", "1.bias", "2.weight", "2.bias"}


class InOrder(Trainer):
    "transformers' Trainer, which takes rows in their order and keeps its losses as they are."
    def _get_train_sampler(self, *_): return None
    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        self.seen = [*getattr(self, "seen", []), loss.item()]
        return loss


def masked_rows(n, model="letters", length=20):
    "Rows that count on from somewhere in steps of 1 to 3; of each some tokens are no targets, now few, now many."
    g = torch.Generator().manual_seed(1)
    start, by = (torch.randint(1, k, (n, 1), generator=g) for k in (101, 4))
    texts = (start + by * torch.arange(length)) % 100 + 1
    hidden = torch.rand(n, length, generator=g) < torch.rand(n, 1, generator=g) * .9
    if model == "parts": hidden[:] = hidden[0] # the reconstruction loss is a mean over tokens, not over targets
    return [dict(input_ids=x, labels=y) for x, y in zip(texts, texts.masked_fill(hidden, -100))]


def in_a_plain_loop(model, rows, steps, batch=4, precision=contextlib.nullcontext, **settings):
    "Losses with the optimiser of our trainer."
    cfg = TrainConfig(learning_rate=2e-3, weight_decay=.1, **settings)
    [adamw], losses = make_optimizers(model.train(), cfg), []
    for k in range(steps):
        x, y = (torch.stack([r[name] for r in rows[batch*k:batch*(k + 1)]]) for name in ("input_ids", "labels"))
        with precision(): loss = model(x, labels=y).loss
        adamw.zero_grad(); loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.max_grad_norm)
        adamw.step()
        losses.append(loss.item())
    return losses


def trained_elsewhere(model, rows, folder, steps, accumulate=1, **settings):
    "Losses of transformers' Trainer on four rows a step."
    args = TrainingArguments(str(folder), max_steps=steps, per_device_train_batch_size=4 // accumulate, report_to=[],
                             gradient_accumulation_steps=accumulate, save_strategy="no", use_cpu=True,
                             disable_tqdm=True, learning_rate=2e-3, adam_beta2=.95, weight_decay=.1,
                             lr_scheduler_type="constant", **settings)
    trainer = InOrder(model, args, train_dataset=rows)
    trainer.train()
    return [sum(trainer.seen[i:i + accumulate]) for i in range(0, len(trainer.seen), accumulate)]


WAYS = [dict(), dict(accumulate=4), dict(gradient_checkpointing=True), dict(bf16=True),
        dict(accumulate=2, fused_loss=True)]

@pytest.mark.parametrize("model, settings", [*(("letters", w) for w in WAYS), *(("context", w) for w in WAYS[2:]),
                                             *(("parts", w) for w in WAYS[:2])], ids=str)
def test_the_trainer_of_transformers(tmp_path, model, settings):
    "Fifty steps of it, with an optimiser of its own, and fifty of ours: the same losses, in micro-batches too."
    rows, theirs, ours = masked_rows(200, model), MODELS[model](), MODELS[model]()
    precision = partial(torch.autocast, "cpu", torch.bfloat16) if "bf16" in settings else contextlib.nullcontext
    theirs.config.fused_loss = settings.get("fused_loss", False)
    got = trained_elsewhere(theirs, rows, tmp_path, 50, **{k: v for k, v in settings.items() if k != "fused_loss"})
    want = in_a_plain_loop(ours, rows, 50, precision=precision)
    assert len(got) == 50 and want[-1] < want[0]
    torch.testing.assert_close(got, want, rtol=1e-4, atol=0)
    for a, b in zip(theirs.parameters(), ours.parameters()): assert (a - b).norm() < 1e-3 * b.norm()


@pytest.mark.parametrize("model", ["letters", "context", "parts"])
def test_the_trainer_of_transformers_evaluates(tmp_path, model):
    "The mean loss over targets, and logits alone as predictions."
    m, rows = MODELS[model](), masked_rows(8)
    args = TrainingArguments(str(tmp_path), report_to=[], use_cpu=True, disable_tqdm=True, per_device_eval_batch_size=8)
    seen = []
    trainer = Trainer(m, args, eval_dataset=rows, compute_metrics=lambda found: seen.append(found) or {})
    x, y = (torch.stack([r[name] for r in rows]) for name in ("input_ids", "labels"))
    with torch.no_grad(): want = m.eval()(x, labels=y)
    assert abs(trainer.evaluate()["eval_loss"] - want.loss.item()) < 1e-5
    [found] = seen
    torch.testing.assert_close(torch.as_tensor(found.predictions), want.logits)
    assert (torch.as_tensor(found.label_ids) == y).all()


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
