"""What is looked for in generations: spans that have to be repeated, Wilson's interval, personal data by kind."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfadapt.data.clean import find_pii, pii_kinds, pii_scrubber
from hfadapt.evaluate.privacy.regurgitation import CONTINUED_TOKENS, opening, repeated, span, wilson
from hfadapt.modalities import IGNORED
from hfadapt.modalities.text import text_example


def example(prompt, *answers):
    """Unlabelled and labelled stretches in turn."""
    labels = [IGNORED] * prompt
    for number, length in enumerate(answers):
        labels += [7] * length if number % 2 == 0 else [IGNORED] * length
    return text_example(tuple(range(len(labels))), tuple(labels), length=len(labels), row=0)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (example(5, 20), (0, 20)),
        (example(5, 50), (0, CONTINUED_TOKENS)),
        (example(5, 8), (0, 8)),
        (example(5, 7), None),
        (example(5, 12, 3, 40), (0, 12)),
        (example(5, 3, 3, 40), None),
        (example(0, 21), (10, 20)),
        (example(0, 200), (32, 64)),
        (example(0, 9), None),
        (example(5), None),
    ],
)
def test_what_has_to_be_repeated(row, expected):
    assert span(row) == expected


@given(st.integers(0, 40), st.integers(0, 60))
def test_wilson_is_the_score_interval(hits, more):
    rows = hits + more
    if not rows:
        return
    found = wilson(hits, rows, 0.95)
    # Its ends are the shares from which the one found is 1.96 standard deviations away (Wilson 1927).
    for end in (found.low, found.high):
        assert abs(found.value - end) == pytest.approx(1.959963984540054 * (end * (1 - end) / rows) ** 0.5, abs=1e-12)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.rows == rows


def test_generations_begin_before_the_answer():
    assert opening(example(5, 20)) == (0, 1, 2, 3, 4)
    assert opening(example(0, 20)) == (0, 1, 2, 3)
    assert len(opening(example(500, 5))) == 128


def test_personal_data_by_kind_and_place():
    text = "mail ann.b@example.org or call +1 650-253-0000, key hf_" + "a1B2" * 9
    found = find_pii(text)
    assert [(kind, text[start:end]) for kind, start, end in found] == [
        ("e-mail address", "ann.b@example.org"),
        ("telephone number", "+1 650-253-0000"),
        ("access key", "hf_" + "a1B2" * 9),
    ]
    assert set(pii_kinds()) == {kind for kind, _, _ in found}
    assert find_pii("nothing here 12") == []
    assert pii_scrubber()(text) == ("mail [EMAIL] or call [PHONE], key [KEY]", 3)


@given(st.text(alphabet="ab@.1234567 +-", max_size=60))
def test_pieces_are_in_order_and_apart(text):
    ends = [0]
    for _, start, end in find_pii(text):
        assert ends[-1] <= start < end <= len(text)
        ends.append(end)


def test_what_stands_in_training_rows_too_is_counted_as_often_as_it_was_found():
    read = []

    def texts():
        for text in ("write to a@b.org", "nothing", "or c@d.org", "never read"):
            read.append(text)
            yield text

    assert repeated({"a@b.org": 2, "c@d.org": 1}, texts()) == 3
    assert "never read" not in read
    assert repeated({"a@b.org": 2, "x@y.org": 5}, texts()) == 2
    read.clear()
    assert repeated({}, texts()) == 0
    assert read == []
