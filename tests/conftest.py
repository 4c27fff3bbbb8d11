"""Without a GPU, the Triton kernels run in Triton's interpreter. It has to be asked for before triton is first imported, by whichever test that is."""
import os, signal, sys
import pytest, torch

signal.signal(signal.SIGINT, signal.default_int_handler) # a job in the background has it ignored, and hands that down to the processes that tests interrupt

if not torch.cuda.is_available(): os.environ.setdefault("TRITON_INTERPRET", "1")

@pytest.fixture(autouse=True)
def fresh_compiler():
    "torch.compile gives up on a function that was compiled for many models before, as it is in one process of tests."
    if "torch._dynamo" in sys.modules: torch._dynamo.reset()
