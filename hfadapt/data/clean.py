"""Repairs text and drops rows that cannot be learned from; each row dropped is named in the ledger."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from hfadapt.core import registry
from hfadapt.core.errors import RequestError
from hfadapt.core.secret_rules import EMAIL, KEY
from hfadapt.data.rows import Ledger, Row
from hfadapt.recipe.schema import Clean
from hfadapt.schemas import storable

REPLACEMENT = "\ufffd"
REPLACEMENT_SHARE = 0.02
PARALLEL_ROWS = 5_000
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufeff\ufffe\uffff\u200b\u2060]")
_SPACES = re.compile("[\u00a0\u2000-\u200a\u202f\u205f\u3000]")
_HALVES = re.compile("[\ud800-\udfff\ufffd]")
# UTF-8 read as Latin-1 or Windows-1252: the usual second halves after the usual first.
_MOJIBAKE = re.compile(
    "[\u00c2\u00c3\u00c5\u00d0\u00d1][\u0080-\u00bf\u0152-\u02dc\u2013-\u2122]|\u00e2\u20ac|\u00f0\u0178|\u00ef\u00bb\u00bf"
)


def looks_garbled(text: str) -> bool:
    """Whether the text holds mojibake (`cafÃ©`), replacement characters, or halves of characters."""
    return not text.isascii() and any(sign.search(text) is not None for sign in (_MOJIBAKE, _HALVES))


def repair_text(text: str) -> str:
    """Mends encoding mix-ups, composes characters (NFC), and removes control characters and odd spaces.

    Line breaks and indentation stay: they carry meaning in code and lists.
    """
    if not text.isascii():
        if _MOJIBAKE.search(text):
            import ftfy

            text = ftfy.fix_encoding(text)
        text = unicodedata.normalize("NFC", _SPACES.sub(" ", text))
        text = storable(text)
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return _CONTROL.sub("", text)


def repair(
    values: Mapping[str, Any], columns: Sequence[str], mend: bool = True, whole: Collection[str] = ()
) -> tuple[dict[str, Any], bool]:
    """One raw row with the used columns repaired, and whether it held mojibake.

    Args:
        values: The row as it was read.
        columns: The columns that are used.
        mend: False looks, but changes nothing.
        whole: Columns whose outer white space stays, since it is learned (a completion may begin with a space).
    """
    repaired, garbled = dict(values), False
    for column in columns:
        value = values.get(column)
        if isinstance(value, str):
            garbled = garbled or looks_garbled(value)
            mended = repair_text(value) if mend else storable(value)
            repaired[column] = mended.strip() if mend and column not in whole else mended
        elif isinstance(value, list):
            turns = [turn for turn in value if isinstance(turn, Mapping)]
            said = [text for turn in turns for text in turn.values() if isinstance(text, str)]
            said += [text for text in value if isinstance(text, str)]
            garbled = garbled or any(map(looks_garbled, said))
            repaired[column] = [_repair_turn(each, mend) for each in value]
    return repaired, garbled


def _repair_turn(turn: Any, mend: bool) -> Any:
    if isinstance(turn, str):
        return repair_text(turn) if mend else storable(turn)
    if not isinstance(turn, Mapping):
        return turn
    done = {key: _repair_turn(value, mend) if isinstance(value, str) else value for key, value in turn.items()}
    return {key: value.strip() if mend and isinstance(value, str) else value for key, value in done.items()}


def drop_unusable(rows: Sequence[Row], settings: Clean, ledger: Ledger, workers: int = 1) -> list[Row]:
    """Drops empty, too short, too long and undecodable rows, and what the optional filters reject.

    The optional filters take a tenth of a millisecond a row or more and run on several cores; the rest is faster than
    sending rows to another process would be.

    Raises:
        RequestError: an optional filter is asked for but its library is not installed.
    """
    slow = settings.language is not None or settings.pii != "off"
    if settings.language is not None:
        language_filter(settings.language)
    if slow and workers > 1 and len(rows) >= 2 * PARALLEL_ROWS:
        from joblib import Parallel, delayed

        chunks = [rows[start : start + PARALLEL_ROWS] for start in range(0, len(rows), PARALLEL_ROWS)]
        results = Parallel(n_jobs=workers)(delayed(_screen)(chunk, settings) for chunk in chunks)
        screened = [each for result in results for each in result]
    else:
        screened = _screen(rows, settings)
    for row, reason, _ in screened:
        if reason is not None:
            ledger.drop(row, reason)
    if settings.pii != "off":
        found = sum(1 for _, _, count in screened if count)
        clean = ledger.steps.setdefault("clean", {})
        clean["rows_with_personal_data"] = clean.get("rows_with_personal_data", 0) + found
    return [row for row, reason, _ in screened if reason is None]


def _screen(rows: Sequence[Row], settings: Clean) -> list[tuple[Row, str | None, int]]:
    """Each row (redacted, if asked), why it is dropped, and how many pieces of personal data it held."""
    speaks = language_filter(settings.language) if settings.language else None
    scrub = pii_scrubber() if settings.pii != "off" else None
    screened: list[tuple[Row, str | None, int]] = []
    for row in rows:
        reason, found = _unusable(row, settings), 0
        media = registry.schema(row.form).media
        if reason is None and speaks is not None and not media and not speaks(row.text):
            reason = "other-language"
        if reason is None and scrub is not None:
            found = _scrub_row(row, scrub, change=settings.pii == "redact")
            if found and settings.pii == "drop":
                reason = "personal-data"
        screened.append((row, reason, found))
    return screened


def _unusable(row: Row, settings: Clean) -> str | None:
    text = row.prompt or row.text
    characters = len(text.strip())
    if characters == 0:
        return "empty"
    if fault := registry.schema(row.form).fault(row.columns):
        return fault
    if registry.schema(row.form).media:
        return None
    if characters < settings.min_characters:
        return "too-short"
    if len(row.text) > settings.max_characters:
        return "too-long"
    if REPLACEMENT in row.text and row.text.count(REPLACEMENT) > REPLACEMENT_SHARE * len(row.text):
        return "encoding-error"
    return None


def language_filter(language: str) -> Callable[[str], bool]:
    """Tells whether a text is in the language; short texts pass, since a guess on a few words is worthless.

    Raises:
        RequestError: py3langid is not installed, or does not know the language.
    """
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise _missing("data.clean.language", "language") from None
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    if language not in identifier.labels:
        raise RequestError(
            "the language filter does not know this language",
            place="data.clean.language",
            got=repr(language),
            allowed=", ".join(identifier.labels),
        )

    def speaks(text: str) -> bool:
        if len(text) < 40:
            return True
        found, confidence = identifier.classify(text)
        return bool(found == language or confidence < 0.8)

    return speaks


_NAMES = {"e-mail address": "[EMAIL]", "access key": "[KEY]", "telephone number": "[PHONE]"}


def pii_scrubber() -> Callable[[str], tuple[str, int]]:
    """Replaces e-mail addresses, telephone numbers and access keys; returns the text and how many it found.

    Raises:
        RequestError: phonenumbers is not installed.
    """
    if "telephone number" not in pii_kinds():
        raise _missing("data.clean.pii", "pii")

    def scrub(text: str) -> tuple[str, int]:
        found = find_pii(text)
        for kind, start, end in reversed(found):
            text = f"{text[:start]}{_NAMES[kind]}{text[end:]}"
        return text, len(found)

    return scrub


def pii_kinds() -> tuple[str, ...]:
    """The kinds of personal data that `find_pii` looks for; telephone numbers only where phonenumbers is installed."""
    try:
        import phonenumbers  # noqa: F401
    except ImportError:
        return tuple(kind for kind in _NAMES if kind != "telephone number")
    return tuple(_NAMES)


def find_pii(text: str) -> list[tuple[str, int, int]]:
    """Kind, start and end of each piece of personal data in a text, in order and without overlaps."""
    found: list[tuple[str, int, int]] = []
    rest = text

    def take(kind: str, start: int, end: int) -> None:
        nonlocal rest
        found.append((kind, start, end))
        # What is inside an address or a key is no telephone number.
        rest = f"{rest[:start]}{chr(10) * (end - start)}{rest[end:]}"

    for kind, pattern in (("e-mail address", EMAIL), ("access key", KEY)):
        if pattern is KEY or "@" in rest:
            for match in list(pattern.finditer(rest)):
                take(kind, match.start(), match.end())
    if sum(map(str.isdigit, rest)) >= 7 and "telephone number" in pii_kinds():
        import phonenumbers

        for call in list(phonenumbers.PhoneNumberMatcher(rest, "US")):
            take("telephone number", call.start, call.end)
    return sorted(found, key=lambda piece: piece[1])


def _scrub_row(row: Row, scrub: Callable[[str], tuple[str, int]], change: bool) -> int:
    found = 0

    def counted(text: str) -> str:
        nonlocal found
        text, count = scrub(text)
        found += count
        return text

    columns = registry.schema(row.form).rewritten(row.columns, counted)
    if found and change:
        row.columns = columns
        row.text, row.prompt = scrub(row.text)[0], scrub(row.prompt)[0]
    return found


def _missing(place: str, extra: str) -> RequestError:
    return RequestError(
        "a library that this needs is not installed",
        place=place,
        fix=f"pip install 'hfadapt[{extra}]', or leave it out",
    )
