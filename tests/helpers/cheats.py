"Models that see what they should not, one for each way of not being noticed; for the audits' tests and examples."
from contextlib import contextmanager
import torch
from torch import nn
from hybrid_nb.audit.checks import undisturbed
from hybrid_nb.audit.every_cut import affordable_tokens, check_causality
from hybrid_nb.data.corpora import DataConfig
from hybrid_nb.data.loading import load_data
from hybrid_nb.mixers.attention import Attention
from hybrid_nb.models.registry import register
from hybrid_nb.training.recount import run_readers
from helpers.small_models import letters_restored, small_model

ROWS, EVAL_ROWS, VOCABULARY = 4, 6, 300 # of the runs that are audited
cheats = {} # what it does -> (class of a mixer, settings of the run that is audited)


def ahead(x, k=1):
    "Each position gets the token `k` later; the last ones nothing."
    return nn.functional.pad(x[:, k:], (0, 0, 0, k))


def places(x): return torch.arange(x.shape[1], device=x.device)[:, None]


class Mixer(nn.Module):
    "A running mean, and a little of what `leak` returns."
    size = .1

    def __init__(self, c, layer_idx=None):
        super().__init__()
        self.kept = None

    def forward(self, x, cache=None, segments=None, **context):
        mean = x.cumsum(1) / (places(x) + 1)
        leak = self.leak(x, cache, segments)
        return mean if leak is None else mean + self.size * leak


def cheat(what, **settings):
    "Add a class with a method `leak`, or a function (self, x, cache, segments) that is one."
    def add(leak):
        cheats[what] = (leak if isinstance(leak, type) else type("Cheat", (Mixer,), dict(leak=leak))), settings
        return leak
    return add


# where

@cheat("odd positions see the next token")
def _(self, x, cache, segments): return ahead(x) * (places(x) % 2)

@cheat("groups of four are shifted by two")
def _(self, x, cache, segments):
    n = -(-x.shape[1] // 4) * 4
    groups = nn.functional.pad(x, (0, 0, 0, n - x.shape[1])).view(len(x), -1, 4, x.shape[2])
    return nn.functional.pad(groups.mean(2).repeat_interleave(4, 1), (0, 0, 2, 0))[:, :x.shape[1]]

@cheat("beyond position 128")
def _(self, x, cache, segments): return ahead(x) * (places(x) >= 128)

@cheat("beyond position 300", length=320)
def _(self, x, cache, segments): return ahead(x) * (places(x) >= 300)

@cheat("at position 77 alone")
def _(self, x, cache, segments): return ahead(x) * (places(x) == 77)

@cheat("position 0 sees the last token")
def _(self, x, cache, segments): return x[:, -1:] * (places(x) == 0)

@cheat("seven tokens ahead")
def _(self, x, cache, segments): return ahead(x, 7)

@cheat("the last token but one sees the last")
def _(self, x, cache, segments): return ahead(x) * (places(x) == x.shape[1] - 2)


# when

@cheat("in texts of 100, 200, … tokens")
def _(self, x, cache, segments): return ahead(x) if x.shape[1] % 100 == 0 else None

@cheat("for one token in five")
def _(self, x, cache, segments): return ahead(x) * (x[..., :1] > .85)

@cheat("for one token in thirty")
def _(self, x, cache, segments): return ahead(x) * (x[..., :1] > 1.8)

@cheat("in training mode")
def _(self, x, cache, segments): return ahead(x) if self.training else None

@cheat("in evaluation mode")
def _(self, x, cache, segments): return None if self.training else ahead(x)

@cheat("with gradients")
def _(self, x, cache, segments): return ahead(x) if torch.is_grad_enabled() else None

@cheat("in batches of the run's size")
def _(self, x, cache, segments): return ahead(x) if len(x) == ROWS else None

@cheat("in evaluation batches of the run's size")
def _(self, x, cache, segments): return ahead(x) if len(x) == EVAL_ROWS else None

@cheat("in bf16", precision="bf16")
def _(self, x, cache, segments): return ahead(x) if torch.is_autocast_enabled("cpu") else None

@cheat("with a state", stateful=True, pattern="YM")
def _(self, x, cache, segments): return None if cache is None else ahead(x)

@cheat("where documents are separate", documents="separate")
def _(self, x, cache, segments): return None if segments is None else ahead(x)


# from where

@cheat("from the row below")
def _(self, x, cache, segments): return ahead(x).roll(-1, 0)

@cheat("from the mean of all rows")
def _(self, x, cache, segments): return x.mean(0, keepdim=True)

@cheat("from the batch before")
def _(self, x, cache, segments):
    before, self.kept = self.kept, x.detach()
    return None if before is None or before.shape != x.shape else ahead(before)

@cheat("from a text that it has seen")
def _(self, x, cache, segments):
    before, self.kept = self.kept, x.detach()
    if before is None or before.shape != x.shape: return None
    return ahead(before) * (before == x).all(-1, keepdim=True).cumprod(1)


# how

@cheat("through an argmax")
def _(self, x, cache, segments): return nn.functional.one_hot(ahead(x).argmax(-1), x.shape[-1]).to(x.dtype)

@cheat("a thousandth of it")
def _(self, x, cache, segments): return ahead(x) * 1e-2

@cheat("a mean over the text, detached")
def _(self, x, cache, segments): return x.mean(1, keepdim=True).detach()

@cheat("a running mean from the end")
def _(self, x, cache, segments): return x.flip(1).cumsum(1).flip(1) / x.shape[1]

@cheat("a convolution that is padded on both sides")
class _(Mixer):
    def __init__(self, c, layer_idx=None):
        super().__init__(c)
        self.conv = nn.Conv1d(c.hidden_size, c.hidden_size, 3, padding=1, groups=c.hidden_size)

    def leak(self, x, cache, segments): return self.conv(x.transpose(1, 2)).transpose(1, 2)

@cheat("a batch normalisation over time")
class _(Mixer):
    def __init__(self, c, layer_idx=None):
        super().__init__(c)
        self.norm = nn.BatchNorm1d(c.hidden_size)

    def leak(self, x, cache, segments): return self.norm(x.transpose(1, 2)).transpose(1, 2)

class Masked(Attention):
    def __init__(self, c, layer_idx): super().__init__(c.hidden_size, c.num_attention_heads, layer_idx=layer_idx)

@cheat("attention without a mask")
class _(Masked):
    def mix(self, q, k, v, mask): return nn.functional.scaled_dot_product_attention(q, k, v)

@cheat("an attention mask that is off by one")
class _(Masked):
    def mix(self, q, k, v, mask):
        seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril(1)
        return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)


