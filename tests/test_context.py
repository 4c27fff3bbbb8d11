"The context-vector model where it meets other parts: the trainer, `torch.compile`, other processes, the benchmark."
import json, subprocess, sys
from pathlib import Path
import pytest, torch
from transformers import AutoModelForCausalLM
from hybrid_nb.context import ContextConfig, ContextForCausalLM
from hybrid_nb.data import DataConfig
from hybrid_nb.train import Objective, split_knobs, train, train_run, TrainConfig

small = dict(embedding_size=16, context_dim=24, hidden_size=32, depth=2)
options = dict(corpus="world", max_documents=60, vocab_size=300, length=24, steps=8, batch_size=20, eval_every=4, eval_batches=2, checkpoint_every=4, log_every=2, learning_rate=3e-3, warmup_steps=0,
               recall_documents=0, device="cpu", progress=False)


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
    for a, b in zip(gradients(compiled, objective, x, y), gradients(objective, objective, x, y)): torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


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
    data = DataConfig(corpus="world", max_documents=60, vocab_size=300, length=24, cache_dir=str(tmp_path/"cache"))
    config = lambda: ContextConfig(dropout=0.1, **small)
    options = TrainConfig(steps=8, batch_size=20, eval_every=4, eval_batches=2, checkpoint_every=4, log_every=2, learning_rate=3e-3, recall_documents=4, device="cpu")
    whole = train(config(), data, options, tmp_path/"a", progress=False)

    class Stop(Exception): pass
    def stop(trainer):
        if trainer.state.step == 5: raise Stop
    with pytest.raises(Stop): train(config(), data, options, tmp_path/"b", progress=False, on_step=stop)
    parts = train(config(), data, options, tmp_path/"b", progress=False)
    assert parts["final_val_loss"] == whole["final_val_loss"] and whole["parameters"] > 0
    a, b = (AutoModelForCausalLM.from_pretrained(tmp_path/run/"checkpoints"/"step_00000008").state_dict() for run in "ab")
    assert all(torch.equal(a[k], b[k]) for k in a)
    losses = [json.loads(line) for line in (tmp_path/"a"/"metrics.jsonl").read_text().splitlines()]
    assert losses[-1]["train_loss"] < losses[0]["train_loss"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    "A trained model with 24 numbers of context: the folder of its checkpoint, and the loss it ended with."
    folder = tmp_path_factory.mktemp("start")
    summary = train_run(family="context", runs=folder, name="old", cache_dir=str(folder/"cache"), embedding_size=16, context_dim=24, network_size=32, depth=2, **options)
    return folder/"default"/"old"/"checkpoints"/"step_00000008", summary

def grow(checkpoint, on_step=None, name="grown", **kw):
    "Grow it to 40 by a run; its folder and its summary."
    runs = checkpoint.parents[3]
    knobs = options | dict(start=str(checkpoint), expand_context=40, cache_dir=str(runs/"cache")) | kw
    knobs.pop("progress")
    return runs/"default"/name, train(*split_knobs(**knobs), runs/"default"/name, progress=False, on_step=on_step)

def weights(folder): return AutoModelForCausalLM.from_pretrained(folder).state_dict()

def test_growing_changes_no_output(checkpoint):
    "A run that grows a model and takes steps of no size ends with the loss it began with."
    folder, old = checkpoint
    run, summary = grow(folder, name="still", learning_rate=1e-30)
    assert summary["final_val_loss"] == pytest.approx(old["final_val_loss"], abs=1e-6) and summary["parameters_trained"] == summary["parameters"] > old["parameters"]
    saved = weights(run/"checkpoints"/"step_00000008")
    assert saved["model.blocks.1.write.weight"].abs().max() > .1 # what is added writes from the start, and is not read yet
    assert json.loads((run/"config.json").read_text())["model"]["context_blocks"] == [24, 16]

def test_only_what_is_new_is_trained(checkpoint):
    "With AdamW and a strong decay all else is bit for bit as it was, also in a run that stopped on the way and was continued; and without the setting it is not."
    folder, old = checkpoint
    class Stop(Exception): pass
    def stop(trainer):
        if trainer.state.step == 5: raise Stop
    new = dict(train_new_only=True, weight_decay=.5)
    run, summary = grow(folder, **new)
    with pytest.raises(Stop): grow(folder, stop, name="stopped", **new)
    stopped, _ = grow(folder, name="stopped", **new)
    before, after, again = weights(folder), weights(run/"checkpoints"/"step_00000008"), weights(stopped/"checkpoints"/"step_00000008")
    assert all(torch.equal(after[k], again[k]) for k in after) and all(torch.equal(after[k], before[k]) for k in before)
    added = {k for k in after if k.startswith("model.blocks.1.")}
    assert added == set(after) - set(before) and summary["parameters_trained"] == sum(after[k].numel() for k in added) == summary["parameters"] - old["parameters"]
    early = weights(run/"checkpoints"/"step_00000004")
    assert not any(torch.equal(after[k], early[k]) for k in added) and summary["final_val_loss"] != old["final_val_loss"]
    run, _ = grow(folder, name="all", weight_decay=.5)
    assert not any(torch.equal(v, before[k]) for k, v in weights(run/"checkpoints"/"step_00000008").items() if k in before)

def test_growing_refuses(checkpoint, tmp_path):
    "In a line, before anything is read."
    from hybrid_nb.model import HybridConfig, HybridForCausalLM
    folder, _ = checkpoint
    HybridForCausalLM(HybridConfig(pattern="A", hidden_size=32, num_attention_heads=2, vocab_size=300)).save_pretrained(tmp_path/"hybrid")
    for says, kw in [("expand_context 24: must be above 24", dict(expand_context=24)), ("expand_context 16: must be above 24", dict(expand_context=16)), ("expand_context 32.5: must be int", dict(expand_context=32.5)),
                     ("expand_context 40: goes with start", dict(start=None)), ("train_new_only True: goes with expand_context", dict(expand_context=None, train_new_only=True)),
                     ("train_new_only 'yes': must be bool", dict(train_new_only="yes")), ("is of the family 'hybrid', which has no context vector", dict(start=str(tmp_path/"hybrid"))),
                     ("context_dim 40: the checkpoint that the run starts from has 24", dict(context_dim=40)), ("family 'hybrid': the checkpoint", dict(family="hybrid"))]:
        with pytest.raises(ValueError, match=".*") as e: split_knobs(**options_of(folder) | kw)
        assert says in str(e.value) and "\n" not in str(e.value), e.value
    model, data, _ = split_knobs(**options_of(folder) | dict(expand_context=None)) # made for a model that is not grown
    with pytest.raises(ValueError, match="expand_context 40: the model's configuration was made with another"): train(model, data, TrainConfig(start=str(folder), expand_context=40), tmp_path/"run")
    assert not (tmp_path/"run").exists()

def options_of(folder): return {k: v for k, v in options.items() if k != "progress"} | dict(start=str(folder), expand_context=40)


def test_another_process_draws_the_same_masks():
    "Seed in, the same dropout out, whatever the number of threads."
    code = """
import sys, torch
from hybrid_nb.context import ContextConfig, ContextForCausalLM
before, losses = torch.get_num_threads(), []
for n in threads:
    torch.set_num_threads(n); torch.manual_seed(0)
    m = ContextForCausalLM(ContextConfig(vocab_size=60, dropout=0.5, embedding_size=16, context_dim=24, hidden_size=32, depth=2)).train()
    x = torch.randint(60, (70, 6)); torch.manual_seed(1)
    losses.append(m(x, labels=x).loss.item())
torch.set_num_threads(before)
print(losses)"""
    exec(code, here := dict(threads=(1, 2, 3)))
    there = subprocess.run([sys.executable, "-c", f"threads = 1, 2\n{code}"], capture_output=True, text=True, check=True).stdout
    assert json.loads(there) + here["losses"] == pytest.approx([here["losses"][0]] * 5, abs=1e-5)


def test_benchmark_runs(monkeypatch):
    "The script's numbers are all there; what they are is the machine's affair."
    import runpy
    compare = runpy.run_path(str(Path(__file__).parents[1]/"reports"/"benchmarks"/"context.py"))["compare"]
    monkeypatch.setitem(compare.__globals__, "LENGTH", 2)
    assert compare(2, 1, False)["times_faster"].keys() == {"equations", "plain"}
