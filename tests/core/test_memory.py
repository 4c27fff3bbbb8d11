"Which switches of the C library are set, and when none is."
import os, subprocess, sys
import pytest
from hybrid_nb.core import memory


class Libc:
    "A C library that accepts some of its switches and notes them."
    def __init__(self, refused=()): self.refused, self.set = refused, {}
    def mallopt(self, switch, value):
        if switch in self.refused: return 0
        self.set[switch] = value
        return 1


@pytest.fixture
def keep(monkeypatch):
    "`keep_memory` with a C library of ours."
    monkeypatch.setattr(memory, "_kept", False)
    monkeypatch.delenv("HYBRID_NB_KEEP_MEMORY", raising=False)
    def keep(libc):
        monkeypatch.setattr(memory, "_glibc", lambda: libc)
        return memory.keep_memory(), memory.keeps_memory()
    return keep


def test_switches_of_glibc(keep):
    libc = Libc()
    assert keep(libc) == (True, True) and libc.set == {-3: 2**31 - 1, -1: 2**31 - 1, -2: 2**26}
    assert keep(again := Libc()) == (True, True) and not again.set # once a process


def test_old_glibc_refuses_a_high_threshold(keep):
    libc = Libc(refused=[-3])
    assert keep(libc) == (True, True) and libc.set[-4] == 0


def test_other_libraries_and_the_switch_change_nothing(keep, monkeypatch):
    assert keep(None) == (False, False)
    monkeypatch.setenv("HYBRID_NB_KEEP_MEMORY", "0")
    libc = Libc()
    assert keep(libc) == (False, False) and not libc.set


@pytest.mark.skipif(sys.platform != "linux", reason="switches of glibc")
def test_commands_keep_memory_before_torch_is_imported():
    code = """
import sys
from hybrid_nb.core import memory, scripts
def fake(): print("torch" in sys.modules); raise SystemExit
scripts.keep_memory = fake
scripts.hybrid_train()
"""
    env = {k: v for k, v in os.environ.items() if k != "HYBRID_NB_KEEP_MEMORY"}
    r = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert r.stdout == "False\n", r.stderr
