"Folders that cannot be loaded, each refused with one line; pickles, which are never opened unasked."
import ast, json, os, shutil
from pathlib import Path
import pandas as pd, pytest, torch
from transformers import AutoTokenizer, BertConfig, BertModel
from helpers.console import run_console
from hybrid_nb.core.files import read_json
from hybrid_nb.models.modeling import HybridForCausalLM
from hybrid_nb.use.checkpoints import best_checkpoint, find_checkpoints
from hybrid_nb.use.loading import load_checkpoint

root = Path(__file__).parents[2]


@pytest.fixture
def best(tiny_runs): return best_checkpoint(tiny_runs)


@pytest.fixture
def copy(best, tmp_path):
    "A copy of the best checkpoint without its checksums; files are removed or replaced."
    def copy(without="checksums.json", **files): # content as bytes, by name with _ for the last .
        to = tmp_path/"copy"
        shutil.copytree(best, to)
        for name in without.split(): (to/name).unlink()
        for name, content in files.items(): (to/".".join(name.rsplit("_", 1))).write_bytes(content)
        return to
    return copy


def refused(folder, message, **kw):
    with pytest.raises(ValueError) as e: load_checkpoint(folder, **kw)
    assert message in str(e.value) and "\n" not in str(e.value), e.value


def test_what_is_no_checkpoint(best, tiny_runs, tmp_path):
    refused("no/such", "checkpoint 'no/such': no such folder")
    refused(best/"config.json", "not a folder")
    refused(tiny_runs, "a run or a study, not a checkpoint")
    refused(tmp_path, "no config.json in it")


def test_damaged_files(copy, best):
    weights = (best/"model.safetensors").read_bytes()
    refused(copy(model_safetensors=weights[:-9]), "model.safetensors: truncated")


@pytest.mark.parametrize("content, message", [
    (b"\xff\xfe", "config.json: 'utf-8' codec can't decode"), (b"[]", "config.json names no model_type"),
    (b"{", "config.json: Expecting")])
def test_a_damaged_configuration(copy, content, message): refused(copy(config_json=content), message)


@pytest.mark.parametrize("change, message", [
    (dict(model_type="gone", auto_map={}),
     "a model of type 'gone', which transformers does not know, with code of its own that is not run here"),
    (dict(hidden_size=33), "num_attention_heads"), (dict(hidden_size=64), "in another shape"),
    (dict(pattern="FMM"), "its weights lack"), (dict(pattern="A"), "its weights hold besides"),
    (dict(pattern="AQ"), "no mixer is registered for Q; run the code that registers it first")])
def test_a_configuration_that_does_not_fit(copy, best, change, message):
    config = read_json(best/"config.json")
    refused(copy(config_json=json.dumps(config | change).encode()), message)


def test_a_configuration_that_was_changed_after_its_checksum(copy, best):
    config = read_json(best/"config.json") | dict(dropout=.5)
    refused(copy(without="", config_json=json.dumps(config).encode()), "config.json is not what was written")


@pytest.mark.parametrize("content, message", [
    (b'{"a": "\xe9"}', "tokenizer.json: 'utf-8' codec can't decode"), (b"{}", "checkpoint")])
def test_a_damaged_tokenizer(copy, content, message): refused(copy(tokenizer_json=content), message)


def test_no_tokenizer(copy): refused(copy(without="checksums.json tokenizer.json"), "no tokenizer.json in it")


def test_another_models_tokenizer(copy, best):
    tok = json.loads((best/"tokenizer.json").read_text())
    tok["added_tokens"].append(tok["added_tokens"][0] | dict(id=400, content="<|extra|>"))
    message = "its tokenizer has 401 tokens, its model 400: they do not belong together"
    refused(copy(tokenizer_json=json.dumps(tok).encode()), message)


