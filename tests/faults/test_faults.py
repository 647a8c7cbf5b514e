"""Every fault of the list is put in, named, and survived; what it says is what docs/faults.md says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from listed import FAULTS
from place import Place, Shared

DOC = Path(__file__).parents[2] / "docs/faults.md"


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return Shared(tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize(
    "fault", [pytest.param(each, id=each.name, marks=pytest.mark.slow if each.slow else ()) for each in FAULTS]
)
def test_it_is_named_and_survived(shared, fault):
    outcome = fault.put(Place(shared))
    assert outcome.wrong == ()


def test_the_document_has_every_fault():
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \|", DOC.read_text(), re.MULTILINE)
    assert rows == [(str(fault.number), fault.name) for fault in FAULTS]
