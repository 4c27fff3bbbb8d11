"The panel without a browser: its buttons are clicked, its sliders moved."
import pytest
from hybrid_nb.use.generation import Generator
from hybrid_nb.use.panel import ChatPanel, panel_html


@pytest.fixture
def panel(talkers): return ChatPanel(talkers/"runs", prompt="The door was")


def go(panel):
    panel.write.click()
    panel.thread.join()


def test_two_models_answer_in_turn(panel, talkers):
    steps = talkers/"runs/tales/tale/checkpoints"
    panel.temperature.value, panel.seed.value, panel.max_new_tokens.value = .6, "3", 12
    panel.chosen[0].value, panel.chosen[1].value = (str(steps/f"step_00000{n}") for n in (240, 120))
    seen = []
    for box in panel.answers: box.observe(lambda change, box=box: seen.append(box), "value")
    go(panel)
    for box, choice in zip(panel.answers, panel.chosen):
        want = Generator(choice.value).generate("The door was", **panel.settings())
        assert box.value.split("<br>")[0] == panel_html("The door was", str(want)) and "12 tokens" in box.value
    assert [box is panel.answers[1] for box in seen].count(True) > 3
    assert any(a is not b for a, b in zip(seen[2:], seen[3:-3]))
    assert seen[2:8].count(panel.answers[0]) in (2, 3, 4)
    assert (panel.write.disabled, panel.stop.disabled) == (False, True) and len(panel.models) == 2


def test_stop(panel, talkers):
    panel.chosen[0].value = str(talkers/"runs/tales/tale/checkpoints/step_00000240")
    panel.max_new_tokens.value = 1000
    panel.answers[0].observe(lambda _: panel.stop.click(), "value")
    go(panel)
    assert not panel.write.disabled and panel.answers[1].value == "" and "small" not in panel.answers[0].value


@pytest.mark.parametrize("change, message", [
    (dict(prompt=""), "empty"), (dict(seed="x"), "must be a whole number"), (dict(seed="-2"), "seed -2")])
def test_what_is_refused_is_shown(panel, change, message):
    for k, v in change.items(): getattr(panel, k).value = v
    go(panel)
    assert message in panel.answers[0].value and "color" in panel.answers[0].value


def test_text_is_no_markup(panel):
    panel.prompt.value, panel.max_new_tokens.value = "<b>", 3
    go(panel)
    assert "&lt;b&gt;" in panel.answers[0].value


def test_a_folder_without_checkpoints(tmp_path):
    with pytest.raises(ValueError, match="no intact checkpoint"): ChatPanel(tmp_path)
