"""SHA-256 of files and of values, and 64-bit keys of texts."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from functools import lru_cache
from pathlib import Path
from typing import Any


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def kept_sha256(path: Path) -> str:
    """Hex sha256 of a file, which is read again only when it has changed: weights are looked at often in a run."""
    state = path.stat()
    return _in_state(path.resolve(), (state.st_mtime_ns, state.st_size, state.st_ino))


@lru_cache(maxsize=1024)
def _in_state(path: Path, state: tuple[int, ...]) -> str:
    return file_sha256(path)


def json_sha256(value: Any) -> str:
    """Hex sha256 of a value's canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def fold(text: str) -> str:
    """What two texts have in common when they differ only in case, width or white space."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.casefold().split())


def text_key(text: str) -> int:
    """A 64-bit key of the folded text, the same in every process and on every platform."""
    return stable_hash(fold(text))


def stable_hash(*parts: object) -> int:
    """64 bits of BLAKE2b; Python's own hash() differs between processes."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "big")
