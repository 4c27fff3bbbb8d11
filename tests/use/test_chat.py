"hybrid_chat at a terminal: lines, keys, signals; in a pipe; with prompts and bad arguments; checkpoints with code."
import contextlib, io, json, os, pty, re, select, shutil, signal, sys, time
from dataclasses import asdict, replace
from pathlib import Path
from unittest import mock
import pytest, torch
from helpers.small_models import small_writer
from hybrid_nb.core.commands import run_script
from hybrid_nb.data.tokenizers import train_bpe
from hybrid_nb.use.chat import hybrid_chat, read_prompts
from hybrid_nb.use.conversation import Chat, default_sampling
from hybrid_nb.use.generation import Generator
from hybrid_nb.use.slash_commands import respond

# what the installed console script does
SCRIPT = "import sys\nfrom hybrid_nb.use.chat import hybrid_chat\nsys.exit(hybrid_chat())\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "A checkpoint with random weights, and the script."
    folder = tmp_path_factory.mktemp("chat")
    tok = train_bpe(["the old man and the sea were there when the door was red"] * 20, 300)
    model = small_writer("MA", tok, num_attention_heads=2)
    model.get_input_embeddings().weight.data[tok.eos_token_id] = 0 # no answer ends by itself: others are likelier
    model.save_pretrained(folder/"model"); tok.save_pretrained(folder/"model")
    (folder/"hybrid_chat").write_text(SCRIPT)
    return folder


class Terminal:
    "The command at a pseudo-terminal of its own; waits for text, never for time."
    def __init__(self, folder, *args):
        root = str(Path(__file__).parents[2])
        env = os.environ | dict(
            XDG_STATE_HOME=str(folder/"state"), PROMPT_TOOLKIT_NO_CPR="1", TERM="xterm", NO_COLOR="1", COLUMNS="100",
            LINES="40", OMP_NUM_THREADS="1", PYTHONPATH=os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]))
        self.pid, self.fd = pty.fork()
        if not self.pid:
            os.chdir(folder)
            os.execve(sys.executable, [sys.executable, "hybrid_chat", *map(str, args)], env)
        self.seen, self.at = "", 0

    def send(self, text): os.write(self.fd, text.encode())

    def wait(self, pattern, seconds=60):
        "The next `pattern` in what is written."
        end = time.time() + seconds
        while not (found := re.compile(pattern).search(text := self.text(), self.at)):
            assert time.time() < end, f"waited in vain for {pattern!r} in {text[self.at:]!r}"
            if not select.select([self.fd], [], [], 1)[0]: continue
            try: new = os.read(self.fd, 2**16)
            except OSError: new = b"" # the other side is closed
            assert new, f"ended before {pattern!r} in {text[self.at:]!r}"
            self.seen += new.decode(errors="replace")
        self.at = found.end()

    def text(self): return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.seen)

    def type(self, line, *patterns):
        "Send a line, wait for each pattern in turn and for the next prompt."
        self.send(line)
        for p in patterns: self.wait(p)
        self.wait("\n>")

    def end(self):
        "The exit code; reads what is still written."
        while True:
            try:
                if not os.read(self.fd, 2**16): break
            except OSError: break
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def kill(self):
        try: os.kill(self.pid, signal.SIGKILL); os.waitpid(self.pid, 0)
        except (ProcessLookupError, ChildProcessError): pass


@pytest.fixture(scope="module")
def session(folder):
    """At a terminal: an answer, two errors, a stopped answer, an earlier line by the arrow, several pasted lines,
    a saved conversation, and the end."""
    t = Terminal(folder, "model", "--tokens", 6, "--seed", 1)
    try:
        t.wait(r"/help lists the commands"); t.wait("\n>")
        t.type("the old man\r", r"6 tokens \(as many as allowed\)[^\n]*seed 1")
        t.type("/temp hot\r", "temperature 'hot': must be a number")
        t.type("/tokens 1000000\r", "max_new_tokens 1000000")
        t.send("the sea\r"); t.wait("(?s)sea.{300}"); t.type("\x03", r"\d+ tokens \(stopped\)")
        t.type("/tokens 5\r", "max_new_tokens 5")
        t.send("\x1b[A\x1b[A"); t.wait("the sea"); t.type("\r", r"5 tokens \(as many")
        t.type("\x1b[200~the door\nwas red\x1b[201~\r", r"5 tokens")
        t.type("/save talk.json\r", "saved to talk.json, the state to talk.state.safetensors")
        t.type("\x03", "Ctrl-C once more"); t.send("/quit\r")
        assert t.end() == 0
    finally: t.kill()
    return json.loads((folder/"talk.json").read_text())