# outside the blocks

class LooksAhead(nn.Module):
    "A module whose output at a position has a little of the one after it."
    def __init__(self, inner):
        super().__init__()
        self.inner, self.weight = inner, inner.weight

    def forward(self, x):
        y = self.inner(x)
        return y + .1 * ahead(y) if y.ndim == 3 else y

def leaky_embedding(model): model.model.embed_tokens = LooksAhead(model.model.embed_tokens)
def leaky_norm(model): model.model.norm = LooksAhead(model.model.norm)
def leaky_head(model): model.lm_head = LooksAhead(model.lm_head)

outside = {"the embedding looks ahead": leaky_embedding, "the last norm looks ahead": leaky_norm,
           "the head looks ahead": leaky_head}


class Honest(Mixer):
    "The running mean alone."
    def leak(self, x, cache, segments): return None


def model_of(pattern, **settings): return small_model(pattern, **dict(vocab_size=VOCABULARY) | settings)


def causality_of(model, precision="fp32", rows=ROWS, eval_rows=EVAL_ROWS, **settings):
    "The two checks of causality as a run makes them: {mode: (verdict, evidence)}."
    settings = dict(max_documents=100, length=200, vocab_size=VOCABULARY) | settings
    data = load_data(DataConfig(**settings), progress=False)
    readers = run_readers(model, data, 0, 8, rows, eval_rows, precision)
    with undisturbed(model):
        return {mode: check_causality(model, reader, training, affordable_tokens(model))
                for mode, training, reader in zip(("training", "evaluation"), (True, False), readers)}


@contextmanager
def as_letter(mixer, letter="Y"):
    "The class of a mixer as a letter."
    with letters_restored():
        register(letter, "a mixer to be audited", cache="linear_attention")(mixer)
        yield


def audit_cheat(what):
    "What `causality_of` says of a cheat."
    if what in outside:
        model = model_of("AF", tie_word_embeddings=False)
        outside[what](model)
        return causality_of(model)
    mixer, settings = cheats[what]
    with as_letter(mixer): return causality_of(model_of(settings.get("pattern", "YA")), **{
        k: v for k, v in settings.items() if k != "pattern"})
