"A letter of the package has to be known in several places; whoever adds one is told here which of them is missing."
import pytest
from hybrid_nb.audit.reach import expected_reach
from hybrid_nb.core.patterns import blocks, colors
from hybrid_nb.models.config import HybridConfig
from hybrid_nb.models import registry

letters = sorted(registry._built_in)
yours = "QY" # for the examples, and for whoever registers a mixer of his own


@pytest.mark.parametrize("letter", letters)
def test_a_letter_of_the_package_is_known_everywhere(letter):
    assert letter in blocks, "give it a few words in core.patterns.blocks"
    assert letter in colors, "give it a colour in core.patterns.colors"
    seen = expected_reach(letter, HybridConfig(pattern=letter))
    assert seen[0] > 0, "say in audit.reach.expected_reach how far back it has to see"


def test_letters_for_users_stay_free(): assert not set(yours) & set(letters)