def test_a_session_at_a_terminal(session):
    assert [x["user"] for x in session["turns"]] == ["the old man", "the sea", "the sea", "the door\nwas red"]
    assert [x["finish"] for x in session["turns"]] == ["length", "interrupted", "length", "length"]
    assert session["turns"][1]["tokens"] < 1000000


def test_another_process_resumes_without_reading_it(session, folder):
    chat, fed = Chat(Generator(folder/"model")), []
    assert "read again" not in chat.resume(folder/"talk.json")
    def note(m, args, kw): fed.append(kw["input_ids"].shape[1])
    chat.gen.model.register_forward_pre_hook(note, with_kwargs=True)
    "".join(respond(chat, "when"))
    assert sum(fed) == 1 + len(chat.turns[-1].added) + 4 and len(chat.tokens) > 30


@pytest.mark.parametrize("options", [{}, dict(allow_pickle=True)], ids=str)
def test_no_code_runs_from_a_checkpoint(folder, tmp_path, options):
    "A pickle is refused in one line, also with the flag; the conversation goes on."
    shutil.copytree(folder/"model", tmp_path/"trap")
    (tmp_path/"trap"/"model.safetensors").unlink()

    class Payload:
        def __reduce__(self): return os.mkdir, (str(tmp_path/"harm"),)
    torch.save({"lm_head.weight": Payload()}, tmp_path/"trap"/"pytorch_model.bin")
    chat = Chat(Generator(folder/"model"), default_sampling, **options)
    "".join(respond(chat, "the sea"))
    with pytest.raises(ValueError) as e: respond(chat, f"/load {tmp_path/'trap'}")
    assert "\n" not in str(e.value) and len(chat.turns) == 1
    assert "".join(respond(chat, "/tokens 3")) == "max_new_tokens 3"
    "".join(respond(chat, "was"))
    assert not (tmp_path/"harm").exists() and len(chat.turns) == 2


def command(*argv, stdin=b""):
    "The command as from a shell without a terminal: exit code, standard output and error."
    class In(io.TextIOWrapper): pass
    with (contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err,
          mock.patch.object(sys, "argv", ["hybrid_chat", *map(str, argv)]),
          mock.patch.object(sys, "stdin", In(io.BytesIO(stdin)))):
        try: run_script(hybrid_chat.__wrapped__); code = 0
        except SystemExit as e: code = e.code
    return code, out.getvalue(), err.getvalue()


FLAGS = "--seed", 2, "--tokens", 9


@pytest.fixture
def tales(talkers): return talkers/"runs/tales"


@pytest.fixture
def want(tales):
    "The answer to the prompt of most tests below."
    return str(Generator(tales).generate("The door was", **asdict(replace(default_sampling, seed=2, max_new_tokens=9))))


def prompts_of(out): return [json.loads(line)["prompt"] for line in out.splitlines()]


def test_a_prompt(tales, want): assert command(tales, "--prompt", "The door was", *FLAGS) == (0, want + "\n", "")


def test_prompts_and_json(tales, want):
    code, out, _ = command(tales, "--json", *FLAGS, "--prompts", "The door was", "A red box was on the table and")
    rows = [json.loads(l) for l in out.splitlines()]
    assert code == 0 and len(rows) == 2 and rows[0]["text"] == want
    assert list(rows[0]) == "prompt text tokens seconds finish seed checkpoint".split()
    assert (rows[0]["tokens"], rows[0]["finish"], rows[0]["seed"]) == (9, "length", 2)


def test_files_of_prompts(tales, tmp_path):
    (tmp_path/"p.txt").write_text("The door was\n\nA red box\n")
    (tmp_path/"p.jsonl").write_text('"The door\\nwas"\n{"prompt": "日本"}\n')
    for name, prompts in {"p.txt": ["The door was", "A red box"], "p.jsonl": ["The door\nwas", "日本"]}.items():
        assert prompts_of(command(tales, "--json", "--prompts-file", tmp_path/name, *FLAGS)[1]) == prompts


