"""Targets: the catalogue in targets/*.toml, and `this-machine` by detection."""

from __future__ import annotations

THIS_MACHINE = "this-machine"


def names() -> tuple[str, ...]:
    return (THIS_MACHINE,)
