"""Texts as examples: what is held of a token."""

from hfadapt.modalities.text import text_example, token_ids


def test_a_token_is_held_once_for_all_rows():
    one, other = (text_example([int("70001"), 5], [-100, int("70001")], length=2, row=row) for row in range(2))
    assert token_ids(one) == token_ids(other) == (70001, 5)
    assert token_ids(one)[0] is token_ids(other)[0] is one.labels[1]


def test_numbers_that_are_equal_stay_of_their_kind():
    text_example([1, -100], [], length=2, row=0)
    labels = text_example([1], [1.0, -100.0, True], length=1, row=0).labels
    assert [type(label) for label in labels] == [float, float, bool]
