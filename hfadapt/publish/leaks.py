"""What must not leave this machine in a published file: secrets, personal paths, names of people and machines.

A leak is reported by file, line and rule. What was found is never repeated, since a log is a place to leak to as well.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import re
import socket
import struct
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from hfadapt.core import registry
from hfadapt.core.secret_rules import RULES

if TYPE_CHECKING:
    from hfadapt.formats import Head

VOCABULARIES = frozenset("tokenizer.json vocab.json vocab.txt merges.txt tokenizer.model spiece.model".split())  # noqa: SIM905
"""Lists of ordinary words, in which the name of a machine may stand by chance."""

COMMON_NAMES = frozenset(
    "localhost ubuntu debian fedora linux macbook laptop desktop server test train model main base data root user "  # noqa: SIM905
    "admin computer machine docker runner worker default home".split()
)


HOME = (
    "home folder",
    re.compile(r"(?<![\w.-])/(?:home|Users)/+[\w.-]|(?<![\w.-])/root/+[\w.]|\b[A-Za-z]:[\\/]+Users[\\/]+[\w.-]"),
)


def leaks(path: Path) -> Iterator[tuple[str, int]]:
    """(rule, line) for all in a file that must not be published; of weights what precedes the tensors is looked at."""
    head = next((head for name in registry.names("formats") if (head := registry.format(name).head(path))), None)
    text = _text(path, head)
    words = path.name in VOCABULARIES or (head is not None and head.vocabulary)
    for name, pattern in (*RULES, HOME, *(() if words else personal_rules())):
        if found := pattern.search(text):
            yield name, text.count("\n", 0, found.start()) + 1


def _text(path: Path, head: Head | None) -> str:
    if head is not None and head.text is not None:
        return head.text
    with path.open("rb") as file:
        if path.suffix == ".safetensors":
            (size,) = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))
            content = file.read(min(size, path.stat().st_size))
        else:
            content = file.read(head.bytes if head else -1)
    text = content.decode("utf-8", errors="replace")
    if path.suffix in (".json", ".safetensors"):
        # JSON may write any letter as \\uXXXX; what a reader of the file sees is looked at as well.
        with contextlib.suppress(ValueError, RecursionError):
            text += "\n" + json.dumps(json.loads(text), ensure_ascii=False)
    return text


@cache
def personal_rules() -> tuple[tuple[str, re.Pattern[str]], ...]:
    """Rules from this machine: its name, its user's e-mail addresses and home folder."""
    found = []
    home = os.path.expanduser("~")
    if len(home) > 4 and home != "/root":
        found.append(("home folder", re.compile(re.escape(home) + r"(?![\w-])")))
    for name in {socket.gethostname(), socket.gethostname().split(".")[0]}:
        if len(name) >= 4 and name.lower() not in COMMON_NAMES:
            pattern = rf"(?<![\w-]){re.escape(name)}(?![\w-])"
            found.append(("name of this machine", re.compile(pattern, re.I)))
    for address in sorted(_addresses()):
        found.append(("e-mail address of this user", re.compile(re.escape(address), re.I)))
    return tuple(found)


def _addresses() -> set[str]:
    names = ("EMAIL", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL")
    found = {os.environ.get(name, "") for name in names}
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(["git", "config", "--get", "user.email"], capture_output=True, text=True, timeout=5)
        found.add(done.stdout.strip())
    with contextlib.suppress(OSError, KeyError):
        found.add(f"{getpass.getuser()}@{socket.gethostname()}")
    return {address for address in found if re.fullmatch(r"[^@\s]+@[^@\s]+", address)}
