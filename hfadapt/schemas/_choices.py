"""Which of several answers is the better one, as people write it down: by a winner, or by scores."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from hfadapt.core.errors import DataError
from hfadapt.files import Read, Unread
from hfadapt.schemas import Columns, Layout, Unusable, read_list, whole_number
from hfadapt.schemas._layouts import columns_of, each, filled, listed, named, without

CHOSEN, REJECTED = "chosen", "rejected"
_STEMS = {"response", "answer", "completion", "output", "reply", "conversation", "generation", "candidate", "summary"}
_STEMS |= {"human_ref", "model_output", "text_response"}
_ENDS = {"a": ("b", "c", ""), "1": ("2", "3", "0"), "0": ("1", "2", "")}
"""How the names of two answers end, and those of others."""
_SIDE = re.compile(r"(\w+?)_?([a01])", re.IGNORECASE)
_WINNER = (
    "winner",
    "preference",
    "preferred",
    "choice",
    "better",
    "best",
    "label",
    "labels",
    "human_preference",
    CHOSEN,
)
_TIES = ("tie", "both", "neither", "equal", "same", "none", "draw")
_LISTS = ("completions", "responses", "outputs", "answers", "candidates", "generations", "replies")
_TEXT = ("response", "text", "completion", "output", "content", "answer", "reply", "generated_text")
_SCORE = ("overall_score", "score", "rating", "reward", "quality", "rank", "ranking")
_SCORES = ("scores", "ratings", "rewards", "overall_scores", "ranks", "rankings", "ranking")
_RANK = "rank"
"""In names of numbers of which the smallest is the best."""


def of_two(head: Sequence[Columns], prompts: Sequence[str], said: Mapping[str, str]) -> Layout | None:
    """Two answers, and a column that says which is better: its name, its letter or number, or flags of both."""
    columns = columns_of(head)
    prompt = named(columns, prompts, said.get("prompt"))
    for one, other, ends in _sides(columns):
        flags = [next((each for each in columns if each.lower() in _flags(end)), "") for end in ends]
        winner = named([each for each in columns if each not in (one, other)], _WINNER)
        if all(flags) and all(str(row.get(flag)) in ("0", "1") for row in head for flag in flags):
            used, better = flags, _flagged(*flags)
        elif winner is not None and any(_says(filled(head, winner), (one, other), ends)):
            used, better = [winner], _named(winner, (one, other), ends)
        elif winner is not None and {*map(whole_number, filled(head, winner))} == {0, 1}:
            used, better = [winner], None
        else:
            continue
        what = f"two answers, {one!r} and {other!r}, with the better one in {' and '.join(map(repr, used))}"
        parts, every = _parts(prompt), (*filter(None, (prompt,)), one, other, *used)
        if better is None:
            return Layout(what, parts, every, _unclear(one, other, used[0]))
        return Layout(
            f"{what}: it is the chosen one, the other is rejected",
            parts,
            every,
            each(_made(prompt, one, other, used, better)),
        )
    return None


def of_several(head: Sequence[Columns], prompts: Sequence[str], said: Mapping[str, str]) -> Layout | None:
    """A list of answers with a score each, in the answers themselves or in another list."""
    columns = columns_of(head)
    prompt, answers = named(columns, prompts, said.get("prompt")), named(columns, _LISTS)
    if prompt is None or answers is None:
        return None
    scores = named(columns, _SCORES)
    keys = _keys(head, answers)
    lists = [(listed(row.get(answers)), listed(row.get(scores or ""))) for row in head]
    beside = scores is not None and all(len(own) == len(numbers) for own, numbers in lists)
    beside = beside and all(isinstance(one, str) for own, _ in lists for one in own) and any(own for own, _ in lists)
    if keys is None and not beside:
        return None
    lower = _RANK in str(scores if keys is None else keys[1])

    def made(values: Columns) -> Iterator[dict[str, Any]]:
        own = listed(values.get(answers))
        pairs = zip(own, listed(values.get(scores or "")), strict=False)
        if keys is not None:
            pairs = ((one.get(keys[0]), one.get(keys[1])) for one in own)  # type: ignore[assignment]
        told = [(number, text) for text, score in pairs if text and (number := _number(score)) is not None]
        best, worst = (min(told, key=_first), max(told, key=_first)) if told else ((0, ""), (0, ""))
        best, worst = (best, worst) if lower else (worst, best)
        if best[0] == worst[0]:
            raise Unusable("no-preference", f" has no two answers with different scores in {answers}")
        yield {
            **without(values, answers, *([scores] if beside and scores else [])),
            CHOSEN: best[1],
            REJECTED: worst[1],
        }

    what = f"answers with scores, in {answers!r}: the best is the chosen one, the worst is rejected"
    used = (prompt, answers, *([scores] if keys is None and scores else []))
    return Layout(what, _parts(prompt), used, each(made))


def _unclear(one: str, other: str, winner: str) -> Callable[[Iterable[Read]], Iterator[Read | Unread]]:
    """A reader that refuses 0 and 1: of some data the first answer is number 0, of others 1 says that it is better."""

    def read(rows: Iterable[Read]) -> Iterator[Read | Unread]:
        what, fix = "which answer is the better one is not clear", f"write {one} or {other} into the column {winner}"
        raise DataError(what, got=f"0 and 1 in {winner!r}, beside {one!r} and {other!r}", fix=fix)
        yield

    return read


def _first(pair: tuple[float, str]) -> float:
    return pair[0]


def _parts(prompt: str | None) -> dict[str, str]:
    return {**({"prompt": prompt} if prompt else {}), CHOSEN: CHOSEN, REJECTED: REJECTED}


def _sides(columns: Sequence[str]) -> Iterator[tuple[str, str, tuple[str, str]]]:
    """Pairs of columns that two answers stand in, and how their names end."""
    for column in columns:
        match = _SIDE.fullmatch(column)
        if match is None or match[1].lower() not in _STEMS or match[2].lower() not in _ENDS:
            continue
        known = {each.lower(): each for each in columns}
        other, *more = (known.get(column[:-1].lower() + end) for end in _ENDS[match[2].lower()] if end)
        if other is not None and not any(more):
            yield column, other, (match[2].lower(), _ENDS[match[2].lower()][0])


def _flags(end: str) -> set[str]:
    return {f"winner_model_{end}", f"winner_{end}", f"{end}_wins", f"{end}_won"}


def _side(value: Any, columns: tuple[str, str], ends: tuple[str, str]) -> int | None:
    """Which of both is better; -1 for neither, None for what says nothing of them."""
    whole = whole_number(value)
    text = str(value if whole is None else whole).strip().lower()
    if any(word in text for word in _TIES):
        return -1
    for side, (column, end) in enumerate(zip(columns, ends, strict=True)):
        if re.split(r"[\W_]+", text)[-1] == end or text == column.lower() or text.endswith(f"_{end}"):
            return side
    return None


def _says(values: Sequence[Any], columns: tuple[str, str], ends: tuple[str, str]) -> list[bool]:
    """For each value whether one of both is better; nothing where a value says something else."""
    sides = [_side(value, columns, ends) for value in values]
    return [] if None in sides else [side != -1 for side in sides]


def _named(winner: str, columns: tuple[str, str], ends: tuple[str, str]) -> Callable[[Columns], int | None]:
    return lambda values: None if values.get(winner) in (None, "") else _side(values.get(winner), columns, ends)


def _flagged(one: str, other: str) -> Callable[[Columns], int | None]:
    return lambda values: {("1", "0"): 0, ("0", "1"): 1}.get((str(values.get(one)), str(values.get(other))), -1)


def _made(
    prompt: str | None, one: str, other: str, used: Sequence[str], better: Callable[[Columns], int | None]
) -> Callable[[Columns], Iterator[dict[str, Any]]]:
    def made(values: Columns) -> Iterator[dict[str, Any]]:
        side = better(values)
        if side not in (0, 1):
            raise Unusable("no-preference", f" has no better answer in {' and '.join(used)}")
        own = (values.get(one), values.get(other))
        if prompt is not None and isinstance(asked := read_list(values.get(prompt)), list):
            # Several turns, the answers of which are lists, too.
            own = (_chat(asked, own[0]), _chat(asked, own[1]))
            values = {**values, prompt: None}
        yield {**without(values, one, other, *used), CHOSEN: own[side], REJECTED: own[1 - side]}

    return made


def _chat(asked: Sequence[Any], said: Any) -> Any:
    """Turns of what is asked and said again and again; what is said as it is, where that cannot be."""
    answers = listed(said)
    if len(answers) != len(asked) or not all(isinstance(text, str) for text in (*asked, *answers)):
        return said
    return [
        {"role": role, "content": text}
        for pair in zip(asked, answers, strict=True)
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]


def _keys(head: Sequence[Columns], answers: str) -> tuple[str, str] | None:
    """The keys of text and score in the objects of a list of answers."""
    objects = [one for row in head for one in listed(row.get(answers))]
    if not objects or not all(isinstance(one, Mapping) for one in objects):
        return None
    text = next((key for key in _TEXT if all(isinstance(one.get(key), str) for one in objects)), None)
    score = next((key for key in _SCORE if any(_number(one.get(key)) is not None for one in objects)), None)
    return (text, score) if text and score else None


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
