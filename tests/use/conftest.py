"Trained models that the tests of this chapter share."
import pytest
from helpers.trained import taught_dialogs, two_talkers, two_tiny_runs
from hybrid_nb.use.generation import Generator


@pytest.fixture(scope="session")
def talkers(tmp_path_factory):
    "A folder with the studies `runs/tales` and `runs/dialogs`, and `chat.jsonl`, which the second was tuned on."
    folder = tmp_path_factory.mktemp("talkers")
    with pytest.MonkeyPatch.context() as mp:
        mp.setenv("HYBRID_NB_CACHE", str(folder/"cache"))
        two_talkers(folder)
    return folder


@pytest.fixture
def tale(talkers):
    "A model that continues stories."
    return Generator(talkers/"runs/tales", step=240)


@pytest.fixture
def tuned(talkers):
    "A model that was tuned on dialogs."
    return Generator(talkers/"runs/dialogs")


@pytest.fixture(scope="session")
def taught(talkers):
    "What the second was taught, word for word."
    return taught_dialogs(talkers)


@pytest.fixture(scope="session")
def tiny_runs(tmp_path_factory):
    "The study `demo` of AM and AF with three checkpoints each; not to be changed."
    folder = tmp_path_factory.mktemp("tiny")
    return two_tiny_runs(folder/"runs", cache_dir=str(folder/"cache"))
