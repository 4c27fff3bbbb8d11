"Tools built on transformers take our models: peft, TRL, the evaluation harness."
import copy, json, math
import pytest, torch
from hybrid_nb.data.tokenizers import train_bpe
from hybrid_nb.models.context_config import ContextConfig
from hybrid_nb.models.context_vector import ContextForCausalLM
from hybrid_nb.training.config import TrainConfig
from hybrid_nb.training.optim import decayed, make_optimizers
from helpers.small_models import small_model

pytestmark = pytest.mark.more
texts = [f"the {a} saw the {b} near the house." for a in "cat dog rat hen".split() for b in "one two red old".split()]


@pytest.fixture(scope="module")
def tok(): return train_bpe(texts * 5, 280)


@pytest.fixture(params=["hybrid", "context"])
def model(request, tok):
    torch.manual_seed(0)
    special = dict(vocab_size=len(tok), eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id)
    if request.param == "context":
        sizes = dict(embedding_size=16, context_dim=16, network_size=32, depth=1, dropout=0.)
        return ContextForCausalLM(ContextConfig(**sizes, **special))
    return small_model("MASGWLF", dropout=0., **special)


@pytest.mark.parametrize("model", ["hybrid"], indirect=True)
def test_peft_trains_low_rank_adapters(model, tok, tmp_path):
    "Only the adapters move; saved and loaded they give the same logits, and so do weights they are merged into."
    peft = pytest.importorskip("peft")
    bare, ids = copy.deepcopy(model), tok(texts[:4], return_tensors="pt", padding=True)["input_ids"]
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    opt = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(5):
        losses.append(tuned(input_ids=ids, labels=ids).loss)
        losses[-1].backward(); opt.step(); opt.zero_grad()
    assert losses[-1] < losses[0]
    tuned.eval().save_pretrained(tmp_path)
    with torch.no_grad():
        want = tuned(input_ids=ids).logits
        again = peft.PeftModel.from_pretrained(copy.deepcopy(bare), tmp_path).eval()(input_ids=ids).logits
        torch.testing.assert_close(again, want)
        torch.testing.assert_close(tuned.merge_and_unload()(input_ids=ids).logits, want, atol=1e-5, rtol=1e-4)
        assert not torch.allclose(bare.eval()(input_ids=ids).logits, want, atol=1e-3)


def settings(folder, **more):
    return dict(output_dir=str(folder), use_cpu=True, bf16=False, logging_steps=1, report_to="none", save_strategy="no",
                disable_tqdm=True, learning_rate=2e-3, per_device_train_batch_size=4) | more

def rows(make, *args): return pytest.importorskip("datasets").Dataset.from_list([make(*t) for t in zip(texts, *args)])

def recorded(trainer):
    "The trainer; its `calls` will be the batches of each step, with what their losses are divided by, and its losses."
    def compute_loss(model, inputs, return_outputs=False, num_items_in_batch=None):
        batch = {k: v.clone() if torch.is_tensor(v) else v for k, v in inputs.items()}
        out = plain(model, inputs, return_outputs, num_items_in_batch)
        trainer.calls.append((batch, num_items_in_batch, (out[0] if return_outputs else out).item()))
        return out
    plain, trainer.calls, trainer.compute_loss = trainer.compute_loss, [], compute_loss
    return trainer


WAYS = [dict(), dict(packing=True), dict(packing=True, packing_strategy="wrapped"),
        dict(padding_free=True, max_length=None), dict(gradient_accumulation_steps=2, gradient_checkpointing=False)]

