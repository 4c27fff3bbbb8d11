"""Without a GPU, the Triton kernels run in Triton's interpreter.

It has to be asked for before triton is first imported, by whichever test that is.
"""
import os, re, signal, sys
import pytest, torch

# a job in the background has it ignored, and hands that down to the processes that tests interrupt
signal.signal(signal.SIGINT, signal.default_int_handler)

if not torch.cuda.is_available(): os.environ.setdefault("TRITON_INTERPRET", "1")

@pytest.fixture(autouse=True)
def fresh_compiler():
    "torch.compile gives up on a function that was compiled for many models before, as it is in one process of tests."
    if "torch._dynamo" in sys.modules: torch._dynamo.reset()

@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    "With HYBRID_NB_NO_SKIP, as in `make test`, a test that lacks a package fails: it would be skipped for ever."
    report = yield
    lacks = report.skipped and re.search("could not import|not installed|needs", str(report.longrepr))
    if lacks and os.environ.get("HYBRID_NB_NO_SKIP"):
        report.outcome, report.longrepr = "failed", f"{item.nodeid}: {report.longrepr}"
    return report