def test_a_model_that_is_no_language_model(tmp_path):
    sizes = dict(vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    BertModel(BertConfig(**sizes)).save_pretrained(tmp_path/"bert")
    refused(tmp_path/"bert", "checkpoint")


class Payload:
    "Makes a folder when it is unpickled."
    def __init__(self, path): self.path = str(path)
    def __reduce__(self): return os.mkdir, (self.path,)


def test_a_pickle_is_not_opened(copy, tmp_path):
    trap = copy(without="checksums.json model.safetensors")
    torch.save({"lm_head.weight": Payload(tmp_path/"harm")}, trap/"pytorch_model.bin")
    row = find_checkpoints(trap).iloc[0]
    assert (row.foreign, row.intact, row.parameters is pd.NA) == (True, True, True)
    refused(trap, "its weights are a pickle (pytorch_model.bin), a form that can carry a program; "
                  "if you trust whoever made it, pass allow_pickle=True")
    refused(trap, "checkpoint", allow_pickle=True)
    assert not (tmp_path/"harm").exists()
    torch.load(trap/"pytorch_model.bin", weights_only=False)
    assert (tmp_path/"harm").exists() # it does harm where it is opened


def test_a_pickle_beside_safetensors_is_not_opened(copy, tmp_path):
    beside = copy()
    torch.save({"lm_head.weight": Payload(tmp_path/"harm")}, beside/"pytorch_model.bin")
    load_checkpoint(beside)
    assert not (tmp_path/"harm").exists()


def test_a_pickle_of_weights_with_permission(copy, best):
    model = load_checkpoint(best)[0]
    kind = copy(without="checksums.json model.safetensors")
    torch.save(model.state_dict(), kind/"pytorch_model.bin")
    ids = torch.arange(1, 9)[None]
    with torch.no_grad(): assert torch.equal(load_checkpoint(kind, allow_pickle=True)[0](ids).logits, model(ids).logits)
    shutil.copy(best/"model.safetensors", kind/"decoy.safetensors")
    refused(kind, "checkpoint") # a pickle is not read because something else is none


def test_hybrid_import_refuses_what_is_no_other_programs_model(best, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    code, _, err = run_console(capfd, "hybrid_nb.use.loading", "hybrid_import", best, "out")
    assert code == 2 and "a model of type 'hybrid_nb', which is no pattern" in err
    assert not (tmp_path/"out").exists()


COMMANDS = dict(
    audit=("hybrid_nb.use.commands", "hybrid_audit", "FOLDER"),
    convert=("hybrid_nb.use.loading", "hybrid_import", "FOLDER", "converted"),
    chat=("hybrid_nb.use.chat", "hybrid_chat", "FOLDER", "--prompt", "a", "--tokens", "2"),
    probe=("hybrid_nb.study.task_runs", "hybrid_probe", "--checkpoint", "FOLDER"),
    init_from=("hybrid_nb.training.cli", "hybrid_train", "--init_from", "FOLDER", "--max_documents", "40"),
    start=("hybrid_nb.training.cli", "hybrid_train", "--start", "FOLDER", "--max_documents", "40"),
    tokenizer=("hybrid_nb.training.cli", "hybrid_train", "--tokenizer", "FOLDER", "--max_documents", "40"))
CLASSES = """
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
class Config(PreTrainedConfig): model_type = "own"
class Model(PreTrainedModel): config_class = Config
class Own(PreTrainedTokenizerFast): pass
"""


@pytest.fixture
def trap(copy, best, tmp_path, monkeypatch):
    "A copy whose configuration or tokenizer names code that lies beside it; nobody may ask whether to run that."
    def asked(*_): pytest.fail("a question")
    monkeypatch.setattr("builtins.input", asked)
    monkeypatch.setenv("HYBRID_NB_CACHE", str(tmp_path/"cache"))
    monkeypatch.chdir(tmp_path)
    def trap(config=None, tokenizer=None):
        code = f"open({str(tmp_path/'harm')!r}, 'a').write(__name__)\n{CLASSES}"
        files = dict(config_json=config or {}, tokenizer_config_json=tokenizer or {})
        for name, more in files.items():
            old = read_json(best/".".join(name.rsplit("_", 1)))
            files[name] = json.dumps({k: v for k, v in (old | more).items() if v is not None}).encode()
        return copy(own_py=code.encode(), **files)
    return trap


own_model = dict(auto_map=dict(AutoConfig="own.Config", AutoModel="own.Model", AutoModelForCausalLM="own.Model"))
own_tokenizer = dict(tokenizer_class="Own", auto_map=dict(AutoTokenizer=["own.Own", "own.Own"]))
not_run, unknown = "code of its own, which is not run here", "which transformers does not know, with code of its own"


@pytest.mark.parametrize("command, config, tokenizer, message", [
    *((c, {}, own_tokenizer, not_run) for c in ("chat", "probe", "init_from", "start", "tokenizer")),
    *((c, own_tokenizer, {}, "copy': ") for c in ("chat", "init_from", "tokenizer")), # in config.json, as it once was
    ("tokenizer", own_model | dict(model_type=None), own_tokenizer, not_run),
    *((c, own_model | dict(model_type="own"), own_tokenizer, unknown) for c in ("audit", "convert", "chat")),
    *((c, own_model | dict(model_type="own"), own_tokenizer, "a model of type 'own' (accepted: hybrid_nb,")
      for c in ("probe", "init_from", "start"))])
def test_code_that_lies_in_the_folder_is_not_run(trap, tmp_path, capfd, command, config, tokenizer, message):
    "No command runs it or asks; each answers with one line."
    folder, (module, name, *words) = trap(config, tokenizer), COMMANDS[command]
    if config is own_tokenizer: # transformers reads it only where the tokenizer says nothing
        (folder/"tokenizer_config.json").unlink()
    code, out, error = run_console(capfd, module, name, *(str(folder) if w == "FOLDER" else w for w in words))
    error = [l for l in error.splitlines() if not l.startswith("warning: ")]
    assert code == 2 and message in error[0] and len(error) == 1, (code, out, error)
    assert not (tmp_path/"harm").exists()


def test_our_model_with_foreign_code_beside_it(trap, tmp_path):
    "Ours by its type: this package's code is used, not what the folder names."
    model, tokenizer = load_checkpoint(trap(own_model))
    assert type(model) is HybridForCausalLM and len(tokenizer) and not (tmp_path/"harm").exists()


def test_the_trap_works(trap, tmp_path):
    "The code would run where it is trusted."
    AutoTokenizer.from_pretrained(trap(tokenizer=own_tokenizer), trust_remote_code=True)
    assert (tmp_path/"harm").exists()


def test_everything_is_loaded_without_trust():
    "Every call of `from_pretrained` in the package says so."
    for path in (root/"hybrid_nb").rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call) or not ast.unparse(call.func).endswith(".from_pretrained"): continue
            given = {k.arg: ast.unparse(k.value) for k in call.keywords}
            assert given.get("trust_remote_code") == "False" or None in given, f"{path}: {ast.unparse(call)}"
