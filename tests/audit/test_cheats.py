"No cheat passes, and nothing honest fails: causality as a run audits it."
import pytest, torch
from transformers import AutoModelForCausalLM
from helpers.cheats import as_letter, audit_cheat, causality_of, cheats, Honest, Mixer, model_of, outside
from hybrid_nb.audit.every_cut import check_causality, plain_reader
from hybrid_nb.models.context_config import ContextConfig
import hybrid_nb.models.context_vector # noqa: F401  registers the model with transformers

ONE_MODE = {"in training mode": "training", "in batches of the run's size": "training",
            "in evaluation mode": "evaluation", "in evaluation batches of the run's size": "evaluation",
            "a batch normalisation over time": "training"}


@pytest.mark.parametrize("what", [*cheats, *outside])
def test_no_cheat_passes(what):
    found = audit_cheat(what)
    failed = [mode for mode, (verdict, _) in found.items() if verdict == "fail"]
    assert failed == ([ONE_MODE[what]] if what in ONE_MODE else ["training", "evaluation"]), found
    where = "block 0 (Y a mixer to be audited)" if what in cheats else "outside the blocks"
    assert where in found[failed[0]][1] or what == "the head looks ahead", found


def test_the_positions_are_named():
    assert "at 1 position (77)" in audit_cheat("at position 77 alone")["training"][1]
    assert "at 19 positions (300, 301, 302, 303, …, 318)" in audit_cheat("beyond position 300")["evaluation"][1]
    assert "depend on other rows of the batch by" in audit_cheat("from the row below")["training"][1]
    assert "depend on what was read before by" in audit_cheat("from the batch before")["training"][1]


def passes(found): assert {verdict for verdict, _ in found.values()} == {"pass"}, found


OPTIONS = [{}, dict(precision="bf16"), dict(documents="separate"), dict(rows=1, eval_rows=3),
           dict(documents="separate", precision="bf16"), dict(length=96, rows=3), dict(stride=.5)]

@pytest.mark.parametrize("settings", OPTIONS, ids=str)
def test_every_letter_passes(settings): passes(causality_of(model_of("AFGLMSW"), **dict(length=100) | settings))


@pytest.mark.parametrize("letter", "AFGLMSW")
def test_every_letter_passes_alone(letter): passes(causality_of(model_of(letter * 2), length=100, precision="bf16"))


@pytest.mark.parametrize("pattern", ["M", "S", "G", "MF", "AMW", "SL"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_letter_passes_with_a_state(pattern, precision):
    passes(causality_of(model_of(pattern), stateful=True, length=64, precision=precision))


@pytest.mark.parametrize("settings", [*OPTIONS, dict(stateful=True)], ids=str)
def test_a_context_vector_model_passes(settings):
    config = ContextConfig(vocab_size=300, embedding_size=16, context_dim=16, network_size=16, depth=2)
    passes(causality_of(AutoModelForCausalLM.from_config(config), **dict(length=100) | settings))


def test_dialogs_pass(): passes(causality_of(model_of("AMS", vocab_size=400), corpus="chat-demo", vocab_size=400,
                                             max_documents=None))


def test_options_of_a_model_pass():
    for settings in dict(dropout=.3, norm="layernorm"), dict(tie_word_embeddings=False), dict(scale_embedding=True):
        passes(causality_of(model_of("AMG", **settings), length=64))
    checkpointed = model_of("AMS")
    checkpointed.gradient_checkpointing_enable()
    passes(causality_of(checkpointed, length=64))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_rounding_is_no_leak(precision):
    "A convolution by Fourier transform, whose sums depend on all of a text in their last digits."
    class Fourier(Mixer):
        size = 1.

        def leak(self, x, cache, segments):
            n, k = x.shape[1], torch.randn(x.shape[1], x.shape[2], generator=torch.Generator().manual_seed(0)) / 8
            spectrum = torch.fft.rfft(x.float(), 2*n, 1) * torch.fft.rfft(k, 2*n, 0)
            return torch.fft.irfft(spectrum, 2*n, 1)[:, :n].to(x.dtype)
    with as_letter(Fourier): passes(causality_of(model_of("YAYMY"), precision=precision))


def test_the_honest_part_of_the_cheats_passes():
    with as_letter(Honest):
        for settings in {}, dict(precision="bf16"), dict(documents="separate"): passes(
            causality_of(model_of("YA"), **settings))
        passes(causality_of(model_of("YM"), stateful=True))


def test_few_cuts_are_spread_and_said():
    model = model_of("A").eval()
    verdict, evidence = check_causality(model, plain_reader(model, 200), False, 4000)
    assert verdict == "pass" and "20 of 199 cuts, spread; a leak at 20.6% of the cuts is found with 99 %" in evidence
