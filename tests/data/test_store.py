"The cache: what names its folders, damage, many processes, a folder that cannot be written."
import os
from dataclasses import replace
from pathlib import Path
import pytest, torch
from hybrid_nb.core.files import find_corruption
from helpers.preparing import load, python
from helpers.texts import some_texts, write_jsonl

def test_key(cfg):
    first = load(cfg)
    for same in (dict(length=16), dict(stride=.5), dict(corpus=os.path.relpath(cfg.corpus))):
        assert load(replace(cfg, **same)).folder == first.folder
    for other in (dict(vocab_size=300), dict(val_fraction=.2), dict(max_chars=50), dict(max_documents=100),
                  dict(text_field="{text}!")):
        assert load(replace(cfg, **other)).folder != first.folder, other
    texts = some_texts()
    texts[0] = texts[0][::-1]   # the same size
    os.utime(write_jsonl(Path(cfg.corpus), [dict(text=t) for t in texts]))
    assert load(cfg).folder != first.folder

@pytest.mark.parametrize("harm", ["flip", "truncate", "remove", "append"])
def test_damage_is_named_and_repaired(cfg, harm):
    good = load(cfg)
    batch, folder = good.train_batch(0, 0, 8), good.folder
    tokenizer = Path(good.tokenizer.name_or_path)
    for f in [*sorted(folder.iterdir()), *sorted(tokenizer.iterdir())]:
        raw = f.read_bytes()
        flipped = raw[:-3] + bytes([raw[-3] ^ 4]) + raw[-2:]
        if harm == "remove": f.unlink()
        else: f.write_bytes({"flip": flipped, "truncate": raw[:-9], "append": raw + b" "}[harm])
        if f.name == "checksums.json" and harm == "append": continue   # a space after JSON harms nothing
        named = f.name.replace(".", r"\.") if harm != "flip" or f.name != "checksums.json" else "damaged"
        with pytest.warns(UserWarning, match=named): again = load(cfg)
        assert torch.equal(again.train_batch(0, 0, 8), batch)
        assert not find_corruption(folder) and not find_corruption(tokenizer)

def test_many_processes_prepare_once(cfg):
    code = f"""
from hybrid_nb.data import loading
from hybrid_nb.data.corpora import DataConfig
write = loading.write_tokens
def counted(*a, **k): print("wrote"); write(*a, **k)
loading.write_tokens = counted
data = loading.load_data(DataConfig(**{vars(cfg)!r}), progress=False)
print(data.folder, data.train_batch(0, 3, 8).sum().item())"""
    outs = [p.communicate() for p in [python(code) for _ in range(3)]]
    assert all(o for o, _ in outs), outs
    assert sum(o.count("wrote") for o, _ in outs) == 1
    assert len({o.strip().splitlines()[-1] for o, _ in outs}) == 1
    assert not [f for f in Path(cfg.cache_dir, "tokens").iterdir() if f.name.startswith(".")]

def test_read_only_cache(cfg):
    batch = load(cfg).train_batch(0, 0, 4)
    root = Path(cfg.cache_dir)
    for d in (root/"tokens", root/"tokenizers"): d.chmod(0o555)
    try: assert torch.equal(load(cfg).train_batch(0, 0, 4), batch)
    finally:
        for d in (root/"tokens", root/"tokenizers"): d.chmod(0o755)

def test_environment_variable(cfg, monkeypatch, tmp_path):
    monkeypatch.setenv("HYBRID_NB_CACHE", str(tmp_path/"elsewhere"))
    assert (tmp_path/"elsewhere") in load(replace(cfg, cache_dir=None)).folder.parents
