"""Repairs and filters of single rows."""

import pytest

from hfadapt.core.errors import RequestError
from hfadapt.data import clean
from hfadapt.data.rows import Ledger, Row
from hfadapt.recipe.schema import Clean


def row(text, number=0, **columns):
    return Row("s", number, columns or {"text": text}, text, None, text)


@pytest.mark.parametrize(
    ("text", "mended"),
    [
        ("caf\u00c3\u00a9", "caf\u00e9"),
        ("e\u0301", "\u00e9"),
        ("a\u00a0b\u2003c", "a b c"),
        ("a\r\nb\rc", "a\nb\nc"),
        ("\ufeffa\x00b\u200bc", "abc"),
        ("    indented\n\tcode", "    indented\n\tcode"),
        ("\U0001f469\u200d\U0001f4bb ok", "\U0001f469\u200d\U0001f4bb ok"),
        ("plain", "plain"),
    ],
)
def test_repair(text, mended):
    assert clean.repair_text(text) == mended


def test_lone_surrogates_do_not_survive():
    assert clean.repair_text("a\ud800b").encode("utf-8")


def test_repair_notices_mojibake_and_keeps_completions_whole():
    mended, garbled = clean.repair({"a": " caf\u00c3\u00a9 ", "b": " x ", "n": 3}, ["a", "b", "n"], whole={"b"})
    assert (mended, garbled) == ({"a": "caf\u00e9", "b": " x ", "n": 3}, True)
    kept, garbled = clean.repair({"a": " caf\u00c3\u00a9 "}, ["a"], mend=False)
    assert (kept, garbled) == ({"a": " caf\u00c3\u00a9 "}, True)


def test_unusable_rows_are_dropped_by_reason():
    rows = [
        row("fine text", 0),
        row("  ", 1),
        row("ab", 2),
        row("x" * 50, 3),
        row("\ufffd" * 3 + " half gone", 4),
        Row("s", 5, {"prompt": "why", "completion": " "}, "why\n ", None, "why", form="completion"),
    ]
    ledger = Ledger()
    kept = clean.drop_unusable(rows, Clean(min_characters=3, max_characters=40), ledger)
    assert [each.row for each in kept] == [0]
    assert {each.where.row: each.reason for each in ledger.dropped} == {
        **{1: "empty", 2: "too-short", 3: "too-long"},
        **{4: "encoding-error", 5: "empty-completion"},
    }


@pytest.mark.parametrize("key", ["hf_" + "a1B2" * 6, "glpat-" + "a1B2" * 5, "github_pat_" + "a1_B2" * 5])
def test_keys_are_those_that_publishing_looks_for(key):
    assert clean.find_pii(f"use {key} here") == [("access key", 4, 4 + len(key))]


@pytest.mark.parametrize(("pii", "kept"), [("redact", 2), ("drop", 1)])
def test_personal_data(pii, kept):
    pytest.importorskip("phonenumbers")
    rows = [row("write to jane.doe@example.org or +1 415-555-2671", 0), row("version 2024 of 12 things", 1)]
    ledger = Ledger()
    result = clean.drop_unusable(rows, Clean(pii=pii), ledger)
    assert len(result) == kept
    assert ledger.steps["clean"]["rows_with_personal_data"] == 1
    if pii == "redact":
        assert result[0].columns["text"] == "write to [EMAIL] or [PHONE]"
        assert result[0].text == result[0].columns["text"]
    else:
        assert ledger.counts() == {"personal-data": 1}


def test_language_filter():
    pytest.importorskip("py3langid")
    english = "this is a rather long sentence that anyone would say is English, is it not?"
    german = "dies ist ein ziemlich langer Satz, den jeder f\u00fcr einen deutschen Satz halten w\u00fcrde, nicht wahr?"
    ledger = Ledger()
    kept = clean.drop_unusable([row(english, 0), row(german, 1), row("ok", 2)], Clean(language="en"), ledger)
    assert [each.row for each in kept] == [0, 2]
    assert ledger.counts() == {"other-language": 1}
    with pytest.raises(RequestError, match="does not know this language"):
        clean.drop_unusable([row(english)], Clean(language="xx"), Ledger())


@pytest.mark.parametrize(
    ("library", "settings", "extra"),
    [
        ("py3langid.langid", Clean(language="en"), "language"),
        ("phonenumbers", Clean(pii="drop"), "pii"),
    ],
)
def test_missing_extra_names_the_command(monkeypatch, library, settings, extra):
    import sys

    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(RequestError) as error:
        clean.drop_unusable([row("some text")], settings, Ledger())
    assert f"pip install 'hfadapt[{extra}]'" in str(error.value)
