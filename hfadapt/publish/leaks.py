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
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from hfadapt.core import registry

if TYPE_CHECKING:
    from hfadapt.formats import Head

VOCABULARIES = frozenset("tokenizer.json vocab.json vocab.txt merges.txt tokenizer.model spiece.model".split())  # noqa: SIM905
"""Lists of ordinary words, in which the name of a machine may stand by chance."""

COMMON_NAMES = frozenset(
    "localhost ubuntu debian fedora linux macbook laptop desktop server test train model main base data root user "  # noqa: SIM905
    "admin computer machine docker runner worker default home".split()
)


@dataclass(frozen=True)
class Rule:
    """One kind of leak."""

    name: str
    pattern: re.Pattern[str]


def _rule(name: str, pattern: str) -> Rule:
    return Rule(name, re.compile(pattern))


RULES = (
    _rule("Hugging Face token", r"\b(?:hf|api_org)_[A-Za-z0-9]{16,}"),
    _rule("AWS key", r"\b(?:AKIA|ASIA|AROA|AIDA|AGPA)[A-Z0-9]{16}\b"),
    _rule("AWS secret key", r"(?i)(?<![a-z])aws.{0,30}?[\"'=:\s][A-Za-z0-9/+]{40}(?![A-Za-z0-9/+=])"),
    _rule("GitHub token", r"\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_[A-Za-z0-9_]{20,}"),
    _rule("GitLab token", r"\bglpat-[A-Za-z0-9_-]{16,}"),
    _rule("Slack token", r"\bxox[abposr]-[A-Za-z0-9-]{10,}"),
    _rule("Google key", r"\bAIza[A-Za-z0-9_-]{35}"),
    _rule("API key", r"\bsk-[A-Za-z0-9_-]{20,}"),
    _rule("package index token", r"\bpypi-AgE[A-Za-z0-9_-]{16,}|\bnpm_[A-Za-z0-9]{30,}"),
    _rule("private key", r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY"),
    _rule("JSON web token", r"\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}"),
    _rule("password in an address", r"\b[a-z][a-z0-9+.-]*://[^/\s:@\"']+:[^/\s:@\"']+@[\w.-]"),
    _rule(
        "named secret",
        r"(?i)(?<![a-z0-9])(?:api[_-]?key|client[_-]?secret|secret|passw(?:or)?d|(?:access|auth|hf|hub)[_-]?token)"
        r"[\\\"']{0,2}\s*[:=]\s*[\\\"']{0,2}(?=[A-Za-z+/_-]*\d)[A-Za-z0-9+/_-]{16,}",
    ),
    _rule(
        "home folder", r"(?<![\w.-])/(?:home|Users)/+[\w.-]|(?<![\w.-])/root/+[\w.]|\b[A-Za-z]:[\\/]+Users[\\/]+[\w.-]"
    ),
)


def leaks(path: Path) -> Iterator[tuple[str, int]]:
    """(rule, line) for all in a file that must not be published; of weights what precedes the tensors is looked at."""
    head = next((head for name in registry.names("formats") if (head := registry.format(name).head(path))), None)
    text = _text(path, head)
    words = path.name in VOCABULARIES or (head is not None and head.vocabulary)
    rules = RULES if words else (*RULES, *personal_rules())
    for rule in rules:
        if found := rule.pattern.search(text):
            yield rule.name, text.count("\n", 0, found.start()) + 1


def _text(path: Path, head: Head | None) -> str:
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
def personal_rules() -> tuple[Rule, ...]:
    """Rules from this machine: its name, its user's e-mail addresses and home folder."""
    found = []
    home = str(Path.home())
    if len(home) > 4 and home != "/root":
        found.append(Rule("home folder", re.compile(re.escape(home) + r"(?![\w-])")))
    for name in {socket.gethostname(), socket.gethostname().split(".")[0]}:
        if len(name) >= 4 and name.lower() not in COMMON_NAMES:
            pattern = rf"(?<![\w-]){re.escape(name)}(?![\w-])"
            found.append(Rule("name of this machine", re.compile(pattern, re.I)))
    for address in sorted(_addresses()):
        found.append(Rule("e-mail address of this user", re.compile(re.escape(address), re.I)))
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
