"""What was found out once about a model or a machine, kept on disk: asking again takes seconds of imports alone.

An answer is used for as long as hfadapt's own code and the libraries that gave it stay the same.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Hashable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from hfadapt.core import cache, registry
from hfadapt.core.hashing import json_sha256
from hfadapt.core.spec import Record

LIBRARIES = ("torch", "transformers", "peft")
CODE = (".py", ".toml", ".cpp", ".h")
Answer = TypeVar("Answer")


class Known(Record):
    """An answer, in the cache."""

    answer: Any


def known(kind: Any, key: object, find: Callable[[], Answer], lasts: Callable[[Answer], bool] | None = None) -> Answer:
    """The answer to a question, from the cache or found now and kept.

    Args:
        kind: Type of the answer, as pydantic reads it back from JSON.
        key: All that the answer depends on, but for the code and the libraries.
        lasts: Whether this answer may be kept; by default each may.
    """
    path = cache.folder() / "known" / f"{json_sha256([key, _made_by()])[:32]}.json"
    adapter: TypeAdapter[Answer] = TypeAdapter(kind)
    if (kept := cache.read(path, Known)) is not None:
        with suppress(ValidationError):
            return adapter.validate_python(kept.answer)
    answer = find()
    if lasts is None or lasts(answer):
        with suppress(ValueError):  # what JSON has no word for, such as an infinite number, is found again
            plain = adapter.dump_python(answer, mode="json")
            cache.write(path, Known(answer=plain))
            # As it will be read: keys of tables are texts in JSON.
            return adapter.validate_python(plain)
    return answer


def remembered(kind: Any) -> Callable[[Callable[..., Answer]], Callable[..., Answer]]:
    """Decorator of a function of plain values: its answers are kept in the process and on disk."""

    def decorate(function: Callable[..., Answer]) -> Callable[..., Answer]:
        name = f"{function.__module__}.{function.__qualname__}"

        @functools.cache
        @functools.wraps(function)
        def asked(*arguments: Hashable) -> Answer:
            return known(kind, [name, arguments], lambda: function(*arguments))

        return asked

    return decorate


@functools.cache
def _made_by() -> list[str]:
    """Versions of the libraries, and a hash of hfadapt's own code, which changes while it is being worked on."""
    found = []
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            found.append(f"{name} {version(name)}")
    code = hashlib.sha256()
    for path in sorted(path for path in registry.PACKAGE.rglob("*") if path.suffix in CODE):
        code.update(path.read_bytes())
    return [*found, code.hexdigest()]
