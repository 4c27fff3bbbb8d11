"Small models that were trained for a few seconds, and files that are damaged, for tests and examples."
import contextlib, io, json
from pathlib import Path
from hybrid_nb.data.corpora import DataConfig, resolve_corpus
from hybrid_nb.data.dialogs import Dialogs
from hybrid_nb.data.examples import demo_rows
from hybrid_nb.training.runner import train_run

TINY = dict(corpus="stories", max_documents=200, vocab_size=400, hidden_size=32, num_attention_heads=2, length=32,
            batch_size=4, learning_rate=3e-3, steps=30, eval_every=10, checkpoint_every=10, eval_batches=2,
            recall_documents=0, device="cpu", progress=False)
TALKER = dict(hidden_size=64, num_attention_heads=2, state_size=4, dropout=0., vocab_size=512, eval_every=40,
              eval_batches=2, recall_documents=0, log_every=20, save_best=False, threads=1, progress=False)


def two_tiny_runs(runs, **settings) -> Path: # the folder of studies
    "The study `demo` of the patterns AM and AF: 30 steps, a checkpoint every ten."
    for pattern in "AM", "AF": train_run(pattern, study="demo", runs=runs, **TINY | settings)
    return Path(runs)


def two_talkers(folder) -> Path: # the folder of studies
    "A model that continues stories (study `tales`) and one that was tuned on toy dialogs (study `dialogs`)."
    folder = Path(folder)
    chats = folder/"chat.jsonl"
    chats.write_text("".join(json.dumps(r) + "\n" for r in demo_rows()))
    with contextlib.redirect_stdout(io.StringIO()):
        train_run("MAM", runs=folder/"runs", study="tales", name="tale", max_documents=2000, length=128, batch_size=8,
                  steps=240, checkpoint_every=120, learning_rate=8e-3, **TALKER)
        train_run("AM", runs=folder/"runs", study="dialogs", name="tuned", corpus=str(chats), dialog=True, length=96,
                  batch_size=12, steps=250, checkpoint_every=0, learning_rate=4e-3, **TALKER)
    return folder/"runs"


def flip_bit(path, at=-1):
    "Change one bit of the file, in the byte at `at`."
    data = bytearray(Path(path).read_bytes())
    data[at] ^= 1
    Path(path).write_bytes(data)


def taught_dialogs(folder) -> list[dict]: # with instruction and response
    "The dialogs that the tuned model of `two_talkers(folder)` was taught, word for word."
    corpus = resolve_corpus(DataConfig(corpus=str(Path(folder)/"chat.jsonl"), dialog=True))
    return [d for d in Dialogs(corpus) if not d["val"]]


@contextlib.contextmanager
def count_fed(gen):
    "Collect the number of tokens of each call of a Generator's model."
    fed = []
    def note(model, args, kwargs): fed.append(kwargs["input_ids"].shape[1])
    hook = gen.model.register_forward_pre_hook(note, with_kwargs=True)
    try: yield fed
    finally: hook.remove()
