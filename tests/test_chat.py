"hybrid_chat at a real terminal: lines, keys, signals; a conversation that another process resumes; checkpoints that would run code."
import json, os, pty, re, select, shutil, signal, sys, time
from pathlib import Path
import pytest, torch
from hybrid_nb.chat import Chat, respond, usual
from hybrid_nb.data import train_bpe
from hybrid_nb.generate import Generator
from hybrid_nb.model import HybridConfig, HybridForCausalLM

SCRIPT = "import sys\nfrom hybrid_nb.chat import hybrid_chat\nsys.exit(hybrid_chat())\n" # what the installed console script does


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "A checkpoint with random weights, and the script."
    folder = tmp_path_factory.mktemp("chat")
    tok = train_bpe(["the old man and the sea were there when the door was red"] * 20, 300)
    torch.manual_seed(0)
    model = HybridForCausalLM(HybridConfig(pattern="MA", hidden_size=32, num_attention_heads=2, state_size=4, vocab_size=len(tok), dropout=0., initializer_range=.3, eos_token_id=tok.eos_token_id))
    model.get_input_embeddings().weight.data[tok.eos_token_id] = 0 # no answer ends by itself: others are likelier
    model.save_pretrained(folder/"model"); tok.save_pretrained(folder/"model")
    (folder/"hybrid_chat").write_text(SCRIPT)
    return folder


class Terminal:
    "The command at a pseudo-terminal of its own; waits for text, never for time."
    def __init__(self, folder, *args):
        env = os.environ | dict(XDG_STATE_HOME=str(folder/"state"), PROMPT_TOOLKIT_NO_CPR="1", TERM="xterm", NO_COLOR="1", OMP_NUM_THREADS="1", COLUMNS="100", LINES="40",
                                PYTHONPATH=os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]))
        self.pid, self.fd = pty.fork()
        if not self.pid:
            os.chdir(folder)
            os.execve(sys.executable, [sys.executable, "hybrid_chat", *map(str, args)], env)
        self.seen, self.at = "", 0

    def send(self, text): os.write(self.fd, text.encode())

    def wait(self, pattern, seconds=60):
        "The next `pattern` in what is written."
        end = time.time() + seconds
        while not (found := re.compile(pattern).search(text := re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.seen), self.at)):
            assert time.time() < end, f"waited in vain for {pattern!r} in {text[self.at:]!r}"
            if not select.select([self.fd], [], [], 1)[0]: continue
            try: new = os.read(self.fd, 2**16)
            except OSError: new = b"" # the other side is closed
            assert new, f"ended before {pattern!r} in {text[self.at:]!r}"
            self.seen += new.decode(errors="replace")
        self.at = found.end()

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


def test_a_session_at_a_terminal(folder):
    "An answer, an error, a stopped answer, an earlier line by the arrow, several pasted lines, a saved talk that another process resumes without reading it, and the end."
    t = Terminal(folder, "model", "--tokens", 6, "--seed", 1)
    try:
        t.wait(r"/help lists the commands"); t.wait("\n>")
        t.send("the old man\r"); t.wait(r"6 tokens \(as many as allowed\)[^\n]*seed 1"); t.wait("\n>")
        t.send("/temp hot\r"); t.wait("temperature 'hot': must be a number"); t.wait("\n>")
        t.send("/tokens 1000000\r"); t.wait("max_new_tokens 1000000"); t.wait("\n>")
        t.send("the sea\r"); t.wait("(?s)sea.{300}"); t.send("\x03"); t.wait(r"\d+ tokens \(stopped\)"); t.wait("\n>")
        t.send("/tokens 5\r"); t.wait("max_new_tokens 5"); t.wait("\n>")
        t.send("\x1b[A\x1b[A"); t.wait("the sea"); t.send("\r"); t.wait(r"5 tokens \(as many"); t.wait("\n>")
        t.send("\x1b[200~the door\nwas red\x1b[201~\r"); t.wait(r"5 tokens"); t.wait("\n>")
        t.send("/save talk.json\r"); t.wait("saved to talk.json, the state to talk.state.safetensors"); t.wait("\n>")
        t.send("\x03"); t.wait("Ctrl-C once more"); t.wait("\n>"); t.send("/quit\r")
        assert t.end() == 0
    finally: t.kill()
    talk = json.loads((folder/"talk.json").read_text())
    assert [x["user"] for x in talk["turns"]] == ["the old man", "the sea", "the sea", "the door\nwas red"]
    assert [x["finish"] for x in talk["turns"]] == ["length", "interrupted", "length", "length"] and talk["turns"][1]["tokens"] < 1000000

    chat, read = Chat(Generator(folder/"model")), []
    assert "read again" not in chat.resume(folder/"talk.json")
    chat.gen.model.register_forward_pre_hook(lambda m, args, kw: read.append(kw["input_ids"].shape[1]), with_kwargs=True)
    "".join(respond(chat, "when"))
    assert sum(read) == 1 + len(chat.turns[-1].added) + 4 and len(chat.tokens) > 30


def test_no_code_runs_from_a_checkpoint(folder, tmp_path):
    "A pickle is refused without the flag, in one line; the conversation goes on."
    shutil.copytree(folder/"model", tmp_path/"trap")
    (tmp_path/"trap"/"model.safetensors").unlink()

    class Payload:
        def __reduce__(self): return os.mkdir, (str(tmp_path/"harm"),)
    torch.save({"lm_head.weight": Payload()}, tmp_path/"trap"/"pytorch_model.bin")
    for options in ({}, dict(allow_pickle=True)):
        chat = Chat(Generator(folder/"model"), usual, **options)
        "".join(respond(chat, "the sea"))
        with pytest.raises(ValueError) as e: respond(chat, f"/load {tmp_path/'trap'}")
        assert "\n" not in str(e.value) and len(chat.turns) == 1 and "".join(respond(chat, "/tokens 3")) == "max_new_tokens 3"
        "".join(respond(chat, "was"))
    assert not (tmp_path/"harm").exists() and len(chat.turns) == 2