def test_a_step(tales):
    assert json.loads(command(tales, "--json", "--step", 120, "--prompt", "A", *FLAGS)[1])["checkpoint"][-3:] == "120"


@pytest.mark.parametrize("draft", ["3", "itself"])
def test_a_draft_changes_nothing_but_the_speed(tales, want, draft):
    draft = tales if draft == "itself" else draft
    assert command(tales, "--prompt", "The door was", "--draft", draft, *FLAGS)[1] == want + "\n"


def test_lines_on_standard_input_and_a_conversation_that_is_resumed(tales, want, tmp_path):
    path = tmp_path/"piped.json"
    code, out, err = command(tales, *FLAGS, stdin=f"The door was\n/save {path}\n".encode())
    assert (code, out) == (0, want + "\n") and "saved to" in err
    code, out, err = command("--resume", path, "--tokens", 4, stdin=b"and\n/params\n")
    assert code == 0 and "1 turns" in err, err
    assert "max_new_tokens      4" in err and "seed                2" in err, err


def test_a_context(tales, tmp_path):
    (tmp_path/"ctx.txt").write_text("The door was")
    assert command(tales, "--context", tmp_path/"ctx.txt", "--prompt", "red and", *FLAGS)[0] == 0


@pytest.mark.parametrize("argv, message", [
    (["no/such"], "checkpoint 'no/such': no such folder"), (["TALES", "--prompt", ""], "prompt: empty"),
    (["TALES", "--prompts", "a", " "], "prompt 2: empty"),
    (["TALES", "--temperature", -1, "--prompt", "a"], "temperature -1.0: must be"),
    (["TALES", "--top_p", "x"], "invalid float value: 'x'"),
    (["TALES", "--prompts_file", "latin.txt"], "latin.txt, line 1: not valid UTF-8 (byte 0xe9)"),
    (["TALES", "--prompts_file", "none.txt"], "no prompt in it"),
    (["TALES", "--prompts_file", "bad.jsonl"], "bad.jsonl, line 2: neither"),
    (["TALES", "--prompts_file", "gone"], "No such file"), (["cut", "--prompt", "a"], "cut"),
    (["TALES", "--step", 3], "none of step 3"), (["TALES", "--draft", 0, "--prompt", "a"], "draft 0"),
    (["TALES", "--draft", "DIALOGS", "--prompt", "a"], "another tokenizer"),
    (["TALES", "--prompt", "a", "--prompts", "b"], "give one of them"),
    (["TALES", "--resume", "bad.jsonl"], "conversation"),
    (["TALES", "--context", "latin.txt"], "not UTF-8"), (["TALES", "--prompt", "\udcff"], "not UTF-8")])
def test_what_is_refused_in_one_line(talkers, tales, tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    Path("latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    Path("none.txt").write_text("\n")
    Path("bad.jsonl").write_text('"a"\n5\n')
    shutil.copytree(tales/"tale/checkpoints/step_00000240", "cut")
    os.truncate("cut/model.safetensors", 1000)
    places = dict(TALES=tales, DIALOGS=talkers/"runs/dialogs")
    code, out, err = command(*(places.get(x, x) for x in argv))
    assert code == 2 and message in err and err.count("\n") == 1 and not out, (code, out, err)


def test_prompts_are_lines_of_the_file_and_of_nothing_else(tmp_path):
    "U+2028 and its like end no line; a byte order mark is no part of a prompt; what is no text is named."
    (tmp_path/"a.jsonl").write_text('\ufeff{"prompt": "one\u2028two\x85three"}\r\n\n"four"\n')
    assert read_prompts(tmp_path/"a.jsonl") == ["one\u2028two\x85three", "four"]
    (tmp_path/"a.txt").write_text("\ufeffone\u2028two\r\nthree")
    assert read_prompts(tmp_path/"a.txt") == ["one\u2028two", "three"]
    (tmp_path/"half.jsonl").write_text('"fine"\n"\\ud83d"\n')
    with pytest.raises(ValueError, match="half.jsonl, line 2: half a character"): read_prompts(tmp_path/"half.jsonl")
