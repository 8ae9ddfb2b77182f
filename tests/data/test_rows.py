"""Sequences that make their items when they are asked for."""

import pytest

from rlframe.data.rows import Held, Joined, Mapped, Picked, lazy, names_of
from rlframe.errors import RecipeError


def letters(text):
    return Held(list(text))


CASES = {
    "held": (letters("abcde"), "abcde"),
    "picked": (Picked(letters("abcde"), [4, 0, 0, 2]), "eaac"),
    "picked twice": (Picked(Picked(letters("abcde"), [4, 0, 3]), range(1, 3)), "ad"),
    "joined": (Joined([letters("ab"), letters(""), letters("cde"), letters("")]), "abcde"),
    "mapped": (Mapped(letters("abc"), str.upper), "ABC"),
    "nothing": (Joined([]), ""),
}


@pytest.mark.parametrize("case", CASES)
def test_a_lazy_sequence_is_a_sequence(case):
    found, wanted = CASES[case]
    size = len(wanted)
    assert len(found) == size
    assert list(found) == list(wanted)
    assert [found[i] for i in range(-size, size)] == list(wanted * 2)
    for piece in (slice(1, None), slice(None, -1), slice(None, None, 2), slice(None, None, -1)):
        assert list(found[piece]) == list(wanted[piece])
    for index in (size, -size - 1):
        with pytest.raises(IndexError):
            found[index]
    indices = list(range(size))[::-1] * 2
    assert found.many(indices) == [wanted[i] for i in indices]


def test_items_are_made_when_they_are_asked_for_and_in_blocks():
    asked = []

    class Counted(Held):
        def many(self, indices):
            asked.append(len(indices))
            return super().many(indices)

    found = Mapped(Picked(Counted(range(2500)), range(2500)), lambda n: 2 * n)
    assert asked == []
    assert found[7] == 14
    assert asked == [1]
    assert sum(found) == sum(range(0, 5000, 2))
    assert asked == [1, 1000, 1000, 500]


def test_an_error_of_a_function_has_the_place_of_the_item():
    def refuse(letter):
        if letter == "c":
            raise RecipeError("not this one")
        return letter

    found = Mapped(Picked(Joined([letters("ab"), letters("xc")]), [0, 3]), refuse)
    assert found[0] == "a"
    assert found.place(1) == "row 2"
    with pytest.raises(RecipeError, match=r"^row 2: not this one$"):
        list(found)


def test_a_lazy_sequence_stays_what_it_is():
    found = letters("a")
    assert lazy(found) is found
    assert list(lazy("ab")) == ["a", "b"]


def test_the_columns_of_rows_are_those_that_any_of_them_has():
    assert names_of(Held([{"a": 1}, {"c": 1, "a": 2}, {"b": 1}])) == ("a", "c", "b")
