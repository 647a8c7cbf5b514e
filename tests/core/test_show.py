"""The three views: units, alignment, escaping."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

import hfadapt
from hfadapt import Recipe
from hfadapt.core.errors import HfadaptError
from hfadapt.core.show import (
    Heading,
    Picture,
    Shown,
    Table,
    Text,
    as_html,
    as_markdown,
    as_text,
    show_bytes,
    show_latency,
    show_number,
    show_seconds,
)
from hfadapt.core.spec import Record, Spec
from hfadapt.tasks import Answer
from hfadapt.tasks._answers import Answers


def starts(line, *cells):
    """The columns of a terminal in which cells begin."""
    return [cell_len(line[: line.index(cell)]) for cell in cells]


def test_characters_of_double_width_take_two_columns():
    rows = [["正常な生地", "12", "織物"], ["plain", "1,234", "cloth"], ["e\u0301te\u0301", "7", "x"]]
    head, rule, *lines = as_text([Table(["label", "train", "of"], rows, frozenset({"train"}))], 60).split("\n")
    assert rule == "----------  -----  -----"
    assert [starts(line, row[-1])[0] for line, row in zip(lines, rows, strict=True)] == [19] * 3
    assert starts(head, "of") == [19]
    [title, line] = as_text([Heading("生地", 1)]).split("\n")
    assert cell_len(title) == len(line)


def test_sentences_of_double_width_are_broken_and_names_are_not():
    sentence = "これは布地の写真であり、縦糸と横糸の間に小さな傷があります。" * 3
    text = as_text([Table(["name", "what"], [["正常な生地", sentence]])], 50)
    assert max(map(cell_len, text.split("\n"))) <= 50
    assert "正常な生地" in text
    assert "".join(text.split()).replace("正常な生地", "").endswith(sentence)


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (150 * 1024, "150 KiB"),
        (3 << 30, "3.0 GiB"),
        (None, "not measured"),
    ],
)
def test_bytes(count, shown):
    assert show_bytes(count) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.04, "0.0 s"),
        (9.96, "10.0 s"),
        (12.4, "12 s"),
        (75, "1 min 15 s"),
        (119.7, "2 min 00 s"),
        (3720, "1 h 02 min"),
        (None, "not measured"),
    ],
)
def test_seconds(seconds, shown):
    assert show_seconds(seconds) == shown


@pytest.mark.parametrize(("value", "shown"), [(1234567, "1,234,567"), (0.12345, "0.123"), (None, "not measured")])
def test_numbers(value, shown):
    assert show_number(value) == shown


BLOCKS = [
    Heading("Title", 1),
    Text("words"),
    Text("code", code=True),
    Table(["name", "size"], [["a|b", "1"], ["<c>", "100"]], frozenset({"size"})),
]


def test_text_is_aligned():
    assert as_text(BLOCKS).endswith("name  size\n----  ----\na|b      1\n<c>    100")


def test_markdown_escapes_bars():
    shown = as_markdown(BLOCKS)
    assert "# Title" in shown
    assert "| a\\|b | 1 |" in shown
    assert "| --- | ---: |" in shown
    assert "```\ncode\n```" in shown


def test_html_escapes_everything():
    shown = as_html([Heading("<h>"), Text("<t>"), *BLOCKS])
    for word in ("<h>", "<t>", "<c>"):
        assert word not in shown
    assert "&lt;c&gt;" in shown
    assert '<th style="text-align:right">size</th>' in shown


def test_rows_of_another_width_are_an_error():
    with pytest.raises(HfadaptError, match="1 cells for 2 columns"):
        Table(["a", "b"], [["x"]])


def test_an_object_shows_itself_in_a_notebook():
    class Thing(Shown):
        def blocks(self):
            return [Text("hello")]

    thing = Thing()
    assert (str(thing), thing._repr_markdown_(), thing._repr_html_()) == ("hello", "hello\n", "<p>hello</p>")


def test_text_is_wrapped_to_the_width_and_nothing_is_lost() -> None:
    long = "word " * 60
    table = Table(["name", "value", "reason"], [["a", "1", long + "\n  not b: " + long]])
    lines = as_text([table], 100).splitlines()
    assert max(map(len, lines)) <= 100
    assert len(lines) > 6
    assert " ".join(lines).count("word") == 120
    assert any(line.strip().startswith("not b:") for line in lines)
    assert "<br>" in as_markdown([table])
    assert "<br>" in as_html([table])


WORD = st.text("abcdefghij", min_size=1, max_size=8)
WORDS = st.lists(WORD, max_size=12).map(" ".join)


@given(data=st.data(), width=st.integers(20, 200), columns=st.integers(1, 8))
def test_every_line_of_the_text_view_is_within_the_width(data: st.DataObject, width: int, columns: int) -> None:
    names = data.draw(st.lists(WORDS, min_size=columns, max_size=columns))
    row = st.lists(WORDS, min_size=columns, max_size=columns)
    rows = data.draw(st.lists(row, min_size=1, max_size=4))
    right = frozenset(data.draw(st.sets(st.sampled_from(names))))
    shown = as_text([Heading(data.draw(WORDS), 1), Text(data.draw(WORDS)), Table(names, rows, right)], width)
    assert all(len(line) <= width for line in shown.splitlines())
    assert not {word for row in rows for cell in row for word in cell.split()} - set(shown.replace(":", " ").split())


def test_the_terminal_says_how_wide_text_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for width in (40, 120):
        monkeypatch.setenv("COLUMNS", str(width))
        assert width - 8 < max(map(len, as_text([Text("word " * 100)]).splitlines())) <= width


def test_figures_are_broken_only_where_there_is_no_other_way() -> None:
    table = Table(["what it is", "gain"], [["some words that may go on", "+0.1 [+0.0, +0.2]"]], frozenset({"gain"}))
    assert "+0.1 [+0.0, +0.2]" in as_text([table], 26)
    assert "+0.1 [+0.0, +0.2]" not in as_text([table], 20)


def test_a_table_too_wide_for_its_words_is_shown_row_by_row() -> None:
    table = Table(["domain", "adapter", "rank"], [["tweets", "x" * 12, "8"], ["news", "y" * 12, ""]])
    assert as_text([table], 18).splitlines() == [
        *("domain: tweets", "  adapter:", "  " + "x" * 12, "  rank: 8", ""),
        *("domain: news", "  adapter:", "  " + "y" * 12),
    ]


def test_an_address_stays_whole_on_a_line_of_its_own() -> None:
    address = "https://example.org/" + "x" * 70
    lines = as_text([Table(["a", "b"], [["1", f"see {address}"], ["2", "short"]])], 80).splitlines()
    assert lines == ["a  b", "-" + " " * 2 + "-" * 77, "1", "    see", f"    {address}", "2  short"]


def test_latencies_change_their_unit_at_a_second() -> None:
    assert [show_latency(value) for value in (0.0213, 0.9994, 1.1, 12.34)] == ["21.3 ms", "999 ms", "1.1 s", "12.3 s"]
    assert show_latency(None) == "not measured"


def test_pictures_are_shown_in_html_alone() -> None:
    blocks = [Text("before"), Picture("A <plot>", "<svg></svg>"), Text("after")]
    assert as_text(blocks) == "before\n\nafter"
    assert "svg" not in as_markdown(blocks)
    assert "<figcaption>A &lt;plot&gt;</figcaption><svg></svg>" in as_html(blocks)


# --- records and other public objects --------------------------------------------------------------------------------


class Part(Spec):
    name: str
    value: float


class Noted(Record):
    """A record without a view of its own."""

    FILE = "noted.json"
    words: str
    share: float
    counts: dict[str, int] = {}
    parts: tuple[Part, ...] = ()
    nothing: str | None = None


def test_a_record_shows_all_that_it_says_and_a_table_for_each_list() -> None:
    record = Noted(words="a <b>", share=0.25, counts={"x": 1200}, parts=(Part(name="one", value=1e-9),))
    text, page = str(record), record._repr_html_()
    assert text.startswith("Noted\n=====")
    assert "a <b>" in text
    assert "x: 1,200" in text
    assert "name  value\n----  -----\none   1e-09" in text
    assert "nothing" not in text
    assert "a &lt;b&gt;" in page
    assert page.count("<table>") == 2


def test_answers_are_a_list_and_show_themselves_as_a_table() -> None:
    given = Answers([Answer(text="so <good>", label="good", probability=0.9), Answer(text="no", label="bad")])
    assert given == [given[0], given[1]]
    assert "<td>so &lt;good&gt;</td><td>good (90%)</td>" in given._repr_html_()
    assert given[1]._repr_markdown_() == "| text | answer |\n| --- | --- |\n| no | bad |\n"
    assert str(given[0]) == "good (90%)"


def test_a_recipe_shows_what_was_said_in_it() -> None:
    recipe = Recipe(name="two", model="sample:minilm-l6", task="text-classification", domains={"a": "a.csv"})
    shown = recipe._repr_markdown_()
    assert shown.startswith("```\nname: two\nmodel: sample:minilm-l6\n")
    assert "train" not in shown


def test_every_public_object_has_a_view_for_notebooks() -> None:
    kinds = [kind for name in hfadapt.__all__ if isinstance(kind := getattr(hfadapt, name), type)]
    assert len(kinds) > 8
    assert not [kind for kind in kinds if not issubclass(kind, (Shown, Exception))]
