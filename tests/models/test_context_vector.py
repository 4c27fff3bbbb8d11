"The context-vector model, and where it meets the trainer, `torch.compile`, other processes and the benchmark."
import json, runpy, subprocess, sys
from pathlib import Path
import pytest, torch, torch.nn.functional as F
from transformers import AutoModel, AutoModelForCausalLM
from hybrid_nb.models.context_config import ContextConfig
from hybrid_nb.models.context_vector import ContextForCausalLM
from hybrid_nb.data.corpora import DataConfig
from hybrid_nb.training.objective import Objective
from hybrid_nb.training.runner import train
from hybrid_nb.training.config import TrainConfig

small = dict(embedding_size=16, context_dim=24, hidden_size=32, depth=2)
# random weights that do not just repeat a token
LIVELY = dict(vocab_size=50, embedding_size=12, context_dim=16, hidden_size=24, depth=2, dropout=0.,
              initializer_range=.5)
KINDS = [dict(), dict(update="overwrite"), dict(context_blocks=[4, 12])]


def lively(seed=0, **settings):
    torch.manual_seed(seed)
    return ContextForCausalLM(ContextConfig(**LIVELY | settings)).eval()

def random_ids(): return torch.randint(1, 50, (3, 21), generator=torch.Generator().manual_seed(1))

def left_padded(ids, n=5): return dict(input_ids=F.pad(ids, (n, 0)), attention_mask=F.pad(torch.ones_like(ids), (n, 0)))

def close(a, b, eps): torch.testing.assert_close(a, b, atol=eps, rtol=0)


@pytest.mark.parametrize("settings", [*KINDS, dict(reconstruction_weight=1.)], ids=str)
def test_both_loops_give_the_model_the_same_gradients(settings):
    m, ids, grads = lively(**settings).double().train(), random_ids(), []
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    for m.config.loop in "plain", "fast":
        m.zero_grad()
        out = m(ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100))
        out.loss.backward()
        grads.append([out.loss.detach(), *(p.grad.clone() for p in m.parameters())])
    for a, b in zip(*grads): close(a, b, 1e-6 if a.ndim == 0 else 1e-7) # the loss is taken in float32


@pytest.mark.parametrize("settings", [*KINDS, dict(reconstruction_weight=1.)], ids=str)
def test_causal(settings):
    "Position 9 sees 0 to 9, and nothing later."
    m = lively(**settings)
    x = m.model.embed_tokens(random_ids()).detach().requires_grad_()
    reach = torch.autograd.grad(m(inputs_embeds=x).logits[:, 9].square().sum(), x)[0].abs().sum((0, 2))
    assert (reach[:10] > 0).all() and (reach[10:] == 0).all()


@torch.no_grad()
def test_the_context_is_handed_on():
    "From window to window, and in a cache, several tokens at a time."
    m, ids = lively(), random_ids()
    full, first = m(ids), m(ids[:, :8])
    close(m(ids[:, 8:], context=first.context).logits, full.logits[:, 8:], 1e-5)
    cache, at = None, 0
    for n in 11, 1, 2, 7:
        out = m(ids[:, at:at+n], past_key_values=cache, use_cache=True)
        close(out.logits, full.logits[:, at:at+n], 1e-5)
        cache, at = out.past_key_values, at + n
    assert cache.get_seq_length() == 21 and cache.context.shape == (3, 16)
    cache.reset()
    assert cache.get_seq_length() == 0


@torch.no_grad()
def test_padding_changes_nothing():
    m, ids = lively(), random_ids()
    full, padded = m(ids), left_padded(ids)
    close(m(**padded).logits[:, 5:], full.logits, 1e-5)
    assert not torch.equal(m(padded["input_ids"]).logits[:, 5:], full.logits)
    right = m(F.pad(ids, (0, 4)), attention_mask=F.pad(torch.ones_like(ids), (0, 4)))
    close(right.context, full.context, 1e-6)
    close(right.logits[:, :21], full.logits, 1e-5)


