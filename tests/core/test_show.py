"""The three views: units, alignment, escaping."""

from __future__ import annotations

import pytest

from hfadapt.core.errors import HfadaptError
from hfadapt.core.show import (
    WIDTH,
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


def test_wrapped_columns_share_what_is_left_of_a_line() -> None:
    long = "word " * 60
    table = Table(["name", "value", "reason"], [["a", "1", long + "\n  not b: " + long]], wrap=frozenset({"reason"}))
    lines = as_text([table]).splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert len(lines) > 6
    assert " ".join(as_text([table]).split()).count("word") == 120
    assert "  not b:" in as_text([table])
    assert "<br>" in as_markdown([table])
    assert "<br>" in as_html([table])


def test_a_wrapped_address_is_not_broken() -> None:
    address = "https://example.org/" + "x" * 90
    assert address in as_text([Table(["a", "b"], [["1", f"see {address}"]], wrap=frozenset({"b"}))])


def test_latencies_change_their_unit_at_a_second() -> None:
    assert [show_latency(value) for value in (0.0213, 0.9994, 1.1, 12.34)] == ["21.3 ms", "999 ms", "1.1 s", "12.3 s"]
    assert show_latency(None) == "not measured"


def test_pictures_are_shown_in_html_alone() -> None:
    blocks = [Text("before"), Picture("A <plot>", "<svg></svg>"), Text("after")]
    assert as_text(blocks) == "before\n\nafter"
    assert "svg" not in as_markdown(blocks)
    assert "<figcaption>A &lt;plot&gt;</figcaption><svg></svg>" in as_html(blocks)
