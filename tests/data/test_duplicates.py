"Copies are found in memory that does not grow with the corpus."
import tracemalloc
import numpy as np
from hybrid_nb.data.duplicates import drop_copies

def test_copies_are_found_in_little_memory():
    def peak(n):
        hashes = np.random.default_rng(0).integers(0, 2**63, n).astype(np.uint64) * np.uint64(2)
        kept = np.ones(n, bool)
        hashes[n//2:] = hashes[:n - n//2][::-1]
        tracemalloc.start()
        drop_copies(hashes, kept, 2**12)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert kept[:n//2].all() and not kept[n//2:].any()
        return peak
    assert peak(800_000) < 1.3*peak(200_000) < 5_000_000
