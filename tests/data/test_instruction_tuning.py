"Tuning on dialogs: from a checkpoint of either family, by command, in several processes, continued, in Japanese."
import json, runpy, shutil, sys, warnings
from pathlib import Path
import numpy as np, pytest, torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from hybrid_nb.core.files import read_json
from hybrid_nb.core.runs import list_checkpoints
from hybrid_nb.data.chat_template import conversation, render_chat, TEMPLATE, user_turn
from hybrid_nb.data.corpora import DataConfig, resolve_corpus
from hybrid_nb.data.dialogs import Dialogs
from hybrid_nb.data.examples import demo_rows, read_example
from hybrid_nb.data.loading import load_data
from hybrid_nb.training.runner import train_run
from hybrid_nb.use.generation import CharacterStreamer, generate_answer
from helpers.lab import Forks, lab_in

FAMILIES = dict(hybrid=dict(pattern="AM", hidden_size=64, num_attention_heads=2, state_size=4),
                context=dict(family="context", depth=2, context_dim=64, embedding_size=32, network_size=64))
TINY = dict(length=96, vocab_size=512, batch_size=12, learning_rate=4e-3, eval_every=20, eval_batches=0, log_every=5,
            recall_documents=0, checkpoint_every=0, threads=1, dropout=0.)
TUNING = {k: v for k, v in TINY.items() if k != "vocab_size"} | dict(corpus="chat.jsonl", dialog=True, progress=False)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "A folder with the toy corpus as a file, and a checkpoint of each family, trained on something else."
    folder = tmp_path_factory.mktemp("lab")
    def write(name, rows):
        (folder/name).write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    write("chat.jsonl", demo_rows())
    write("text.jsonl", [dict(text=f"{user_turn(r)} {r['response']} " * 3) for r in map(read_example, demo_rows())])
    with lab_in(folder):
        for name, model in FAMILIES.items():
            settings = TINY | model | dict(steps=20, length=32)
            train_run(name=name, study="base", corpus="text.jsonl", progress=False, **settings)
        yield folder


@pytest.fixture(scope="module")
def forks(lab):
    server = Forks()
    yield server
    server.close()

