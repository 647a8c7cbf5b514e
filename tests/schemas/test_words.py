"""Where words begin and end in running text."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfadapt.schemas._words import Words, words_in
from hfadapt.schemas.tokens import KIND


def cut(text):
    return [text[start:end] for start, end in words_in(text)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("I live in Paris.", "I live in Paris ."),
        ("(IBM), the U.S. and J. Smith's", "( IBM ) , the U.S. and J. Smith 's"),
        ("don't pay $5 or 3.5%!", "don't pay $ 5 or 3.5 % !"),
        ('"So," he said... e-mail', '" So , " he said ... e-mail'),
        ("#topic @user: https://a.b/c?d=1.", "#topic @user : https://a.b/c?d=1 ."),
        ("\u0939\u093f\u0928\u094d\u0926\u0940, -- :-)", "\u0939\u093f\u0928\u094d\u0926\u0940 , -- :-)"),
        ("  ", ""),
    ],
)
def test_signs_beside_words_are_words(text, words):
    assert cut(text) == words.split()


@given(st.text(max_size=60))
def test_nothing_but_white_space_is_left_out(text):
    assert "".join(cut(text)) == "".join(text.split())
    places = words_in(text)
    assert all(start < end for start, end in places)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(places))


def test_words_that_are_given_stay():
    asked = KIND.question({"tokens": ["Mr.", "X", "(a)"]})
    assert isinstance(asked, Words)
    assert asked == "Mr. X (a)"
    assert cut(asked) == ["Mr.", "X", "(a)"]
    assert cut(str(asked)) == ["Mr", ".", "X", "(", "a", ")"]
