"""Without a GPU, the Triton kernels run in Triton's interpreter. It has to be asked for before triton is first imported, by whichever test that is."""
import os, torch

if not torch.cuda.is_available(): os.environ.setdefault("TRITON_INTERPRET", "1")
