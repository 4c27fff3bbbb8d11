"Many shards: the same stream as one, opened without reading it."
import json
import numpy as np
from hybrid_nb.core.files import size_and_crc32
from hybrid_nb.data.batches import Data
from hybrid_nb.data.corpora import DataConfig, resolve_corpus
from hybrid_nb.data.documents import Documents
from hybrid_nb.data.preparation import write_tokens
from hybrid_nb.data.shards import RECORD, TokenWriter
from helpers.preparing import load

def test_opens_40_million_tokens(cfg):
    small = load(cfg)
    folder = small.folder
    writer = TokenWriter(folder, "train", 0, "<u2")
    ids = np.random.default_rng(0).integers(1, 400, 4_000, dtype="<u2")
    for i in range(10_000): writer.add(ids, np.array([(4_000, 16_000, i, i, np.nan, 0)], RECORD))
    writer.close()
    meta = json.loads((folder/"meta.json").read_text())
    meta["shards"]["train"] = writer.shards
    (folder/"meta.json").write_text(json.dumps(meta))
    sums = {f.name: size_and_crc32(f) for f in folder.iterdir() if f.name != "checksums.json"}
    (folder/"checksums.json").write_text(json.dumps(sums))
    assert len(load(cfg).train) > 40_000_000

def test_several_shards_are_one_stream(tmp_path):
    cfg = DataConfig(max_documents=400, vocab_size=1024, length=64, stride=.8, cache_dir=str(tmp_path/"cache"))
    data, folder = load(cfg), tmp_path/"shards"
    folder.mkdir()
    write_tokens(folder, Documents(resolve_corpus(cfg)), data.tokenizer, False, shard_tokens=10_000)
    many = Data(cfg, data.tokenizer, folder)
    assert len(many.meta["shards"]["train"]) > 3
    assert (np.asarray(many.train.tokens) == np.asarray(data.train.tokens)).all()
    assert (np.asarray(many.train.records) == np.asarray(data.train.records)).all()
    assert (many.train.document(300) == data.train.document(300)).all() and many.train.n_bytes == data.train.n_bytes
    for s in range(20): assert (many.train_batch(0, s, 8) == data.train_batch(0, s, 8)).all()
    for a, b in zip(many.val_batch(0, many.n_val_windows), data.val_batch(0, data.n_val_windows)): assert (a == b).all()
