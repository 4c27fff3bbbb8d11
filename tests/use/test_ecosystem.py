"Tools built on transformers take our models: peft, TRL, the evaluation harness."
import copy, json, math
import pytest, torch
from hybrid_nb.data.tokenizers import train_bpe
from hybrid_nb.models.config import HybridConfig
from hybrid_nb.models.context_config import ContextConfig
from hybrid_nb.models.context_vector import ContextForCausalLM
from hybrid_nb.models.modeling import HybridForCausalLM

pytestmark = pytest.mark.more
texts = [f"the {a} saw the {b} near the house." for a in "cat dog rat hen".split() for b in "one two red old".split()]


@pytest.fixture(scope="module")
def tok(): return train_bpe(texts * 5, 280)


@pytest.fixture(params=["hybrid", "context"])
def model(request, tok):
    torch.manual_seed(0)
    special = dict(vocab_size=len(tok), eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id)
    if request.param == "context":
        sizes = dict(embedding_size=16, context_dim=16, network_size=32, depth=1)
        return ContextForCausalLM(ContextConfig(**sizes, **special))
    sizes = dict(hidden_size=32, num_attention_heads=2, state_size=4, ssd_head_dim=16, dropout=0.)
    return HybridForCausalLM(HybridConfig(pattern="AMSF", **sizes, **special))


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


def test_trl_tunes_a_model(model, tok, tmp_path):
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    before = copy.deepcopy(model.state_dict())
    args = trl.SFTConfig(
        output_dir=str(tmp_path), max_steps=6, per_device_train_batch_size=8, learning_rate=1e-2, max_length=32,
        dataset_text_field="text", use_cpu=True, bf16=False, logging_steps=1, report_to="none", save_strategy="no",
        gradient_checkpointing=False) # the context vector has none
    data = datasets.Dataset.from_list([dict(text=t) for t in texts])
    trainer = trl.SFTTrainer(model=model, args=args, train_dataset=data, processing_class=tok)
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert len(losses) == 6 and losses[-1] < losses[0]
    assert any(not torch.equal(v, before[k]) for k, v in model.state_dict().items())


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
