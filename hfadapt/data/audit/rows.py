"""Faults that the prepared rows show by themselves, one function each: splits, labels, columns, encoding.

Every check looks at what training will see (`View`) and yields findings that name rows and the fix. A hard finding
stops the run, a soft one warns.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from hfadapt.core import registry
from hfadapt.core.show import show_count
from hfadapt.data import clean, duplicates, mistaken_columns, verdicts
from hfadapt.data import columns as format
from hfadapt.data.audit.findings import CUT_OFF, NAMED_ROWS, Check, View, finding, level_for
from hfadapt.data.labels import some
from hfadapt.data.lost import CLASS_LOST
from hfadapt.data.rows import GROUP, SPLITS, Row, as_row, fold, text_key, tokens
from hfadapt.files import Doubt
from hfadapt.files.places import Place, name_rows
from hfadapt.records.gaps import HELD_OUT, said_of, unscored
from hfadapt.records.stages import Finding

MEANT = ("over-train-rows", "source-weight", verdicts.BAD, "averaged", CUT_OFF)
"""Reasons for which rows are dropped as the recipe or the data asks."""
MANY_DROPPED = 0.3
NOT_TEXT = "not-text"
LEAST_OF_CLASS, ENOUGH_OF_CLASS, RARE_SHARE = 5, 100, 0.1
"""Training rows of a class: fewer are always few, as many never are, and between them a part of an even share."""

# --- splits ----------------------------------------------------------------------------------------------------------


def empty_splits(view: View) -> Iterator[Finding]:
    """There is nothing to train on, to validate with, or to score."""
    for split in SPLITS:
        if not view.rows.get(split):
            yield finding(
                f"{split}-empty",
                "hard",
                f"the {split} split has no rows",
                fix="give more data, or a larger data.validation / data.test",
            )
    for split in ("validation", "test"):
        if 0 < len(view.rows.get(split, ())) < 20:
            rows = len(view.rows[split])
            yield finding(
                f"{split}-small",
                "soft",
                f"the {split} split has {show_count(rows, 'row')} only, its score will be rough",
                fix="give more data",
            )


def mixed_forms(view: View) -> Iterator[Finding]:
    """Rows of one domain have different forms."""
    rows = [row for split in SPLITS for row in view.rows.get(split, ())]
    needs = view.schema.columns
    odd = [row for row in rows if any(row.get(name) is None for name in needs)]
    if odd:
        yield finding(
            "mixed-forms",
            "hard",
            f"rows lack {' or '.join(needs)}, which the other rows have",
            odd,
            "give each form its own source with its own columns, or its own domain",
            len(rows),
        )


def overlap(view: View) -> Iterator[Finding]:
    """The same or nearly the same row is trained on and scored."""
    if view.intact:
        return
    made = {split: [as_row(row, view.schema.name, split) for row in view.rows.get(split, ())] for split in SPLITS}
    everything = [row for split in SPLITS for row in made[split]]
    format.strip_boilerplate(everything, view.schema.name)
    held = [*made["test"], *made["validation"]]
    keys = {text_key(row.prompt or row.text): row for row in reversed(held)}
    same = [row for row in made["train"] if text_key(row.prompt or row.text) in keys]
    fix = "hfadapt prepare removes these by itself: leave data.dedupe on and prepare again"
    if same:
        twins = name_rows(keys[text_key(row.prompt or row.text)].where for row in same[:3])
        yield finding("split-overlap", "hard", f"training rows are also held out (as {twins})", _places(same), fix)
    inside = {text_key(row.prompt or row.text) for row in made["test"]}
    shared = [row for row in made["validation"] if text_key(row.prompt or row.text) in inside]
    if shared:
        yield finding("split-overlap", "hard", "validation rows are also test rows", _places(shared), fix)
    taken = {row.place for row in same}
    rest = [row for row in made["train"] if row.place not in taken]
    join = duplicates.joined([*held, *rest], view.asked.similarity)
    near: dict[int, int] = {}
    for pair in join.pairs(among=len(held)):
        if pair.second >= len(held):
            near.setdefault(pair.second - len(held), pair.first)
    if near:
        rows = [rest[i] for i in near]
        twins = name_rows(held[j].where for j in list(near.values())[:3])
        yield finding(
            "near-overlap", "hard", f"training rows are nearly the same as held-out rows ({twins})", _places(rows), fix
        )


def _places(rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [row.where.columns for row in rows]


# --- labels and columns ----------------------------------------------------------------------------------------------


def classes(view: View) -> Iterator[Finding]:
    """One class only, a label outside the set, a class that training never sees, or a very rare one."""
    classes_of = view.schema.classes
    if not view.labels and view.schema.label_kind in ("none", "number"):
        return
    names = set(view.labels)
    every = [row for split in SPLITS for row in view.rows.get(split, ()) if classes_of(row)]
    outside = [row for row in every if names and not set(classes_of(row)) <= names]
    if outside:
        found = ", ".join(sorted({repr(name) for row in outside for name in set(classes_of(row)) - names})[:5])
        yield finding(
            "label-outside-set",
            "hard",
            f"labels {found} are not among {some(sorted(names))}",
            outside,
            "correct these labels, or add them to the domain's labels",
            len(every),
        )
    have = {name for row in every for name in classes_of(row)}
    # Classes that were left out are said where that is known.
    noticed = view.record.noticed if view.record else ()
    lost = {name for each in noticed if each.code == CLASS_LOST for name in each.classes}
    empty = [name for name in view.labels if name not in have | lost]
    if empty and every:
        yield finding(
            "class-without-rows",
            "soft",
            f"no row of {some(map(repr, empty))}",
            fix="take it out of the domain's labels, or add rows",
        )
    counts = Counter(name for row in view.rows.get("train", ()) for name in classes_of(row))
    if len(counts) == 1 and (view.schema.label_kind == "class" or len(names) > 1):
        yield finding(
            "one-class",
            "hard",
            f"all {sum(counts.values()):,} training rows have the label {next(iter(counts))!r}",
            view.rows["train"][:8],
            "check the label column, or add rows of other classes",
        )
    unseen = [row for row in every if not set(classes_of(row)) <= set(counts)]
    if unseen and len(counts) > 1:
        found = ", ".join(sorted({repr(name) for row in unseen for name in set(classes_of(row)) - set(counts)})[:5])
        yield finding(
            "label-never-trained",
            "hard",
            f"labels {found} are scored but never trained",
            unseen,
            "add training rows of them",
        )
    # Of sixty classes each has few of the rows: what is rare is measured by an even share of them.
    share = sum(counts.values()) / max(1, len(counts))
    few = max(LEAST_OF_CLASS, min(ENOUGH_OF_CLASS, RARE_SHARE * share))
    by_count = sorted(counts.items(), key=lambda each: each[1])
    rare = [f"{label!r} ({count})" for label, count in by_count if count < few]
    if rare and len(counts) > 1:
        yield finding(
            "rare-class",
            "soft",
            f"few training rows of {len(rare):,} classes: {some(rare)}"
            if len(rare) > 1
            else f"few training rows of {rare[0]}",
            fix="add rows of these classes, or merge them",
        )


def not_scored(view: View) -> Iterator[Finding]:
    """A class that is trained has no row to be scored on, as where its rows are in few groups."""
    of = view.schema.classes
    counts = {split: Counter(name for row in rows for name in of(row)) for split, rows in view.rows.items()}
    for split in HELD_OUT:
        if names := unscored(counts, split):
            grouped = any(row.get(GROUP) for row in view.rows[split])
            fix = f"add rows of these classes{' from other groups' if grouped else ''}, raise data.{split}, or give "
            fix += f"{split} rows of your own (domains.NAME.{split})"
            yield finding(f"class-not-in-{split}", "soft", said_of(names, split), fix=fix)


def same_number(view: View) -> Iterator[Finding]:
    """Every row is to be given the same number."""
    rows = view.rows.get("train", [])
    if view.schema.label_kind == "number" and len(rows) > 1 and len({row["label"] for row in rows}) == 1:
        what = f"all {len(rows):,} training rows have the number {rows[0]['label']:g}"
        yield finding("one-class", "hard", what, rows[:8], "check the label column, or add rows with other numbers")


def one_group(view: View) -> Iterator[Finding]:
    """All training rows of a class come from one group, such as one speaker, who may be learned in its place."""
    groups: dict[str, set[str]] = defaultdict(set)
    for row in view.rows.get("train", ()):
        for name in view.schema.classes(row) if row.get(GROUP) else ():
            groups[name].add(row[GROUP])
    alone = [f"{name!r} ({next(iter(own))})" for name, own in sorted(groups.items()) if len(own) == 1]
    if alone and len(set.union(*groups.values())) > 1:
        yield finding(
            "one-group",
            "soft",
            f"all training rows of a class are of one group: {some(alone)}",
            fix="add rows of other groups: nothing tells the class from who or what it comes from",
        )


def lone_words(view: View) -> Iterator[Finding]:
    """No tagged word is seen with the words around it."""
    rows = view.rows.get("train", [])
    if view.schema.label_kind == "tokens" and len(rows) > 1 and all(len(row["tokens"]) == 1 for row in rows):
        what = "every row is a single word, which is learned without the words around it"
        yield finding("lone-words", "soft", what, rows[:3], "make a row of each sentence: lists of words and tags")


def wrong_column(view: View) -> Iterator[Finding]:
    """A column that is constant or identifies rows was taken for the text or the label."""
    rows = view.rows.get("train", [])
    if len(rows) < 8 or view.schema.media:
        return
    made = [as_row(row, view.schema.name) for row in rows]
    labels = [row.label for row in made if row.label is not None and row.several is None]
    for fault in mistaken_columns.mistaken(made, view.schema, labels):
        meant = view.schema.chat or (fault.meant and fault.part in view.asked.named)
        yield finding(
            fault.code,
            "soft" if meant else "hard",
            f"the {fault.part} {'may be a mistake' if meant else 'cannot be right'}: {fault.what}",
            rows[:3],
            "nothing, if it is meant" if meant else f"set columns: {{{fault.part}: NAME}} to the right column",
        )


def same_completion(view: View) -> Iterator[Finding]:
    """Every row is to be answered alike, or is not to be answered."""
    rows = view.rows.get("train", [])
    if not view.schema.writes or not rows:
        return
    answers = [view.schema.answers(row) for row in rows]
    distinct = {fold("\n".join(each)) for each in answers}
    if len(distinct) == 1 and len(rows) > 1:
        yield finding(
            "same-completion",
            "hard",
            f"all {len(rows):,} completions are {answers[0][-1][:60] if answers[0] else ''!r}",
            rows[:8],
            "check the completion column or the template",
        )
    empty = [row for row, each in zip(rows, answers, strict=True) if not "".join(each).strip()]
    if empty:
        yield finding(
            "empty-completion", "hard", "there is nothing to learn", empty, "drop or fill these rows", len(rows)
        )


def many_dropped(view: View) -> Iterator[Finding]:
    """Preparing took out more than a user would expect."""
    if view.record is None:
        return
    look = "look at them in data/dropped.jsonl of the cell, which hfadapt prepare RECIPE writes"
    hints = {
        "near-duplicate": "raise data.dedupe.similarity, or set data.dedupe.near: false, if these rows are all wanted",
        "label-conflict": f"{look}; data.conflicts: majority keeps the usual label",
        "tool-calls-not-shown": "use a model whose chat template writes tool calls, or take these rows out",
        NOT_TEXT: "take images, sound and film out of these rows, or leave them out",
    }
    for reason, count in view.record.dropped.items():
        if reason not in MEANT and count > MANY_DROPPED * view.record.rows_in:
            # What is left of such data is not what it is about.
            level = "hard" if reason == NOT_TEXT and count > 0.5 * view.record.rows_in else "soft"
            example = f", such as {view.dropped[reason]}" if reason in view.dropped else ""
            what = f"{count:,} of {view.record.rows_in:,} rows were dropped as {reason}{example}"
            yield finding("many-dropped", level, what, fix=hints.get(reason, look))


def label_leak(view: View) -> Iterator[Finding]:
    """The answer stands in what the model is shown."""
    rows = [] if view.schema.media else view.rows.get("train", [])
    made = [as_row(row, view.schema.name) for row in rows]
    format.strip_boilerplate(made, view.schema.name)
    labelled = [
        (row, source) for row, source in zip(made, rows, strict=True) if row.label is not None and row.several is None
    ]
    fix = "take the label out of the text or the prompt"
    if labelled:
        yield from _named_label(labelled, view.labels, fix)
        yield from _telltale_word(labelled, fix)
        return
    if not view.schema.writes:
        return
    pairs = [
        (fold(row.prompt), fold((view.schema.answers(source) or [""])[-1]), source)
        for row, source in zip(made, rows, strict=True)
    ]
    ending = [source for prompt, answer, source in pairs if len(answer) > 3 and prompt.endswith(answer)]
    if len(ending) >= max(2, 0.2 * len(rows)):
        yield finding("answer-in-prompt", "hard", "the prompt ends with its own completion", ending, fix, len(rows))
        return
    inside = [source for prompt, answer, source in pairs if len(answer) > 3 and answer in prompt]
    if len(inside) >= max(2, 0.5 * len(rows)):
        yield finding("answer-in-prompt", "soft", "the completion stands in the prompt", inside, fix, len(rows))


def _named_label(labelled: Sequence[tuple[Row, dict[str, Any]]], labels: Sequence[str], fix: str) -> Iterator[Finding]:
    names = {label: set(tokens(label)) for label in (labels or {str(row.label) for row, _ in labelled})}
    own, other = [], 0
    for row, source in labelled:
        words = set(tokens(row.text))
        named = [label for label, parts in names.items() if parts and parts <= words and not label.isdigit()]
        if len(named) == 1:
            if named[0] == row.label:
                own.append(source)
            else:
                other += 1
    # A word such as "sports" belongs in a text about sports; a label is leaked when it is there nearly always.
    if len(own) >= max(3, 0.5 * len(labelled)) and len(own) > 9 * other:
        yield finding("label-in-text", "hard", "the text names its own label", own, fix, len(labelled))
    elif len(own) >= max(3, 0.2 * len(labelled)) and len(own) > 9 * other:
        yield finding("label-in-text", "soft", "the text names its own label", own, fix, len(labelled))


def _telltale_word(labelled: Sequence[tuple[Row, dict[str, Any]]], fix: str) -> Iterator[Finding]:
    sizes = Counter(row.label for row, _ in labelled)
    if len(sizes) < 2 or min(sizes.values()) < 10:
        return
    counts: dict[str, Counter[str | None]] = defaultdict(Counter)
    for row, _ in labelled:
        for word in set(fold(row.text).split()):
            counts[word][row.label] += 1
    telling: dict[str | None, str] = {}
    for word, by_label in counts.items():
        label, count = by_label.most_common(1)[0]
        if count >= 0.95 * sizes[label] and sum(by_label.values()) - count <= 0.005 * len(labelled):
            telling.setdefault(label, word)
    if len(telling) >= len(sizes) - 1 and telling:
        shown = ", ".join(f"{word!r} means {label!r}" for label, word in sorted(telling.items(), key=str)[:4])
        rows = [source for row, source in labelled if row.label in telling]
        yield finding("telltale-word", "hard", f"one word gives the label away ({shown})", rows[:NAMED_ROWS], fix)


def garbled_text(view: View) -> Iterator[Finding]:
    """Text was decoded with the wrong encoding."""
    rows = [] if view.schema.media else view.rows.get("train", [])
    bad = [row for row in rows if clean.looks_garbled(as_row(row, view.schema.name).text)]
    if bad:
        yield finding(
            "mojibake",
            level_for(len(bad), len(rows), 0.01),
            "the text is garbled by a wrong encoding",
            bad,
            "leave data.clean.unicode on, or save the source as UTF-8 again",
            len(rows),
        )
    repaired = view.record.steps.get("clean", {}).get("rows_with_mojibake", 0) if view.record else 0
    if repaired and view.record is not None:
        where = view.record.steps["clean"].get("mojibake", "")
        yield finding(
            "mojibake-repaired",
            "soft",
            f"{repaired:,} rows were garbled by a wrong encoding and have been repaired: {where}",
            fix="look at these rows; save the source as UTF-8",
        )


def idle_augmentation(view: View) -> Iterator[Finding]:
    """Augmentation was asked for and finds nothing that it may change."""
    augmented = view.record.augmented if view.record else None
    if augmented is not None and augmented.changed == 0:
        yield finding(
            "augmentation-idle",
            "soft",
            "data.augment changes no training row: labels, answers and text that is itself learned stay as they are",
            fix="leave data.augment out, or give larger shares",
        )


def mislabelling_augmentation(view: View) -> Iterator[Finding]:
    """A change of training rows makes the label wrong, as far as the names of the classes tell."""
    for name in view.asked.changes:
        if why := registry.modality(view.schema.modality).mislabels(name, view.labels):
            what = f"data.augment.{name} may make labels wrong: {why}"
            yield finding("augmentation-mislabels", "soft", what, fix=f"delete data.augment.{name}")


def doubtful_files(view: View) -> Iterator[Finding]:
    """What the modality says of single files."""
    if not view.schema.media:
        return
    kind = registry.modality(view.schema.modality)
    found: dict[Doubt, list[str]] = defaultdict(list)
    for split in SPLITS:
        for row in view.rows.get(split, ()):
            for doubt in kind.doubts(row):
                found[doubt].append(str(row.get("file") or Place.of(row)))
    for doubt, files in found.items():
        total = sum(map(len, view.rows.values()))
        what = f"{doubt.detail} in {len(files):,} of {total:,} {kind.nouns}: {some(files)}"
        yield finding(doubt.code, "soft", what, fix=doubt.fix)


CHECKS: tuple[Check, ...] = (
    many_dropped,
    empty_splits,
    mixed_forms,
    overlap,
    classes,
    not_scored,
    one_group,
    same_number,
    lone_words,
    wrong_column,
    same_completion,
    label_leak,
    garbled_text,
    idle_augmentation,
    mislabelling_augmentation,
    doubtful_files,
)
