"""Rows of JSON Lines, and of JSON in the shapes that programs give tables."""

from __future__ import annotations

import ast
import gc
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from hfadapt.core.errors import DataError
from hfadapt.files import SPLIT_NAMES, Read, Rows, Unread, Values
from hfadapt.files.opening import NAME_IT, called, lines, not_utf8, suffix, text_bytes

FIRST_LINES = 5
_TEXT = re.compile(r"\S")
_NUMBER = re.compile(r"-?\d+")


class _Repeated(Exception):
    """A key stands in an object more than once, with different values."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Raises _Repeated for a key with two values, of which Python would take the last."""
    made = dict(pairs)
    if len(made) < len(pairs):
        for key, value in pairs:
            if made[key] != value:
                shown = f"{value!r}"[:40], f"{made[key]!r}"[:40]
                raise _Repeated(f"an object has the key {key!r} more than once: {shown[0]} and {shown[1]}")
    return made


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _parsed(parse: Callable[..., Any], *given: Any) -> Any:
    """What a parser makes of text, without a collection of garbage meanwhile.

    Text that is nested too deeply ends at the limit of recursion, and every list on the way there may begin a
    collection: just below the limit, it would leave the finalizers of other objects no room.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        return parse(*given)
    finally:
        if collecting:
            gc.enable()


def read_lines(path: Path, encoding: str | None = None) -> Rows:
    """An object a line.

    Raises:
        DataError: the file is JSON of another shape, or none.
    """
    _check_lines(path, encoding)
    for item in lines(path, encoding):
        if isinstance(item, Unread):
            yield item
            continue
        number, line = item
        if not line.strip():
            yield Unread(number, "empty", " is blank", number + 1)
            continue
        try:
            value = _parsed(_DECODER.decode, line)
        except _Repeated as error:
            yield Unread(number, "repeated-key", f": {error}", number + 1)
            continue
        except (ValueError, RecursionError) as error:
            yield Unread(number, "not-json", f" is not JSON: {error}", number + 1)
            continue
        yield _row(number, value, number + 1)


def _check_lines(path: Path, encoding: str | None) -> None:
    first = (item[1] for item in lines(path, encoding) if isinstance(item, tuple) and item[1].strip())
    shown = list(islice(first, FIRST_LINES))
    starts = [line.lstrip()[:1] for line in shown]
    whole = [_value(line) for line in shown]
    if not shown or any(isinstance(each, dict) or _is_annotated(each) for each in whole):
        return
    if starts[0] == "[" and (whole[0] is None or _is_rows(whole[0])):
        raise DataError(
            "the file is one JSON array, not a JSON object a line",
            place=str(path),
            fix=f"call it {called(path, '.json')}",
        )
    if starts[0] == "{" and shown[0].strip() == "{":
        what = "the file has JSON over several lines, not an object a line"
        raise DataError(what, place=str(path), fix=f"call it {called(path, '.json')}")
    if starts[0] == "{" and (fault := _near_json(shown)):
        raise DataError(fault[0], place=str(path), got=shown[0][:60], fix=fault[1].format(called(path, ".json")))
    if starts[0] == "[" and all(isinstance(each, list) for each in whole):
        what, fix = "the lines are lists, without names of columns", 'write {"text": …, "label": …} for each row'
        raise DataError(what, place=str(path), got=shown[0][:60], fix=fix)
    if not set(starts) & {"{", "["}:
        raise DataError(
            "the file is not JSON",
            place=str(path),
            got=f"it begins with {shown[0][:60]!r}",
            fix=f"write a JSON object a line; if it is CSV, call it {called(path, '.csv')}",
        )


def _near_json(shown: Sequence[str]) -> tuple[str, str] | None:
    """What lines are that are nearly objects, and what helps."""
    if all(isinstance(_value(line.rstrip().removesuffix(",")), dict) for line in shown):
        return "every line ends in a comma", "take the commas out, or put [ before and ] after them and call it {}"
    try:
        if isinstance(_parsed(json.JSONDecoder().raw_decode, shown[0].lstrip())[0], dict):
            return "a line holds several objects", "call it {}, or write one object a line"
    except (ValueError, RecursionError):
        pass
    try:
        literal = ast.literal_eval(shown[0].strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return ("the lines are Python's, not JSON", "write them with json.dumps") if isinstance(literal, dict) else None


def _value(line: str) -> Any:
    try:
        return _parsed(json.loads, line)
    except (ValueError, RecursionError):
        return None


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and (isinstance(value[0], dict) or _is_annotated(value[0]))


def split_names(path: Path) -> dict[str, str]:
    """The splits of a JSON document by their keys: `val` for `validation`; none where it is of another shape."""
    if suffix(path) != ".json":
        return {}
    status = path.stat()
    return _split_names(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _split_names(path: Path, size: int, changed: int) -> dict[str, str]:
    """As long as the file is the same one; what cannot be read is said when it is read."""
    try:
        with text_bytes(path) as file:
            content = file.read()
        return _splits(_parsed(json.loads, content)) if content.lstrip()[:1] == b"{" else {}
    except (DataError, OSError, ValueError, RecursionError):
        return {}


def _splits(value: Any) -> dict[str, str]:
    """Keys of the splits of a document that has nothing but splits and remarks."""
    if not isinstance(value, dict):
        return {}
    tables = [key for key, each in value.items() if _is_rows(each) or _is_columns(each)]
    found = {key: SPLIT_NAMES[key.lower()] for key in tables if key.lower() in SPLIT_NAMES}
    return found if len(found) == len(tables) else {}


def _is_columns(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(each, list) for each in value.values())


def read_whole(path: Path, split: str | None = None, encoding: str | None = None) -> Rows:
    """The rows of a JSON document: a list of objects, pandas' shapes, lists by column, objects by key, or one below.

    Args:
        split: Which of its splits, where it has some; `train` when not said.
        encoding: As which it was saved, where somebody says so.

    Raises:
        DataError: it is broken, or has no rows.
    """
    with text_bytes(path, encoding) as file:
        content = file.read()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            "the file is not UTF-8",
            place=str(path),
            got=f"{not_utf8(content).removeprefix(' is not UTF-8: ')} at byte {error.start:,}",
            fix=f"name the encoding that it was saved in, {NAME_IT}",
        ) from None
    try:
        value = _parsed(_DECODER.decode, text)
    except _Repeated as error:
        raise _repeated(path, error) from None
    except RecursionError:
        raise DataError("the JSON is nested too deeply", place=str(path), fix="write a list of objects") from None
    except ValueError as error:
        if "Extra data" in str(error):
            yield from _one_after_another(path, text, encoding)
            return
        cut = error.pos >= len(text.rstrip()) if isinstance(error, json.JSONDecodeError) else False
        what = "the JSON is cut off" if cut or "Unterminated" in str(error) else "the file is not JSON"
        raise DataError(what, place=str(path), got=str(error), fix="get it again, or correct it there") from None
    wanted = SPLIT_NAMES.get(split or "train")
    value = next((value[key] for key, name in _splits(value).items() if name == wanted), value)
    for number, each in enumerate(_questions(rows_of(value, path))):
        yield _row(number, each)


def _questions(rows: list[Any]) -> list[Any]:
    """Of SQuAD's articles a row for each question, with the paragraph that it is about; other rows as they are."""
    if not rows or not all(isinstance(row, dict) and _is_rows(row.get("paragraphs")) for row in rows):
        return rows
    found = [(each.get("context"), each.get("qas")) for row in rows for each in row["paragraphs"]]
    if not all(isinstance(own, list) and all(isinstance(one, dict) for one in own) for _, own in found):
        return rows
    return [{"context": context, **one} for context, own in found for one in own]


