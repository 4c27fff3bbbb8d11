"""Patterns that are right, and what the messages say of those that are not."""
import pytest
from hybrid_nb.core.patterns import parse_pattern


@pytest.mark.parametrize("pattern, want", [
    ("A", "A"), ("A12", "A"*12), ("((A2M)2F)2", "AAMAAMFAAMAAMF"), ("A1024", "A"*1024), ("A007", "A"*7)])
def test_expands(pattern, want): assert parse_pattern(pattern) == want


@pytest.mark.parametrize("pattern, parts", [
    ("AMxA", ["'AMxA'", "unknown block 'x' at position 2", "known: A, F, G, L, M, S, W"]),
    ("AmA", ["lower-case 'm'", "did you mean 'M'?", "position 1"]),
    ("A M", ["white space ' ' at position 1"]),
    (" AM", ["position 0"]),
    ("AM\n", ["position 2"]),
    ("(AM", ["'(' is never closed at position 0"]),
    ("A((M)F", ["position 1"]),
    ("AM)2", ["')' without '(' at position 2"]),
    ("A()M", ["empty brackets at position 1"]),
    ("4A", ["'4' with no block"]),
    ("A0", ["repeat of 0 at position 1"]),
    ("A1025", ["more than 1024 blocks at position 1"]),
    ("((A64)64)64", ["more than 1024"]),
    ("A" + "9"*5000, ["more than 1024"]),
    ("A"*1025, ["more than 1024 blocks at position 1024"]),
    ("A-M", ["unknown block '-'"]),
    ("\u0391", ["unknown block"]),
    ("", ["pattern ''", "at least one block"]),
    (None, ["pattern None"]),
    ("A\u0662", ["with no block"]),
], ids=lambda x: repr(x)[:12] if not isinstance(x, list) else "")
def test_refuses_and_says_where(pattern, parts):
    with pytest.raises(ValueError) as e: parse_pattern(pattern)
    assert all(part in str(e.value) for part in parts), str(e.value)
