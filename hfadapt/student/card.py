"""What the card says of a student: beside the adapted model, in size, speed, metrics, checks and parts of the rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from hfadapt.records.stages import EvaluationRecord
from hfadapt.records.student import StudentRecord

if TYPE_CHECKING:
    from hfadapt.card.facts import Facts

SLICES_SHOWN = 3


def section(facts: Facts) -> str:
    """The student beside the adapted model."""
    at = f"{StudentRecord.FILE}#/"
    if not facts.records.value(at + "made"):
        return f"No smaller model was made: {facts(at + 'note', 'text')}."
    value = facts.records.value
    how = (
        "was cut out of the adapted one"
        if value(at + "base") is None
        else f"({facts(at + 'base', 'public')}) was taken"
    )
    lines = [
        f"A smaller model {how} and trained on the adapted model's answers: "
        f"{', '.join(_shape(facts, at))}. On the same "
        f"{facts(at + 'rows', 'integer')} test rows it loses {facts(at + 'points', 'decimal')} points of "
        f"{facts(at + 'metric', 'code')} [{facts(at + 'points_low', 'decimal')}, "
        f"{facts(at + 'points_high', 'decimal')}]; {facts(at + 'limit', 'decimal')} were allowed.",
        "",
        "| | baseline | adapted model | student | difference |",
        "|---|---:|---:|---:|---:|",
        *([of_all] if (of_all := _integer_share(facts, at)) else []),
        f"| one row | | {facts(at + 'adapted_seconds', 'latency')} | {facts(at + 'seconds', 'latency')} | |",
        f"| thirty-two rows at once | | {facts(at + 'adapted_seconds_of_32', 'latency')} | "
        f"{facts(at + 'seconds_of_32', 'latency')} | |",
        *_compared(facts, at),
    ]
    lines += list(_slices(facts, at))
    if value(at + "texts"):
        lines.append(f"\nIt also learned {facts(at + 'texts', 'integer')} texts without labels by the answers.")
    if value(at + "on_policy") is not None and value(at + "on_policy/kept"):
        lines.append(
            f"\nThen it learned on {facts(at + 'on_policy/rows', 'integer')} answers that it had written itself: loss "
            f"{facts(at + 'on_policy/before', 'decimal')} before, {facts(at + 'on_policy/after', 'decimal')} after, in "
            "nats of a label of validation rows."
        )
    if value(at + "cut_otherwise"):
        share = facts(at + "cut_otherwise", "tiny-share")
        lines.append(
            f"\nIts smaller vocabulary cuts {share} of the test rows into other tokens than the adapted model's."
        )
    lines += [*_integers(facts, at), *_tried(facts, at)]
    return "\n".join(lines)


def _shape(facts: Facts, at: str) -> Iterator[str]:
    """What it has of the adapted model."""
    units = "units in a feed-forward part"
    for name, said in (("layers", "layers"), ("width", units), ("tokens", "tokens"), ("parameters", "parameters")):
        whole = facts.records.value(f"{at}adapted/{name}")
        if whole is not None and facts.records.value(f"{at}student/{name}") is not None:
            one, other = (facts(f"{at}{which}/{name}", "integer") for which in ("student", "adapted"))
            yield f"{one} of {other} {said}"


def _integer_share(facts: Facts, at: str) -> str:
    """A line of the table; nothing where it could not be counted."""
    shares = (facts.records.file(StudentRecord.FILE)[name].get("integer_share") for name in ("adapted", "student"))
    if any(each is None for each in shares):
        return ""
    both = " | ".join(facts(f"{at}{name}/integer_share", "percent") for name in ("adapted", "student"))
    return f"| operations that eight bits do in whole numbers | | {both} | |"


def _tried(facts: Facts, at: str) -> Iterator[str]:
    """The shapes among which short trainings have decided."""
    every = facts.records.file(StudentRecord.FILE).get("considered", ())
    tried = [number for number, each in enumerate(every) if each.get("tried_steps")]
    if not tried:
        return
    yield f"\nOf the shapes whose export fits {facts(at + 'target', 'code')} these were trained for a while:\n"
    yield "| layers | units | export, estimated | loss of validation rows | taken |"
    yield "|---:|---:|---:|---:|---|"
    for number in tried:
        forms = (("layers", "integer"), ("ffn", "percent"), ("bytes", "bytes"), ("tried_loss", "decimal"))
        said = " | ".join(facts(f"{at}considered/{number}/{name}", form) for name, form in forms)
        yield f"| {said} | {'yes' if every[number]['taken'] else ''} |"


def _compared(facts: Facts, at: str) -> Iterator[str]:
    """Metrics, checks and bytes of both, a line of the table each."""
    value = facts.records.value
    before = value(at + "before")
    for number, metric in enumerate(value(at + "metrics")):
        one = f"{at}metrics/{number}"
        base = facts(f"{at}before/{metric['name']}", "decimal") if metric["name"] in before else ""
        yield f"| {facts(one + '/name', 'code')} | {base} | {_both(facts, one)} |"
    for number, check in enumerate(facts.records.file(StudentRecord.FILE).get("checks", ())):
        one = f"{at}checks/{number}"
        name = facts(one + "/name", "code")
        said = f"{name} of membership inference" if check["part"] == "membership" else f"lost under {name}"
        yield f"| {said} | | {facts(one + '/adapted', 'decimal')} | {facts(one + '/student', 'decimal')} | |"
    parts = {name: value(f"{at}{name}/parts") for name in ("adapted", "student")}
    for number, part in enumerate(parts["student"]):
        if part["bytes"] or parts["adapted"][number]["bytes"]:
            both = " | ".join(facts(f"{at}{name}/parts/{number}/bytes", "bytes") for name in parts)
            yield f"| {part['name']} | | {both} | |"


def _both(facts: Facts, at: str) -> str:
    """The adapted model's value, the student's and their difference with its interval, in three cells."""
    found = facts.records.value(at)
    change = facts(f"{at}/delta", "signed") if found.get("delta") is not None else ""
    if found.get("low") is not None and found.get("high") is not None:
        change += f" [{facts(f'{at}/low', 'signed')}, {facts(f'{at}/high', 'signed')}]"
    return f"{facts(f'{at}/base', 'decimal')} | {facts(f'{at}/adapter', 'decimal')} | {change}"


def _slices(facts: Facts, at: str) -> Iterator[str]:
    """The parts of the test rows on which the student loses the most."""
    every = facts.records.file(StudentRecord.FILE).get("slices", ())
    better = {each["name"]: each["higher_is_better"] for each in facts.records.value(at + "metrics")}
    gains = {
        number: each["delta"] * (1 if better.get(each["metric"], True) else -1)
        for number, each in enumerate(every)
        if each.get("delta") is not None
    }
    worst = sorted((number for number, gain in gains.items() if gain < 0), key=lambda number: gains[number])
    worst = worst[:SLICES_SHOWN]
    if worst:
        yield "\nWhere it loses the most, by the same metric:\n"
        yield "| part of the test rows | rows | baseline | adapted model | student | difference |"
        yield "|---|---:|---:|---:|---:|---:|"
    known = facts.records.file(EvaluationRecord.FILE).get("slices", ()) if worst else ()
    places = {(each["by"], each["name"]): place for place, each in enumerate(known)}
    for number in worst:
        one = f"{at}slices/{number}"
        form = {"source": "public", "group": "quote"}.get(every[number]["by"], "code")
        name = f"{every[number]['by']} {facts(one + '/name', form)}"
        place = places.get((every[number]["by"], every[number]["name"]))
        base = "" if place is None else facts(f"{EvaluationRecord.FILE}#/slices/{place}/base", "decimal")
        yield f"| {name} | {facts(one + '/rows', 'integer')} | {base} | {_both(facts, one)} |"


def _integers(facts: Facts, at: str) -> Iterator[str]:
    """What the student is to hardware that computes in whole numbers."""
    value = facts.records.value
    if value(at + "student/activation") != value(at + "adapted/activation"):
        one, other = (facts(f"{at}{name}/activation", "code") for name in ("student", "adapted"))
        yield f"\nIts activations are {one} in the place of {other}."
    if value(at + "rounding") is not None:
        said = (
            f"\nRounding it to eight bits costs {facts(at + 'rounding/points', 'decimal')} points and "
            f"{facts(at + 'rounding/kl_nats', 'decimal')} nats per label of validation rows, before it is written"
        )
        if value(at + "rounding/trained"):
            said += f"; in its last {facts(at + 'rounding/trained', 'integer')} steps it has learned how it is rounded"
        yield f"{said}."