@pytest.mark.parametrize("how", WAYS, ids=str)
def test_trl_tunes_a_model(model, tok, tmp_path, how):
    "Fifty steps: its losses are those of the model itself in a plain loop over the same batches, and the weights too."
    trl = pytest.importorskip("trl")
    same, parts = copy.deepcopy(model), how.get("gradient_accumulation_steps", 1)
    fixed = dict(lr_scheduler_type="constant", weight_decay=.1, adam_beta2=.95, dataset_text_field="text")
    args = trl.SFTConfig(**settings(tmp_path, max_steps=50, max_length=32) | fixed | how)
    data = rows(lambda t: dict(text=t))
    trainer = recorded(trl.SFTTrainer(model=model, args=args, train_dataset=data, processing_class=tok))
    trainer.train()
    pulled = {id(p) for g in trainer.optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    assert {n for n, p in model.named_parameters() if id(p) in pulled} == decayed(model)
    [adamw] = make_optimizers(same.train(), cfg := TrainConfig(learning_rate=2e-3, weight_decay=.1))
    losses = []
    for k, (batch, count, loss) in enumerate(trainer.calls, 1):
        ours = same(**batch, num_items_in_batch=count).loss
        assert abs(ours.item() - loss) < 1e-4 * ours.item()
        ours.backward()
        losses.append(loss)
        if k % parts: continue
        torch.nn.utils.clip_grad_norm_(same.parameters(), cfg.max_grad_norm)
        adamw.step(); adamw.zero_grad()
    assert len(losses) == 50 * parts and losses[-1] < losses[0] - .5 / parts
    for a, b in zip(model.parameters(), same.parameters()): assert (a - b).norm() < 1e-3 * b.norm()


def preference(trl, model, folder, tok):
    data = rows(lambda t, other: dict(prompt=t[:12], chosen=t[12:], rejected=other[12:]), texts[1:] + texts[:1])
    args = trl.DPOConfig(**settings(folder, max_steps=2))
    ref = copy.deepcopy(model)
    return trl.DPOTrainer(model=model, ref_model=ref, args=args, train_dataset=data, processing_class=tok)

def distillation(trl, model, folder, tok):
    teacher = copy.deepcopy(model)
    torch.manual_seed(1)
    for p in teacher.parameters(): p.data += .1 * torch.randn_like(p)
    args = trl.DistillationConfig(**settings(folder, max_steps=2, max_completion_length=8))
    return trl.DistillationTrainer(model=model, teacher_model=teacher, args=args, processing_class=tok,
                                   train_dataset=rows(lambda t: dict(prompt=t[:12])))

def policy(trl, model, folder, tok):
    args = trl.GRPOConfig(**settings(folder, max_steps=2, num_generations=2, max_completion_length=8))
    def reward(completions, **columns): return [sum(map(ord, c)) % 7. for c in completions]
    return trl.GRPOTrainer(model=model, reward_funcs=reward, args=args, processing_class=tok,
                           train_dataset=rows(lambda t: dict(prompt=t[:12])))

def adapters(trl, model, folder, tok):
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    args = trl.SFTConfig(**settings(folder, max_steps=2, max_length=32, dataset_text_field="text"))
    return trl.SFTTrainer(model=model, args=args, train_dataset=rows(lambda t: dict(text=t)), processing_class=tok,
                          peft_config=lora)

@pytest.mark.parametrize("make", [preference, distillation, policy, adapters])
def test_other_trainers_of_trl_take_a_step(model, tok, tmp_path, make):
    "Preferences, distillation, rewards, adapters: finite losses, and weights that move."
    trainer = make(pytest.importorskip("trl"), model, tmp_path, tok)
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert len(losses) == 2 and all(map(math.isfinite, losses))
    if make is preference: assert losses[1] < losses[0] == pytest.approx(math.log(2), abs=1e-5)
    if make is distillation: assert losses[0] > 0
    if make is adapters: assert all("lora_" in n for n in before)
    assert any(not torch.equal(p, before[n]) for n, p in trainer.model.named_parameters() if n in before)


def test_the_evaluation_harness_counts_the_same_bits(model, tok, tmp_path):
    "Rolling log-likelihood of whole texts, as in the chapter on checkpoints, against a sum made here."
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    (tmp_path/"texts.jsonl").write_text("".join(json.dumps(dict(text=t)) + "\n" for t in texts))
    (tmp_path/"bits.yaml").write_text(f"""task: bits
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path/"texts.jsonl"}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: bits_per_byte}}]
""")
    lm = HFLM(pretrained=model.eval(), tokenizer=tok, max_length=128, batch_size=4, device="cpu")
    tasks = TaskManager(include_path=str(tmp_path), include_defaults=False)
    told = lm_eval.simple_evaluate(lm, tasks=["bits"], task_manager=tasks, bootstrap_iters=0)
    nats = 0.
    for t in texts:
        ids = torch.tensor([[tok.eos_token_id, *tok(t)["input_ids"]]]) # the harness begins with the end-of-text token
        with torch.no_grad(): logits = model(ids).logits[0, :-1]
        nats += torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
    want = nats / math.log(2) / sum(len(t.encode()) for t in texts)
    assert abs(told["results"]["bits"]["bits_per_byte,none"] - want) < 1e-4