def base(family): return str(list_checkpoints(Path("runs")/"base"/family)[-1])
def metrics(run):
    rows = map(json.loads, (run/"metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in row.items() if k not in ("time", "tokens_per_second")} for row in rows]
def flags(**kw):
    given = TINY | dict(quiet=True) | kw
    return [x for k, v in given.items() for x in ([f"--{k}"] if v is True else [f"--{k}", str(v)])]


def command(capsys, **kw):
    "The command in this process: exit code and what it wrote to standard error."
    with pytest.MonkeyPatch.context() as mp:
        mp.setattr(sys, "argv", ["hybrid_train", *flags(**kw)])
        try: runpy.run_path("hybrid_train", run_name="__main__"); code = 0
        except SystemExit as e: code = e.code
    return code, capsys.readouterr().err


def gives_back(model, tok, d):
    "Does the model answer as it was taught, in whole characters?"
    pieces = []
    streamer = CharacterStreamer(tok, lambda t, end: pieces.append(t))
    assert generate_answer(model, tok, d["instruction"], d["context"], 60, streamer) == d["response"]
    assert "".join(pieces) == d["response"] and not any("\ufffd" in p for p in pieces)
    assert len([p for p in pieces if p]) > 1


@pytest.mark.parametrize("family, steps, learned", [("hybrid", 250, True), ("context", 20, False)])
def test_tuned_from_a_checkpoint(lab, family, steps, learned):
    "The checkpoint says which model it is; its tokenizer stays; a hybrid one gives the answers it was taught."
    warnings.simplefilter("ignore")
    s = train_run(name=f"tuned-{family}", init_from=base(family), **TUNING | dict(steps=steps))
    run = Path("runs")/"default"/f"tuned-{family}"
    config, before = read_json(run/"config.json"), read_json(Path("runs")/"base"/family/"config.json")
    assert config["model"] == before["model"] and config["data"]["tokenizer"] == base(family)
    assert s["train_loss"] < .7 * metrics(run)[0]["train_loss"]
    tok = AutoTokenizer.from_pretrained(list_checkpoints(run)[-1])
    assert tok.chat_template == TEMPLATE
    assert tok.get_vocab() == AutoTokenizer.from_pretrained(base(family)).get_vocab()
    if not learned: return
    model = AutoModelForCausalLM.from_pretrained(list_checkpoints(run)[-1]).eval()
    corpus = resolve_corpus(DataConfig(corpus="chat.jsonl", dialog=True))
    taught = [d for d in Dialogs(corpus) if not d["val"]]
    for part in "capital", "首都", "colour", "何色":
        gives_back(model, tok, next(d for d in taught if part in d["instruction"]))


@pytest.mark.parametrize("family", FAMILIES)
def test_begins_with_the_weights(lab, family):
    "At a rate of nearly nothing, the weights are still those of the checkpoint."
    warnings.simplefilter("ignore")
    still = TUNING | dict(steps=1, learning_rate=1e-9, warmup_steps=0)
    train_run(name=f"still-{family}", init_from=base(family), **still)
    folders = base(family), list_checkpoints(Path("runs")/"default"/f"still-{family}")[-1]
    a, b = (load_file(Path(f)/"model.safetensors") for f in folders)
    assert a.keys() == b.keys() and all(torch.allclose(a[k], b[k], atol=1e-6) for k in a)


def test_training_renders_as_the_template_does(lab):
    "What a run has on disk for training is, token by token, what the tokenizer in its checkpoint renders."
    cfg = DataConfig(corpus="chat.jsonl", dialog=True, length=200, tokenizer=base("hybrid"))
    data = load_data(cfg, progress=False)
    tok = AutoTokenizer.from_pretrained(base("hybrid")); tok.chat_template = TEMPLATE
    rows = [read_example(r) for r in demo_rows()]
    for side in data.train, data.val:
        for i, row in enumerate(side.records["row"]):
            ids, n = side[i]
            user, response = user_turn(rows[row]), rows[row]["response"]
            assert ids.tolist() == tok.apply_chat_template(conversation(user, response), return_dict=False)
            assert ids[:n].tolist() == render_chat(tok, user) and tok.decode(ids[n:]) == response + tok.eos_token
    assert data.train.n_documents + data.val.n_documents == 40


def same_run(want, got):
    "The same losses, targets, metrics and sums by document."
    assert len(metrics(got)) == len(metrics(want)) == 8
    for a, b in zip(metrics(want), metrics(got)):
        assert a.keys() == b.keys() and a["tokens"] == b["tokens"]
        assert all(a[k] == pytest.approx(b[k], rel=2e-5) for k in a), (a, b)
    a, b = (read_json(r/"summary.json") for r in (want, got))
    names = "final_val_loss", "val_accuracy", "bits_per_byte", "tokens_seen"
    assert all(a[k] == pytest.approx(b[k], rel=1e-5) for k in names)
    a, b = (dict(np.load(r/"val_windows.npz")) for r in (want, got))
    assert all((a[k] == b[k]).all() for k in ("window", "document", "first", "tokens"))
    assert np.allclose(a["nats"], b["nats"], rtol=1e-3) and a["nats"].min() > 0


@pytest.mark.parametrize("name, n, extra", [("two", 2, {}), ("four", 4, dict(gradient_accumulation_steps=2))])
def test_many_processes(lab, forks, capsys, name, n, extra):
    """The same run on 1, 2 and 4 processes: batches, targets and losses.

    What several began from a checkpoint since deleted, one continues."""
    kept = Path(shutil.copytree(base("hybrid"), lab/f"start-{name}"))
    settings = dict(corpus="chat.jsonl", dialog=True, init_from=f"start-{name}", steps=8, batch_size=8, log_every=1,
                    eval_every=4, checkpoint_every=4, vocab_size=2048)
    assert command(capsys, **settings, name=f"alone-{name}") == (0, "now: hybrid_report runs/default\n")
    for r in forks.ranks(n, "hybrid_train", *flags(**settings | extra, name=name)): assert r.returncode == 0, r.stderr
    want, got = (Path("runs")/"default"/k for k in (f"alone-{name}", name))
    same_run(want, got)
    shutil.rmtree(kept)
    (got/"summary.json").unlink()
    shutil.rmtree(got/"checkpoints"/"step_00000008")
    assert command(capsys, **settings | extra, name=name)[0] == 0
    same_run(want, got)


@pytest.mark.parametrize("kw, message", [
    (dict(init_from="nowhere"), "init_from 'nowhere': no such folder"),
    (dict(init_from="runs"), "init_from 'runs': not a checkpoint"),
    (dict(init_from="runs/base/hybrid"), "a run, not a checkpoint (its newest is runs/base/hybrid/checkpoints/step_"),
    (dict(init_from="BASE", hidden_size=32),
     "hidden_size 32: the checkpoint that the run starts from has 64; leave it out"),
    (dict(init_from="BASE", family="context"), "family 'context': the checkpoint"),
    (dict(init_from="BASE", depth=3), "depth 3: not a setting of the family 'hybrid'"),
    (dict(corpus="bad.jsonl"), "bad.jsonl, line 2: not valid JSON"),
    (dict(corpus="empty.jsonl"), "empty.jsonl, line 3: field 'response' is empty"),
    (dict(eval_lengths="2"), "eval_lengths '2': the examples of a dialog corpus"),
    (dict(on_bad_line="pass"), "on_bad_line 'pass': must be stop or skip"),
    (dict(length=9), "length: a window leaves")])
def test_bad_arguments(lab, capsys, kw, message):
    good = [json.dumps(r) for r in demo_rows()]
    (lab/"bad.jsonl").write_text("\n".join([good[0], good[1][:20], *good[2:]]))
    (lab/"empty.jsonl").write_text("\n".join([*good[:2], json.dumps(demo_rows()[2] | dict(response="")), *good[3:]]))
    if kw.get("init_from") == "BASE": kw = kw | dict(init_from=base("hybrid"))
    code, error = command(capsys, **dict(corpus="chat.jsonl", dialog=True, name="bad", steps=2, vocab_size=2048) | kw)
    assert code == 2 and "Traceback" not in error
    assert len([l for l in error.splitlines() if not l.startswith("warning:")]) == 1 and message in error, error


def test_bad_lines_are_left_out(lab):
    (lab/"some.jsonl").write_text((lab/"chat.jsonl").read_text() + '{"instruction": "cut\n')
    small = dict(steps=2, hidden_size=32, num_attention_heads=2)
    settings = TINY | small | dict(corpus="some.jsonl", dialog=True, on_bad_line="skip")
    with pytest.warns(UserWarning, match="1 bad row left out, the first: .*some.jsonl, line 41: not valid JSON"):
        s = train_run("A", name="skips", progress=False, **settings)
    assert read_json(Path("runs")/"default"/"skips"/"config.json")["corpus"]["skipped"] == 1 and s["steps"] == 2


@pytest.mark.parametrize("start", [None, "hybrid", "context"])
def test_recipe_in_small(lab, start):
    """Without a network: the toy corpus, a fresh model or that of the checkpoint.

    (The Japanese recipe has the same settings in small: test_recipes.py.)"""
    warnings.simplefilter("ignore")
    given = dict(init_from=base(start)) if start else {}
    s = train_run(recipe="dialog/dolly", debug=True, name=f"{start}", progress=False, threads=1, **given)
    config = read_json(Path("runs")/"dialog-debug"/f"{start}"/"config.json")
    kind = "hybrid_nb_context" if start == "context" else "hybrid_nb"
    assert config["data"]["corpus"] == "chat-demo" and s["steps"] == 12 and config["model"]["model_type"] == kind
