"""How often a study of equal patterns claims a difference, under departures from what its intervals assume.

    python reports/benchmarks/error_rates.py [--studies 1000] [--jobs 1]

Writes error-rates.json beside this file (or where --out says), which the notebook 07_study/01_error_rates shows. Each
cell has a seed of its own, so it can be repeated alone.
"""
import argparse, json, os, time
from multiprocessing import Pool
from pathlib import Path
import numpy as np
from hybrid_nb.study.error_rates import beyond, departures, error_rate, two_study_rate

OUT = Path(__file__).with_name("error-rates.json")
PATTERNS, SEEDS = (2, 4, 12), (2, 3, 4, 5)
SIDES = ((2, 2), (3, 3), (2, 5), (5, 2), (3, 1))


def one_study(job):
    "A cell of the first table."
    i, name, patterns, seeds, studies = job
    found = error_rate(patterns, seeds, studies, rng=np.random.default_rng([i, patterns, seeds]),
                       **(departures | beyond)[name])
    return dict(departure=name, patterns=patterns, seeds=seeds) | found


def two_studies(job):
    "A cell of the second table."
    patterns, scale, first, second, studies = job
    rng = np.random.default_rng([99, patterns, int(scale), first, second])
    false = two_study_rate(patterns, first, second, studies, scale, rng=rng)
    return dict(patterns=patterns, scale=scale, first=first, second=second, false=false)


def main(studies, jobs, out):
    "Simulate and write the tables."
    start = time.time()
    cells = [(i, name, p, s, studies) for i, name in enumerate(departures | beyond) for p in PATTERNS for s in SEEDS]
    sides = [(p, scale, *side, studies) for p in (2, 6) for scale in (1., 10.) for side in SIDES]
    with Pool(jobs) as pool:
        rates = pool.map(one_study, cells, chunksize=1)
        two = pool.map(two_studies, sides, chunksize=1)
    for r in rates: print(f"{r['departure']}, {r['patterns']} patterns × {r['seeds']} seeds: {r['false']:.3f}")
    found = dict(studies=studies, seconds=round(time.time() - start), jobs=jobs, numpy=np.__version__, rates=rates,
                 two_studies=two)
    Path(out).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--studies", type=int, default=1000)
    p.add_argument("--jobs", type=int, default=1)
    p.add_argument("--out", default=OUT)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(**vars(p.parse_args()))
