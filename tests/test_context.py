"The context-vector model where it meets other parts: the trainer, `torch.compile`, other processes, the benchmark."
import json, subprocess, sys
from pathlib import Path
import pytest, torch
from transformers import AutoModelForCausalLM
from hybrid_nb.context import ContextConfig, ContextForCausalLM, expand_context
from hybrid_nb.data import DataConfig
from hybrid_nb.train import Objective, TrainConfig, train

small = dict(embedding_size=16, context_dim=24, hidden_size=32, depth=2)


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


def test_old_weights_stay_through_the_trainers_optimiser():
    "A grown model, only its new part trained, by the trainer's AdamW with decay: all else is bit for bit the same."
    from hybrid_nb.train import make_optimizers
    torch.manual_seed(0)
    model = expand_context(ContextForCausalLM(ContextConfig(vocab_size=60, **small)).train(), 40)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    [optimizer] = make_optimizers(model, TrainConfig(weight_decay=0.5, learning_rate=1e-2))
    x = torch.randint(60, (4, 10))
    for _ in range(3):
        optimizer.zero_grad()
        model(x, labels=x).loss.backward()
        optimizer.step()
    moved = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == {k for k in before if k.startswith("model.blocks.1.")}


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