@torch.no_grad()
@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_cached_generation_is_uncached_generation(settings):
    "Greedy, with beams, with padding, and from a cache that was kept."
    m, ids = lively(15, **settings), random_ids() # a seed whose texts are not one token again and again
    def generate(ids=None, **kw): return m.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0, **kw)
    got, want, padded = generate(ids), ids, left_padded(ids)
    assert len(got[0, 21:].unique()) > 2
    for _ in range(12): want = torch.cat([want, m(want).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(got, want) and torch.equal(got, generate(ids, use_cache=False))
    beams = generate(ids, num_beams=3)
    assert torch.equal(beams, generate(ids, num_beams=3, use_cache=False))
    assert torch.equal(generate(**padded)[:, 26:], got[:, 21:])
    assert torch.equal(generate(**padded, num_beams=3)[:, 26:], beams[:, 21:])
    kept = m(ids[:, :15], use_cache=True).past_key_values
    assert torch.equal(generate(ids, past_key_values=kept), got)
    torch.manual_seed(3)
    draft = ContextForCausalLM(ContextConfig(**LIVELY)).eval()
    alone = generate(ids[:1])
    assert torch.equal(generate(ids[:1], assistant_model=draft), alone)
    assert torch.equal(generate(ids[:1], prompt_lookup_num_tokens=3), alone)


@torch.no_grad()
@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_a_saved_model_is_the_same_model(tmp_path, settings):
    m, ids = lively(**settings), random_ids()
    m.save_pretrained(tmp_path)
    for load in ContextForCausalLM, AutoModelForCausalLM:
        back = load.from_pretrained(tmp_path).eval()
        assert type(back) is ContextForCausalLM and torch.equal(back(ids).logits, m(ids).logits)
        assert back.config.context_blocks == m.config.context_blocks
    hidden = AutoModel.from_pretrained(tmp_path)(ids).last_hidden_state
    assert torch.equal(hidden, m.model(ids).last_hidden_state)


def test_autocast_and_half_precision():
    "The fast loop is no further from float32 than autocast makes the plain one; contexts and losses stay float32."
    ids = random_ids()
    def gradients(seed, loop, enabled=True):
        m = lively(seed, initializer_range=.02, loop=loop).train()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled): out = m(ids, labels=ids)
        out.loss.backward()
        assert out.context.dtype == out.loss.dtype == torch.float32
        return [out.loss.detach(), *(p.grad for p in m.parameters())]
    ways = dict(exact=("fast", False), fast=("fast",), plain=("plain",))
    found = [[gradients(seed, *way) for seed in range(8)] for way in ways.values()] # the error of one seed is chance
    exact, fast, plain = ([torch.stack(g) for g in zip(*way)] for way in found)
    for e, f, p in zip(exact, fast, plain):
        assert (f - e).norm() < 2*(p - e).norm() + 0.01*e.norm() and f.dtype == torch.float32
    assert max(((f - e).norm() / e.norm()).item() for e, f in zip(exact, fast)) > 1e-4 # it was bf16
    low = lively(initializer_range=.02).bfloat16().train()
    low(ids, labels=ids).loss.backward()
    assert low.model.fnn[1].weight.grad.isfinite().all()
    close(low.eval()(ids).logits.float(), low.float()(ids).logits, .1)


@pytest.mark.parametrize("what, width", [("both", 28), ("token", 12)])
def test_the_reconstruction_loss(what, width):
    "A mean over all numbers of all tokens that are not padding, added to the loss by its weight."
    m, ids = lively(reconstruction=what, reconstruction_weight=0.5), random_ids()
    assert m.model.blocks[0].decode.weight.shape == (width, 16)
    with torch.no_grad(): out, x = m(ids, labels=ids), m.model.embed_tokens(ids)
    before = torch.cat([torch.zeros(3, 1, 16), out.contexts[:, :-1]], 1)
    target = torch.cat([x, before], -1) if what == "both" else x
    by_hand = (m.model.blocks[0].decode(out.contexts) - target).square().mean().item()
    assert abs(out.reconstruction_loss.item() - by_hand) < 1e-5
    tokens = F.cross_entropy(out.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    close(out.loss - 0.5*out.reconstruction_loss, tokens, 1e-5)
    assert abs(m(**left_padded(ids)).reconstruction_loss.item() - by_hand) < 1e-5
    with pytest.raises(ValueError, match="reconstruction_weight 0.5: this training code takes no loss but"):
        m.train().model(ids)


def gradients(f, module, *args):
    module.zero_grad()
    loss = f(*args)[0]
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in module.parameters())]