def _one_after_another(path: Path, text: str, encoding: str | None) -> Rows:
    """JSON Lines called .json, or objects that follow each other over several lines."""
    at, number = 0, 0
    if _value(text.partition("\n")[0]) is not None:
        yield from read_lines(path, encoding)
        return
    while match := _TEXT.search(text, at):
        try:
            value, at = _parsed(_DECODER.raw_decode, text, match.start())
        except _Repeated as error:
            raise _repeated(path, error) from None
        except ValueError as error:
            raise DataError("the file is not JSON", place=str(path), got=str(error), fix="correct it there") from None
        yield _row(number, value)
        number += 1


def _row(number: int, value: Any, line: int | None = None) -> Read | Unread:
    if _is_annotated(value):
        value = {"text": value[0], **value[1]}
    if isinstance(value, dict):
        return Read(number, value, line)
    return Unread(number, "not-json", " is not an object", line)


def _is_annotated(value: Any) -> bool:
    """Whether a row is a text with an object of what is known of it, as spaCy is trained on."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], dict)


def rows_of(value: Any, path: Path) -> list[Any]:
    """The rows of a JSON document.

    Raises:
        DataError: it has none, or several lists of them.
    """
    if isinstance(value, list):
        if value and not any(isinstance(each, dict) or _is_annotated(each) for each in value):
            kind = "lists" if isinstance(value[0], list) else "values"
            raise _no_rows(path, f"a list of {kind}, without names of columns", '{"text": …, "label": …} for each row')
        return value
    if not isinstance(value, dict):
        raise _no_rows(path, "one value" if not isinstance(value, str) else "one text", "a list of objects")
    if isinstance(value.get("columns"), list) and isinstance(value.get("data"), list):
        return [dict(zip(map(str, value["columns"]), each, strict=False)) for each in value["data"]]
    tables = {key: each for key, each in value.items() if _is_rows(each)}
    if len(tables) > 1:
        raise _no_rows(path, f"several lists of rows: {', '.join(tables)}", "each list in a file of its own")
    if tables:
        return list(next(iter(tables.values())))
    if value and all(isinstance(each, dict) for each in value.values()):
        return _of_objects(value)
    lists = {key: each for key, each in value.items() if isinstance(each, list)}
    if lists and len(lists) == len(value):
        lengths = {len(each) for each in lists.values()}
        if len(lengths) > 1:
            shown = ", ".join(f"{key} {len(each):,}" for key, each in lists.items())
            raise _no_rows(path, f"lists of different lengths: {shown}", "a value of each column for every row")
        return [dict(zip(lists, each, strict=True)) for each in zip(*lists.values(), strict=True)]
    inner = [each for each in value.values() if isinstance(each, dict)]
    if len(inner) == 1 and any(_is_rows(each) for each in inner[0].values()):
        return rows_of(inner[0], path)
    if any(isinstance(each, (list, dict)) for each in value.values()):
        raise _no_rows(path, f"an object with {', '.join(map(str, list(value)[:8]))}", "a list of objects")
    return [value]


def _of_objects(value: Mapping[str, Mapping[str, Any]]) -> list[Values]:
    """Rows by key, or columns that hold their values by key, as pandas writes them."""
    keys = list(dict.fromkeys(key for each in value.values() for key in each))
    numbered = all(map(_NUMBER.fullmatch, keys)) and not all(map(_NUMBER.fullmatch, value))
    counted = all(map(_NUMBER.fullmatch, value))
    if numbered or (not counted and len(keys) > len(value)):
        return [{column: cells.get(key) for column, cells in value.items()} for key in keys]
    return [dict(each) for each in value.values()]


def _repeated(path: Path, error: _Repeated) -> DataError:
    return DataError(str(error), place=str(path), fix="keep the one that is right")


def _no_rows(path: Path, got: str, wanted: str) -> DataError:
    return DataError("the JSON has no rows", place=str(path), got=got, fix=f"write {wanted}")
