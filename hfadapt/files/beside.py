"""Files beside data: papers about them, and files of kinds that are not read, which are said and never passed over."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from hfadapt.files import Doubt
from hfadapt.records.gaps import NOT_READ

SHOWN_KINDS, SHOWN_NAMES = 5, 3
"""In a message."""
_PAPER = re.compile(
    r"(read.?me|licen[sc]e|copying|notice|citation|changelog|contributing|requirements)\b.*"
    r"|(dataset_infos?|dataset_dict|state|config|package|vocab|metadata|\w*tokenizer\w*|\w+_config|\w+_map"
    r"|.*\.index)\.json"
    # What a contest wants to have.
    r"|(sample_?submissions?|submission_format)\b.*"
    # What file managers leave behind.
    r"|(eh)?thumbs\.db|desktop\.ini",
    re.IGNORECASE,
)


def is_paper(name: str) -> bool:
    """Whether a file of this name is about data, and none itself."""
    return _PAPER.fullmatch(name) is not None


def not_read(names: Sequence[str], read: Iterable[str], place: str = "") -> Doubt:
    """What is to be said of files of kinds that are not read.

    Args:
        names: What they are called, with their folders.
        read: What those are called that are read.
        place: The archive that holds them, if one does.
    """
    having = {str(parent) for name in read for parent in PurePosixPath(name).parents}
    empty = dict.fromkeys(str(PurePosixPath(name).parent) for name in names)
    lost = [folder for folder in empty if folder not in having]
    what = f"{len(names):,} file{'s are' if len(names) > 1 else ' is'} not read{f' in {place}' if place else ''}: "
    what += _by_kind(names)
    if lost:
        what += f"; nothing is read in {', '.join(lost[:SHOWN_NAMES])}{', …' if len(lost) > SHOWN_NAMES else ''}"
    fix = "nothing, if they are no data; else save them in a format that is read, films as images or sound"
    return Doubt(NOT_READ, what, fix)


def _by_kind(names: Sequence[str]) -> str:
    """How many there are of each ending, and what the first are called: `2 .mp4 (a.mp4, b.mp4), 1 .doc (c.doc)`."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(PurePosixPath(name).suffix.lower() or "without ending", []).append(name)
    order = sorted(kinds.items(), key=lambda kind: -len(kind[1]))
    shown = [
        f"{len(own):,} {kind} ({', '.join(own[:SHOWN_NAMES])}{', …' if len(own) > SHOWN_NAMES else ''})"
        for kind, own in order[:SHOWN_KINDS]
    ]
    if others := sum(len(own) for _, own in order[SHOWN_KINDS:]):
        shown.append(f"{others:,} of other kinds")
    return ", ".join(shown)
