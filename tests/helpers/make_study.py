"""A made-up study: run folders as a sweep leaves them, with numbers that look like training. For tests and examples."""
import json
import numpy as np
from pathlib import Path

patterns = dict( # final loss, millions of parameters
    AAAAAAAA=(2.62, 23.6), MMMMMMMM=(2.45, 26.3), AMAMAMAM=(2.31, 25.0), MAMAMAMA=(2.315, 25.0), AAAAMMMM=(2.40, 25.0),
    GGGGGGGG=(2.71, 26.3))
floor_bits, bytes_per_token = 0.95, 3.1

def make_run(study, pattern, seed, status="finished", steps=200, every=20, hidden_size=64, loss=None, params=None):
    "Write one run folder below `study`; `status` is finished, interrupted, stopped or failed."
    end, millions = patterns.get(pattern, (2.5, 25.0))
    end, millions = loss or end, params or millions
    rng = np.random.default_rng([seed, *pattern.encode()])
    run = Path(study)/f"{pattern}-s{seed}"
    run.mkdir(parents=True, exist_ok=True)
    end, rate = end + rng.normal(0, 0.002), (8 + 6*pattern.count("M")/len(pattern))/200
    curve = lambda step: end + 5.1*(1 + step/6)**-1.3
    bits = lambda nats: nats/np.log(2)/bytes_per_token
    config = dict(name=run.name, study=Path(study).name, pattern=pattern, seed=seed,
        model=dict(pattern=pattern, hidden_size=hidden_size, num_attention_heads=4, state_size=16, vocab_size=2048),
        data=dict(corpus="stories", tokenizer="bpe", vocab_size=2048, length=256),
        train=dict(steps=steps, batch_size=16, learning_rate=1e-3, seed=seed),
        environment=dict(packages=dict(hybrid_nb="0.0.1", torch="2.13.0", transformers="5.23.0"), python="3.11.9",
                         cores=2, processor="a CPU", git_revision="0"*40))
    (run/"config.json").write_text(json.dumps(config))
    stop = steps if status == "finished" else steps//2
    with open(run/"metrics.jsonl", "w") as f:
        for step in range(every//2, stop+1, every//2):
            nats, tokens = curve(step) + rng.normal(0, .03), step*16*256
            line = dict(step=step, time=step*rate, tokens=tokens, train_loss=nats, learning_rate=1e-3, grad_norm=.5,
                        tokens_per_second=4096/rate)
            f.write(json.dumps(line) + "\n")
            if step % every: continue
            nats = curve(step) + rng.normal(0, .004)
            line = dict(step=step, time=step*rate, tokens=tokens, val_loss=nats, val_perplexity=np.exp(nats),
                        val_accuracy=.8 - nats/10, bits_per_byte=bits(nats))
            f.write(json.dumps(line) + "\n")
    error = dict(output_type="error", ename="RuntimeError", evalue="loss is not finite",
                 traceback=["Traceback", "RuntimeError: loss is not finite"])
    outputs = [error] if status == "failed" else []
    cell = dict(cell_type="code", metadata={}, execution_count=1, source="train()", outputs=outputs)
    (run/"train.ipynb").write_text(json.dumps(dict(cells=[cell], metadata={}, nbformat=4, nbformat_minor=4)))
    if status == "stopped":
        rung = dict(step=stop, rung=1, rungs=1, factor=2, val_loss=curve(stop), rank=6, of=6, kept=3)
        (run/"stopped.json").write_text(json.dumps(rung))
    if status == "finished":
        summary = make_summary(config, curve(steps), millions, rate, bits, rng)
        (run/"summary.json").write_text(json.dumps(summary))
        make_windows(run, pattern, summary["final_val_loss"])
    return run

def make_windows(run, pattern, loss, documents=40):
    "Sums by document: some are hard for all patterns, each a little more so for some; their mean is the final loss."
    shared, own = np.random.default_rng(0), np.random.default_rng([*pattern.encode()])
    tokens = shared.integers(100, 1000, documents)
    each = shared.normal(0, .4, documents) + own.normal(0, .01, documents)
    each += loss - (each*tokens).sum()/tokens.sum()
    np.savez(run/"val_windows.npz", window=np.arange(documents), document=np.arange(documents),
             first=np.zeros(documents, int), tokens=tokens, nats=each*tokens, right=tokens//2)

def make_summary(config, final, millions, rate, bits, rng):
    steps, pattern = config["train"]["steps"], config["pattern"]
    reach = .95 if "A" in pattern and "M" in pattern else .8 if "A" in pattern else .7 if "M" in pattern else .3
    def accuracy(i): return float(np.clip(reach - .05*i*(1 if "A" in pattern else 2) + rng.normal(0, .01), 0, 1))
    recall = [dict(distance_from=a, distance_to=2*a, accuracy=accuracy(i), count=400)
              for i, a in enumerate([4, 8, 16, 32, 64, 128])]
    losses = dict(train_loss=final - .02, val_loss=final, best_val_loss=final - .001, final_val_loss=final + .005)
    return dict(name=config["name"], study=config["study"], pattern=pattern, layers=len(pattern), seed=config["seed"],
        parameters=int(millions*1e6), parameters_non_embedding=int(millions*8e5), steps=steps, planned_steps=steps,
        stopped_early=False,
        tokens_seen=steps*4096, unique_tokens=600_000, epochs=steps*4096/600_000, runtime_seconds=steps*rate + 3,
        **losses, **{k.replace("_loss", "_perplexity"): float(np.exp(v)) for k, v in losses.items()}, best_step=steps,
        val_accuracy=.8 - final/10, bits_per_byte=bits(final), floor_bits_per_byte=floor_bits,
        window_floor_bits_per_byte=floor_bits + .03,
        tokens_per_second=4096/rate, peak_memory_bytes=int(4e8 + 1e7*millions),
        device="cpu", precision="float32", recall=recall, finished="2026-01-01T12:00:00")

def make_study(study, seeds=2, **kwargs):
    "Every pattern with every seed."
    for pattern in patterns:
        for seed in range(seeds): make_run(study, pattern, seed, **kwargs)
    return Path(study)

def example_study(study):
    "The study of the notebooks: every pattern with two seeds, one run that was interrupted and one that failed."
    study = make_study(study)
    make_run(study, "AAAAAAAA", 2, status="interrupted")
    make_run(study, "GGGGGGGG", 2, status="failed")
    return study

def made_up_sums(rng, seeds, effects, n_documents=60, sd_seed=.02, sd_document=.06):
    "A study with known differences: pattern of each run, (runs, documents) sums of nats, (documents,) tokens."
    length = rng.integers(50, 400, n_documents)
    own = rng.normal(0, sd_document, (len(effects), n_documents)) # of a pattern on a document, the same for all seeds
    own = own + rng.normal(4, .4, n_documents)
    names = np.repeat(np.arange(len(effects)), seeds)
    loss = (own + np.array(effects)[:, None])[names] + rng.normal(0, sd_seed, (len(names), 1))
    return names.tolist(), loss * length, length
