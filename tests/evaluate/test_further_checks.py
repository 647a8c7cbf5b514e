"""The stage hands its context to the security and drift checks, and writes what they answer into the cell."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
from tiny import command, labelled, recipe_fields, write_recipe, write_rows

from hfadapt.records.evidence import DriftRecord, SecurityRecord
from hfadapt.run_folder import Run


@pytest.fixture
def checks(monkeypatch):
    """Stands in for both modules and notes the contexts they are given."""
    seen = []

    def stand_in(name, function, record):
        def answer(context):
            seen.append((name, context))
            return record(context)

        module = ModuleType(name)
        setattr(module, function, answer)
        monkeypatch.setitem(sys.modules, name, module)

    stand_in(
        "hfadapt.evaluate.privacy.security",
        "check",
        lambda context: SecurityRecord(domain="one", target="this-machine", seconds=1.0),
    )
    stand_in(
        "hfadapt.evaluate.drift",
        "measure",
        lambda context: DriftRecord(
            domain="one",
            target="this-machine",
            reference="float32 base",
            rows=len(context.test),
            variants=(),
            limit_kl_nats=context.lock.evaluate.drift_limits.kl_nats,
            limit_points=0.5,
            seconds=1.0,
        ),
    )
    return seen


def test_both_get_the_same_context_and_can_be_switched_off(models, tmp_path, checks):
    write_rows(tmp_path / "one.jsonl", labelled(100))
    write_recipe(tmp_path / "tiny.yaml", recipe_fields(models / "encoder"))
    done = command("evaluate", "tiny.yaml", folder=tmp_path)
    assert done.code == 0, done.err
    folder = Run(tmp_path / "runs/tiny").cell("one", "this-machine").folder
    (first, context), (second, same) = checks
    assert [name.split(".")[-1] for name in (first, second)] == ["security", "drift"], (
        "drift merges the adapter away, so it is last"
    )
    assert context is same
    assert len(context.rows) == 24
    assert SecurityRecord.read(folder / "security.json").seconds == 1.0
    assert DriftRecord.read(folder / "drift.json").rows == 24
    settings = ["evaluate.security=false", "evaluate.drift=false"]
    assert command("evaluate", "tiny.yaml", *settings, folder=tmp_path).code == 0
    assert len(checks) == 2
    assert not (folder / "security.json").exists(), "it was about another evaluation"
    assert not (folder / "drift.json").exists()
