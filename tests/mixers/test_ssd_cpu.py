"""The compiled kernels of Mamba-2 among threads."""
import torch
from hybrid_nb.mixers.ssd_cpu import chunk_matrix_cpu, gated_norm_cpu


def test_thread_count_changes_nothing():
    s, a = torch.randn(3, 4, 2, 9, 9), -torch.rand(3, 4, 2, 5, 9).double().cumsum(-1)
    dt, D = torch.rand(3, 4, 2, 5, 9), torch.randn(2, 5)
    x, z, w = torch.randn(150, 24), torch.randn(150, 24), torch.randn(24)
    leaves, before, got = [t.requires_grad_() for t in (s, a, dt, D, x, z, w)], torch.get_num_threads(), []
    try:
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            M, y = chunk_matrix_cpu(s, a, dt, D), gated_norm_cpu(x, z, w, 3)
            got.append([M, y, *torch.autograd.grad(M.square().sum() + y.pow(3).sum(), leaves)])
    finally: torch.set_num_threads(before)
    for other in got[1:]: assert all(torch.equal(p, q) for p, q in zip(other, got[0]))