@pytest.mark.parametrize("update", ["gated", "overwrite"])
def test_compiles_without_graph_breaks(update):
    "`loop='auto'` gives torch.compile the plain loop; loss and gradients are those of the fast one."
    torch.manual_seed(0)
    objective = Objective(ContextForCausalLM(ContextConfig(vocab_size=60, update=update, dropout=0., **small)).train())
    x, y = torch.randint(60, (2, 3, 6))
    compiled = torch.compile(objective, fullgraph=True, backend="aot_eager")
    ours, theirs = gradients(compiled, objective, x, y), gradients(objective, objective, x, y)
    for a, b in zip(ours, theirs): torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_objective_of_the_trainer_is_the_models_loss():
    "The trainer multiplies hidden states with the head's matrix; the head's bias is in it."
    torch.manual_seed(0)
    model = ContextForCausalLM(ContextConfig(vocab_size=60, dropout=0., **small)).train()
    with torch.no_grad(): model.lm_head.weight[:, -1].normal_()
    x, y = torch.randint(60, (2, 3, 6))
    y[0, :4] = -100
    theirs = gradients(Objective(model), model, x, y, (y >= 0).sum())
    ours = gradients(lambda: [model(x, shift_labels=y).loss], model)
    for a, b in zip(theirs, ours): torch.testing.assert_close(a, b)


def test_trains_resumes_and_loads(tmp_path):
    "A whole run by `train`, stopped on the way and continued: the same weights as a run in one go."
    data = DataConfig(corpus="stories", max_documents=60, vocab_size=300, length=24, cache_dir=str(tmp_path/"cache"))
    def config(): return ContextConfig(dropout=0.1, **small)
    options = TrainConfig(steps=8, batch_size=20, eval_every=4, eval_batches=2, checkpoint_every=4, log_every=2,
                          learning_rate=3e-3, recall_documents=4, device="cpu")
    whole = train(config(), data, options, tmp_path/"a", progress=False)

    class Stop(Exception): pass
    def stop(trainer):
        if trainer.state.step == 5: raise Stop
    with pytest.raises(Stop): train(config(), data, options, tmp_path/"b", progress=False, on_step=stop)
    parts = train(config(), data, options, tmp_path/"b", progress=False)
    assert parts["final_val_loss"] == whole["final_val_loss"] and whole["parameters"] > 0
    folders = (tmp_path/run/"checkpoints"/"step_00000008" for run in "ab")
    a, b = (AutoModelForCausalLM.from_pretrained(f).state_dict() for f in folders)
    assert all(torch.equal(a[k], b[k]) for k in a)
    losses = [json.loads(line) for line in (tmp_path/"a"/"metrics.jsonl").read_text().splitlines()]
    assert losses[-1]["train_loss"] < losses[0]["train_loss"]


def test_trains_with_checkpointed_activations(tmp_path):
    "By our trainer: to the same loss."
    data = DataConfig(corpus="stories", max_documents=60, vocab_size=300, length=24, cache_dir=str(tmp_path/"cache"))
    def loss(folder, **settings):
        options = TrainConfig(steps=4, batch_size=20, eval_every=4, eval_batches=2, recall_documents=0, device="cpu",
                              learning_rate=3e-3, **settings)
        m = ContextConfig(dropout=0., **small)
        return train(m, data, options, tmp_path/folder, progress=False)["final_val_loss"]
    assert abs(loss("a") - loss("b", activation_checkpointing=True)) < 1e-5


def test_another_process_draws_the_same_masks():
    "Seed in, the same dropout out, whatever the number of threads."
    code = """
import sys, torch
from hybrid_nb.models.context_config import ContextConfig
from hybrid_nb.models.context_vector import ContextForCausalLM
sizes = dict(vocab_size=60, dropout=0.5, embedding_size=16, context_dim=24, hidden_size=32, depth=2)
before, losses = torch.get_num_threads(), []
for n in threads:
    torch.set_num_threads(n); torch.manual_seed(0)
    m = ContextForCausalLM(ContextConfig(**sizes)).train()
    x = torch.randint(60, (70, 6)); torch.manual_seed(1)
    losses.append(m(x, labels=x).loss.item())
torch.set_num_threads(before)
print(losses)"""
    exec(code, here := dict(threads=(1, 2, 3)))
    script = f"threads = 1, 2\n{code}"
    there = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert json.loads(there) + here["losses"] == pytest.approx([here["losses"][0]] * 5, abs=1e-5)


def test_benchmark_runs(monkeypatch):
    "The script's numbers are all there; what they are is the machine's affair."
    compare = runpy.run_path(str(Path(__file__).parents[2]/"reports"/"benchmarks"/"context.py"))["compare"]
    monkeypatch.setitem(compare.__globals__, "LENGTH", 2)
    assert compare(2, 1, False)["times_faster"].keys() == {"equations", "plain"}
