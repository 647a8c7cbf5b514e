"""Bases for data: Spec is what a user asked for, Section a part of a recipe, Record what a stage answered.

All are frozen and refuse unknown fields. A Record is written as versioned JSON in one atomic step, so a
reader sees the old file or the new one, never half of one.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError
from yaml import YAMLError

from hfadapt.core.errors import RunError
from hfadapt.core.show import Block, Shown, described

MAKE_AGAIN = "hfadapt run RECIPE, which makes it again"


@contextmanager
def reading(path: Path, fix: str = MAKE_AGAIN) -> Iterator[None]:
    """Inside, a file that is not what was written (cut off by a crash, edited) is named, with what makes it again.

    Raises:
        RunError: in the place of what Python, YAML, Arrow or pydantic raise for its content.
    """
    try:
        yield
    except (ValueError, TypeError, AttributeError, LookupError, EOFError, RecursionError, YAMLError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            # Of the file system; Arrow has none for what stands in a file.
            raise
        raise RunError(
            "the file is not as it was written: cut off, edited, or of another version",
            place=str(path),
            got=_briefly(error) if isinstance(error, ValidationError) else " ".join(str(error).split())[:120],
            fix=fix,
        ) from None


class Spec(BaseModel):
    """Base of everything a user can write down."""

    # What is infinite stays so wherever it is written, or is refused: pydantic would put null in its place.
    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False, ser_json_inf_nan="constants"
    )


class Section(Spec):
    """Base of the parts of a recipe. The text below a field describes it wherever it is explained.

    After what the field does, lines of that text may begin with `Auto:` (who answers `auto`, and how), `Cost:` (in
    memory or time) and `Example:` (a value, as YAML).
    """

    model_config = ConfigDict(use_attribute_docstrings=True)


class Record(Shown, Spec):
    """Base of everything a stage writes; subclasses set `record_version` and raise it when fields change meaning.

    `FILE` is its name in the folder that it belongs to, `AGAIN` says what writes it anew.
    """

    FILE: ClassVar[str] = ""
    AGAIN: ClassVar[str] = MAKE_AGAIN
    record_version: ClassVar[int] = 1

    def blocks(self) -> list[Block]:
        """All that it says; records for people have views of their own."""
        return described(type(self).__name__, self.model_dump(mode="json"))

    @classmethod
    def migrate(cls, payload: dict[str, Any], version: int) -> dict[str, Any] | None:
        """The fields of an older version as they are called now; None where they cannot be had from it."""
        return None

    def write(self, path: Path) -> Path:
        """Writes this record to `path` as JSON, atomically. Non-finite numbers are refused with ValueError."""
        payload = {"record": type(self).__name__, "version": self.record_version, **self.model_dump(mode="json")}
        write_text(path, json.dumps(payload, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        return path

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads a record back.

        Raises:
            RunError: the file is missing, is not JSON, is another record, or is of another version.
        """
        try:
            payload: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            found = (payload.pop("record", None), payload.pop("version", None))
        except FileNotFoundError:
            raise RunError(
                f"there is no {path.name} yet", place=str(path), fix="run the stage that writes it: hfadapt run RECIPE"
            ) from None
        except (ValueError, AttributeError, TypeError, RecursionError) as error:
            raise RunError("the record is not readable JSON", place=str(path), got=str(error), fix=cls.AGAIN) from None
        wanted = (cls.__name__, cls.record_version)
        name, version = found
        if name == cls.__name__ and isinstance(version, int) and version < cls.record_version:
            migrated = cls.migrate(payload, version)
            payload, found = (payload, found) if migrated is None else (migrated, wanted)
        if found != wanted:
            raise RunError(
                "the record is of another kind or version",
                place=str(path),
                got=f"{found[0]} version {found[1]}",
                allowed=f"{wanted[0]} version {wanted[1]}",
                fix="run the stage again with this version of hfadapt",
            )
        try:
            return cls.model_validate(payload)
        except ValidationError as error:
            raise RunError(
                "this record does not match its schema (edited, or written by another version)",
                place=str(path),
                got=_briefly(error),
                fix=cls.AGAIN,
            ) from None


def _briefly(error: ValidationError) -> str:
    """The first fault and how many there are."""
    first, *others = error.errors()
    more = f", and {len(others)} more" if others else ""
    return f"{'.'.join(map(str, first['loc'])) or 'the record'}: {first['msg']}{more}"


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text atomically; the parent folder is made when missing."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Writes bytes to a temporary neighbour, syncs, then renames over `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp-{uuid.uuid4().hex[:8]}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        # Where nothing could be written, nothing can be removed either, and the first error is the one to be told.
        with suppress(OSError):
            temporary.unlink()
