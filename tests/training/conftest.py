"What several tests of training share: a folder for the command, small runs of `train`, and processes."
import json, shutil, tempfile
from pathlib import Path
import pytest, torch
from helpers.lab import Forks, lab_in, write_corpus
from hybrid_nb.core.runs import list_checkpoints
from hybrid_nb.data.loading import load_data
from hybrid_nb.training.runner import train
from hybrid_nb.training.settings import split_settings


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "A folder with a small corpus, the script, and a cache of its own; the working directory meanwhile."
    folder = tmp_path_factory.mktemp("lab")
    write_corpus(folder/"corpus.jsonl")
    with lab_in(folder): yield folder


@pytest.fixture(scope="module")
def forks(lab):
    server = Forks()
    yield server
    server.close()


@pytest.fixture(scope="session")
def small_cache(tmp_path_factory):
    "The token cache of the runs below."
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def settings(small_cache):
    "Those of a run of 60 steps on stories: a checkpoint every 20, an evaluation every 10."
    threads = torch.get_num_threads()
    yield dict(hidden_size=64, num_attention_heads=2, max_documents=400, vocab_size=512, length=128, steps=60,
               batch_size=8, learning_rate=4e-3, eval_every=10, eval_batches=8, log_every=2, checkpoint_every=20,
               save_best=False, recall_documents=40, threads=1, cache_dir=small_cache)
    torch.set_num_threads(threads)


@pytest.fixture
def configs(settings):
    "Model, data and training configuration of that run, of the pattern AMAM."
    return split_settings(pattern="AMAM", **settings)


@pytest.fixture
def calm(tmp_path_factory, configs):
    "A copy of the folder of the undisturbed run."
    run = tmp_path_factory.getbasetemp()/"calm"/"AMAM-s0" # made once in a session
    train(*configs, run, progress=False)
    return Path(shutil.copytree(run, tempfile.mkdtemp(dir=run.parent)+"/calm"))


@pytest.fixture
def summary(calm):
    "The summary of the undisturbed run."
    return json.loads((calm/"summary.json").read_text())


@pytest.fixture
def data(settings):
    "The data of these runs."
    return load_data(split_settings(pattern="A", **settings)[1], progress=False)


@pytest.fixture
def outcome(settings, data, tmp_path):
    "A function: summary, step numbers of the checkpoints and folder of a run of 12 steps of one attention block."
    def outcome(**more):
        short = dict(pattern="A", steps=12, eval_every=4, checkpoint_every=4, recall_documents=0)
        run = Path(tempfile.mkdtemp(dir=tmp_path))/"run"
        summary = train(*split_settings(**settings | short | more), run, progress=False, data=data)
        return summary, [int(p.name[5:]) for p in list_checkpoints(run)], run
    return outcome
