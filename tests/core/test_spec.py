"""Specs and records: unknown fields, versions, and files that are old or new but never half."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from hfadapt.core.errors import DataError, HfadaptError, Problem, RequestError, RunError, choice_problem, nearest
from hfadapt.core.spec import Record, write_bytes, write_text


class Note(Record):
    text: str
    number: float = 0.0


class Other(Note):
    record_version = 2


def test_a_record_reads_back(tmp_path):
    note = Note(text="ä", number=1.5)
    assert Note.read(note.write(tmp_path / "a/b/note.json")) == note
    assert json.loads((tmp_path / "a/b/note.json").read_text())["record"] == "Note"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no note.json yet"),
        ("{", "not readable JSON"),
        ("[]", "not readable JSON"),
        ('{"record": "Other", "version": 1, "text": "x"}', "another kind or version"),
        ('{"record": "Note", "version": 9, "text": "x"}', "another kind or version"),
        ('{"record": "Note", "version": 1}', "does not match its schema"),
        ('{"record": "Note", "version": 1, "text": "x", "more": 1}', "does not match its schema"),
    ],
)
def test_what_is_not_a_record_is_refused(tmp_path, content, message):
    path = tmp_path / "note.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(RunError, match=message) as caught:
        Note.read(path)
    assert str(path) in str(caught.value)


def test_records_are_frozen_and_refuse_numbers_that_are_none(tmp_path):
    note = Note(text="x")
    with pytest.raises(ValidationError):
        note.text = "y"
    with pytest.raises(ValidationError):
        Note(text="x", number=float("nan"))
    with pytest.raises(ValueError, match="JSON compliant"):
        note.model_copy(update={"number": float("inf")}).write(tmp_path / "note.json")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_text(path, "old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_bytes(path, b"new")
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_where_nothing_can_be_written_the_file_that_was_meant_is_named(tmp_path, monkeypatch):
    def read_only(path, *_, **__):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "open", read_only)
    monkeypatch.setattr(Path, "unlink", read_only)
    with pytest.raises(OSError) as caught:
        write_text(tmp_path / "file", "new")
    assert caught.value.filename == str(tmp_path / "file")


def test_a_problem_has_its_four_parts():
    text = str(Problem("it is wrong", "r.yaml:3", "'x'", "a, b", "use a"))
    assert text.splitlines() == ["r.yaml:3: it is wrong", "  got:     'x'", "  allowed: a, b", "  fix:     use a"]


def test_errors_carry_all_problems_and_an_exit_code():
    error = RequestError("two things", problems=[Problem("one"), Problem("two")])
    assert str(error) == "two things\none\ntwo"
    assert (error.exit_code, DataError("x").exit_code, RunError("x").exit_code, HfadaptError("x").exit_code) == (
        2,
        2,
        1,
        1,
    )


def test_the_nearest_name():
    assert nearest("lorra", ["lora", "dora", "head"]) == "lora"
    assert nearest("zzz", ["lora"]) is None
    assert choice_problem("no", "zzz", ["b", "a"]).fix == "use one of the allowed names"


def test_errors_survive_a_trip_to_another_process():
    """Errors of the main process are pickled to the others."""
    import pickle

    error = DataError("bad", place="rows.jsonl:3", got="'x'", fix="mend it")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is DataError
    assert str(again) == str(error)
