"""The compiled kernels of the scan among threads, processes and torch's operators."""
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
import pytest, torch
from helpers.mixers import python, scan_example, values_and_grads
from hybrid_nb.mixers.scan import selective_scan
from hybrid_nb.mixers.scan_cpu import _scan_op

scan = partial(selective_scan, return_state=True, backend="cpu", delta_softplus=True)


def test_thread_count_changes_nothing():
    x, before, got = scan_example(3, 70, 200, 16), torch.get_num_threads(), []
    try:
        for n in (1, 2, 3, 7):
            torch.set_num_threads(n)
            got.append(values_and_grads(scan, x))
    finally: torch.set_num_threads(before)
    for other in got[1:]: assert all(torch.equal(other[k], got[0][k]) for k in other)


def one_scan(seed):
    "Forward and backward in whichever thread or process this is called."
    x = scan_example(2, 50, 100, 8, seed=seed)
    return values_and_grads(scan, x)["A"].sum().item()


def test_python_threads_at_once():
    want = [one_scan(s) for s in range(8)]
    with ThreadPoolExecutor(4) as pool: assert list(pool.map(one_scan, range(8))) == want


@pytest.mark.skipif(sys.platform == "win32", reason="no fork on Windows")
def test_after_fork():
    """Workers that are forked from a process whose kernels have used threads compute what their parent does.
    In a fresh process without a GPU: once autograd has a thread for a GPU, a fork cannot use autograd any more."""
    out = python("""
import os
os.environ["CUDA_VISIBLE_DEVICES"] = ""
import threading, warnings
warnings.filterwarnings("ignore", category=DeprecationWarning) # a process with threads forks: that is the point
from functools import partial
import torch
from torch.utils.data import DataLoader, Dataset
from helpers.mixers import scan_example, values_and_grads
from hybrid_nb.mixers.scan import selective_scan
scan = partial(selective_scan, return_state=True, backend="cpu", delta_softplus=True)
def one_scan(seed): return values_and_grads(scan, scan_example(2, 50, 100, 8, seed=seed))["A"].sum().item()

class Scans(Dataset):
    def __len__(self): return 4
    def __getitem__(self, i): return one_scan(i)

want = [one_scan(s) for s in range(4)]
torch.set_num_threads(2)
assert one_scan(0) == want[0]
assert any("selective_scan" in t.name for t in threading.enumerate()) # the parent has threads of its own
assert list(DataLoader(Scans(), num_workers=2, multiprocessing_context="fork", batch_size=None)) == want
print(want)
""")
    assert eval(out) == [one_scan(s) for s in range(4)]


def test_operator_is_registered_soundly():
    x = scan_example(1, 10, 32, 4)
    x["delta"] = x["delta"].abs()
    args = [x[k].requires_grad_() for k in ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")]
    border = torch.tensor([[0.]*4 + [-1000.] + [0.]*5])
    torch.library.opcheck(_scan_op, (*args, border, True), rtol=1e-4, atol=1e-4)
    torch.library.opcheck(_scan_op, (*args[:5], None, None, None, None, None, False), rtol=1e-4, atol=1e-4)


def test_compiled_code_is_reused():
    "A second process loads the kernels from disk."
    one_scan(0)
    hits = python("""
import torch
from hybrid_nb.mixers import scan_cpu
from hybrid_nb.mixers.scan import selective_scan
x, b = torch.ones(1, 4, 16, requires_grad=True), torch.ones(1, 4, 2)
selective_scan(x, x, -torch.ones(16, 2), b, b).sum().backward()
print(*(sum(k.stats.cache_hits.values()) for k in (scan_cpu._forward, scan_cpu._backward)))
""")
    assert hits == "1 1"
