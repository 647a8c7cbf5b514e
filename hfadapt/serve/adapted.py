"""An adapter from a run, ready to use: `load_adapted("runs/sentiment/tweets/this-machine").predict("great!")`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfadapt.core import registry
from hfadapt.core.errors import RequestError, RunError
from hfadapt.core.progress import quiet_libraries
from hfadapt.core.show import Block, Heading, Shown, Table
from hfadapt.recipe.domain import CLASSES
from hfadapt.recipe.sources import expanded, found_model, is_missing
from hfadapt.records.stages import TrainRecord
from hfadapt.run_folder import LOCK, Cell, find_cell, read_lock
from hfadapt.schemas import Asked, Unusable
from hfadapt.serve.rows import beside, file_of, rows_in, text_of
from hfadapt.tasks import Answer, Task
from hfadapt.tasks._answers import Answers

if TYPE_CHECKING:
    import torch

    from hfadapt.models.load import Base
    from hfadapt.recipe.schema import Lock
    from hfadapt.records.stages import Manifest

MAX_NEW_TOKENS = 128
WORDS_SHOWN = 240
"""Characters of what a library says."""


@dataclass
class Adapted(Shown):
    """A base with its adapter on it.

    Args:
        model: The peft model (or, for method full, the model itself), in evaluation mode.
        tokenizer: The base's.
        labels: Label names; for a language model, the answers it chooses from, or none.
        choices: Token ids of those answers.
        form: How its rows were given: `messages` are put into the chat template.
        prompt: The recipe's template, in which `{text}` is replaced.
        cell: The cell it comes from; None for an exported folder.
        columns: The columns of the data by what they hold, as it was read.

    Example:
        >>> from hfadapt import load_adapted
        >>> adapted = load_adapted("runs/sentiment/tweets/this-machine")
        >>> [answer.label for answer in adapted.predict(["What a day!", "Never again."])]
        ['...', '...']
    """

    model: Any = field(repr=False)
    tokenizer: Any = field(repr=False)
    task: str
    labels: tuple[str, ...]
    choices: Mapping[str, tuple[int, ...]]
    max_length: int
    form: str | None = None
    prompt: str | None = None
    cell: Cell | None = None
    columns: Mapping[str, str] = field(default_factory=dict)

    def blocks(self) -> list[Block]:
        """What it does, and where it comes from."""
        rows = [["task", self.task], ["labels", ", ".join(self.labels)], ["longest row", f"{self.max_length:,}"]]
        rows += [["cell", str(self.cell.folder)]] if self.cell else []
        return [Heading("Adapter, ready to predict", 3), Table(["", ""], [row for row in rows if row[1]])]

    def predict(self, texts: Any, max_new_tokens: int = MAX_NEW_TOKENS) -> list[Answer]:
        """Answers for one or more texts or, where the rows are files, for paths, bytes, or values in memory; or for
        rows of a table by the columns that were trained on, as dicts, a data frame of pandas or a data set.

        A classifier gives the label. A language model that was trained to answer with one of a few words chooses
        among them; the recipe's template is put around the text. Otherwise it generates greedily.
        """
        asked = values_of(self, texts)
        return answers([self] * len(asked), asked, max_new_tokens)

    @property
    def pad_token_id(self) -> int:
        """What rows are padded with."""
        from hfadapt.models.load import pad_token_id

        return pad_token_id(self.tokenizer)

    def reply(self, chat: str | Sequence[Mapping[str, Any]], max_new_tokens: int = MAX_NEW_TOKENS) -> str:
        """The greedy answer to a chat, of an adapter that was trained on chats.

        Args:
            chat: Its turns, the last of them the user's; or what the user says, where that is all.

        Raises:
            RequestError: it is no chat, the model has no room for it and a token of an answer, or it writes no texts.
        """
        from hfadapt.models.facts import position_limit

        task = registry.task(self.task)
        if not task.writes:
            raise RequestError(f"this adapter does not write texts: its task is {self.task}", fix="call predict")
        prompt = task.opened(self, [{"role": "user", "content": chat}] if isinstance(chat, str) else chat)
        room = room_for(position_limit(self.model, self.model.config)[0], prompt, None, fix="begin a new chat")
        (ids,) = self.generate([prompt], min(max_new_tokens, room))
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    def generate(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, names: Sequence[str] = ()
    ) -> list[list[int]]:
        """Greedy continuations of token ids, all in one batch; `names` as for `answers`.

        Raises:
            RequestError: not one token is to be written.
        """
        from hfadapt.models.generate import continuations

        if max_new_tokens < 1:
            what = "at least one token is to be written"
            raise RequestError(what, place="max_new_tokens", got=str(max_new_tokens), fix="ask for more")
        return continuations(
            self.model, self.tokenizer, prompts, max_new_tokens, batch_rows=len(prompts), adapters=names
        )


def room_for(
    most: int | None,
    prompt: Sequence[int],
    wanted: int | None,
    fix: str = "shorten the prompt, or ask for fewer tokens",
) -> int:
    """How many tokens may follow a prompt.

    Args:
        most: As many does the model read; None where there is no limit.
        wanted: How many are asked for; None for as many as there is room for.
        fix: What helps where there is none.

    Raises:
        RequestError: the model has no room for them.
    """
    room = (most or 1 << 30) - len(prompt)
    if room < (wanted or 1):
        raise RequestError(
            "the prompt and the answer are longer than what the model reads",
            got=f"a prompt of {len(prompt):,} tokens and {wanted or 1:,} to write",
            allowed=f"{most:,} in all",
            fix=fix,
        )
    return room


def values_of(adapted: Adapted, given: Any) -> list[Any]:
    """What `predict` is given, value by value."""
    if (read := _read(adapted, given)) is not None:
        return [read]
    found = rows_in(given)
    # Parts of an array that are no values say less than the array.
    return [given] if hasattr(given, "dtype") and found and _read(adapted, found[0]) is None else found


def _read(adapted: Adapted, value: Any, place: str | None = None) -> Any:
    """A value as tasks answer it; None for what is none. Raises RequestError for a file that is not here."""
    kind = registry.modality_of(adapted.task)
    try:
        return kind.given(value)
    except Unusable as fault:
        got = fault.detail.removeprefix(" has ")
        raise RequestError(f"this {kind.noun} cannot be read", place=place, got=got) from None


@quiet_libraries()
def answers(
    own: Sequence[Adapted],
    texts: Sequence[Any],
    max_new_tokens: int,
    *,
    batch_rows: int | None = None,
    names: Sequence[str] = (),
) -> list[Answer]:
    """Answers for texts, each from its own adapter; all adapters are on one model.

    Args:
        own: The adapter of each text.
        texts: Or what `predict` takes.
        batch_rows: Texts at once, by default what the task finds right.
        names: For each text the name of its adapter inside the model, where it has several.
    """
    own, texts = list(own), list(texts)
    if both := _both(own, texts):
        return Answers(about_both(own, both, names))
    for row, (adapted, value) in enumerate(zip(own, texts, strict=True)):
        own[row], texts[row] = _given(adapted, value, row, len(texts) > 1)
    # Those that choose from the same words, or write freely, can be asked together.
    groups: dict[tuple[Any, ...], list[int]] = {}
    for row, adapted in enumerate(own):
        groups.setdefault(tuple(adapted.choices.items()), []).append(row)
    found: dict[int, Answer] = {}
    for group in groups.values():
        task = registry.task(own[group[0]].task)
        count = batch_rows or task.answer_rows
        for start in range(0, len(group), count):
            rows = group[start : start + count]
            asked, said, inside = [own[i] for i in rows], [texts[i] for i in rows], [names[i] for i in rows if names]
            try:
                found |= zip(rows, task.answer(asked, said, max_new_tokens, inside), strict=True)
            except RequestError as error:
                raise _with_rows(error, task, texts) from None
            except RuntimeError as error:
                raise _not_run(error, own[group[0]].model) from error
    return Answers(found[row] for row in range(len(texts)))


def _not_run(error: RuntimeError, model: Any) -> RuntimeError | RequestError:
    """What a model's own code cannot run, such as a text shorter than its windows; want of memory stays what it is."""
    import torch

    if isinstance(error, torch.OutOfMemoryError):
        return error
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    got = " ".join(str(error).split())[:200]
    fix = "ask about other values, such as longer texts"
    return RequestError(f"{type(inner).__name__} cannot be run on these", got=got, fix=fix)


def _with_rows(error: RequestError, task: Task, values: Sequence[Any]) -> RequestError:
    """An error of a batch; where files cannot be read, all of these, those without a name by their number."""
    if not registry.modality(task.modality).suffixes:
        return error
    faults = [(row, fault) for row, value in enumerate(values) if (fault := task.fault(value)) is not None]
    rows = [replace(fault, place=fault.place or (f"row {row}" if len(values) > 1 else None)) for row, fault in faults]
    return RequestError(rows[0].what, problems=rows) if rows else error


def about_both(own: Sequence[Adapted], both: Sequence[tuple[str, str]], names: Sequence[str] = ()) -> list[Answer]:
    """Answers about queries and what stands beside each; those that follow each other with one query at once.

    Args:
        own: The adapter of each.
        names: As for `answers`.
    """
    found: list[Answer] = []
    named = names or [""] * len(both)
    for (name, query), group in groupby(range(len(both)), lambda at: (named[at], both[at][0])):
        places = list(group)
        adapted, asked = own[places[0]], [query, *(both[at][1] for at in places)]
        count = len(asked)
        said = (
            answers([adapted] * count, asked, MAX_NEW_TOKENS, names=[name] * count) if names else adapted.predict(asked)
        )
        found += said[1:]
    return found


def _both(own: Sequence[Adapted], rows: Sequence[Any]) -> list[tuple[str, str]]:
    """The texts of rows of which an answer is about both; none where the first row has but one."""
    files = bool(own) and bool(registry.modality_of(own[0].task).suffixes)
    if files or not all(isinstance(row, Mapping) for row in rows):
        return []
    found: list[tuple[str, str]] = []
    for number, (adapted, row) in enumerate(zip(own, rows, strict=True)):
        try:
            other = beside(adapted, row)
            if other is None and found:
                raise Unusable("missing-field", " has nothing beside its query, as those before it have")
            if other is None:
                return []
            found.append((text_of(adapted, row), other))
        except Unusable as fault:
            raise RequestError(f"row {number}{fault.detail}", fix="name the columns as in training") from None
    return found


def _given(adapted: Adapted, value: Any, row: int, several: bool) -> tuple[Adapted, Any]:
    """A value as tasks answer it, and who answers; a row of a table fills the recipe's template itself.

    Args:
        several: Whether it has to be said which row is meant.

    Raises:
        RequestError: it is nothing to ask about.
    """
    kind = registry.modality_of(adapted.task)
    place = f"row {row}" if several else None
    given = _read(adapted, value, place)
    if given is None and isinstance(value, Mapping):
        try:
            value = file_of(adapted, value) if kind.suffixes else text_of(adapted, value)
        except Unusable as fault:
            raise RequestError(f"row {row}{fault.detail}", fix="name the columns as in training") from None
        adapted, given = replace(adapted, prompt=None), _read(adapted, value, place)
    if given is None:
        what = f"{'an' if kind.noun[0] in 'aeiou' else 'a'} {kind.noun} is expected"
        raise RequestError(what, place=place, got=_told(value), allowed=f"{kind.accepted}, or rows of a table with one")
    # Halves of characters (surrogates), as in the arguments of a program, are nothing that a tokenizer reads.
    if isinstance(given, str) and not isinstance(given, Asked):
        given = given.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return adapted, given


def _told(value: Any) -> str:
    """A value for a message; of an array what it is."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"an array {tuple(value.shape)} of {value.dtype}"
    return repr(value)[:80]


@quiet_libraries()
def load_adapted(
    path: str | PathLike[str], domain: str | None = None, target: str | None = None, base: str | None = None
) -> Adapted:
    """Loads the base of a cell, checks that the adapter belongs to it, and puts it on; or opens an exported folder.

    Args:
        path: A cell's folder, a run's with `domain` and `target` where it has several cells, or an exported folder.
        base: Where the base is now, if not where it was trained on or, of an exported adapter, under the name in its
            manifest.

    Raises:
        RequestError: no such cell, or it is not trained yet.
        RunError: the adapter does not belong to the base, or its files were changed.

    Example:
        >>> from hfadapt import load_adapted
        >>> load_adapted("runs/sentiment", domain="movies").labels
        ('bad', 'good')
    """
    from hfadapt.models.attach import open_adapter
    from hfadapt.models.load import default_device, resolve_model
    from hfadapt.models.manifest import FILE, load_base_of

    folder = Path(path)
    if (folder / FILE).is_file():
        if domain is not None or target is not None:
            raise RequestError("an exported folder holds one adapter", place="--domain, --target", fix="leave them out")
        return _load_exported(folder, base)
    cell = find_cell(folder, domain, target)
    if not cell.has(TrainRecord):
        raise RequestError("the cell is not trained yet", place=str(cell.folder), fix="hfadapt run RECIPE")
    lock, device = cell.lock, default_device()
    if base is not None:
        if lock.base is not None:
            raise RequestError("the base is in the cell, made by a stage", place="--base", fix="leave it out")
        # What was named and is not there is another matter than a base that is gone.
        lock = lock.model_copy(update={"model": resolve_model(_said_base(base, cell.folder)).asked})
    try:
        loaded = load_base_of({cell.adapter: cell.data.labels}, lock, device)
    except OSError as error:
        raise _not_found(lock.model, cell.folder, _no_folder(cell.folder, error)) from None
    return replace(from_cell(cell, loaded), model=open_adapter(loaded, cell.adapter, lock.adapter.method, device))


def from_cell(cell: Cell, base: Base) -> Adapted:
    """How a cell's adapter is asked, with the base alone as its model."""
    lock, data = cell.lock, cell.data
    task = registry.task(lock.task)
    choices = task.choices(task.answer_texts(data.form, data.completions, cell.read_split), base.tokenizer)
    template = lock.template_of(lock.domain)
    return Adapted(
        base.model,
        base.tokenizer,
        lock.task,
        tuple(choices) or data.labels,
        choices,
        lock.data.max_length,
        data.form,
        template.prompt if template else None,
        cell,
        {**data.columns, **_columns(lock)},
    )


def _columns(lock: Lock) -> dict[str, str]:
    """The columns that the recipe names, by what they hold."""
    said = lock.domains[lock.domain].all_sources()[0].columns.model_dump(exclude={CLASSES})
    return {part: name for part, name in said.items() if name is not None}


def _load_exported(folder: Path, base: str | None) -> Adapted:
    """What is in an exported or published folder, by its manifest."""
    from hfadapt.models.attach import open_adapter
    from hfadapt.models.load import default_device
    from hfadapt.models.manifest import check_folder

    manifest = check_folder(folder)
    if not (folder / "lock.yaml").is_file():
        raise RequestError(
            "the folder does not say how its model was trained",
            place=str(folder / "lock.yaml"),
            fix="give the cell's folder, or one that hfadapt exported or published",
        )
    lock = read_lock(folder / LOCK)
    device = default_device()
    if manifest.whole:
        if base is not None:
            raise RequestError("the folder holds a whole model", place="--base", fix="leave it out")
        loaded = registry.format(manifest.format).open(folder, manifest, lock, device)
        model = loaded.model
    else:
        loaded = _base_of(folder, manifest, lock, base, device)
        model = open_adapter(loaded, folder, manifest.method, device)
    choices = registry.task(manifest.task).choices(manifest.completions, loaded.tokenizer)
    labels = tuple(choices) or manifest.labels
    return Adapted(
        model,
        loaded.tokenizer,
        manifest.task,
        labels,
        choices,
        manifest.max_length,
        manifest.form,
        manifest.prompt,
        columns=_columns(lock),
    )


def _said_base(base: str, near: Path) -> str:
    """What a user names as base: of a bare name a folder here or above the adapter comes before one of the Hub."""
    if "/" in base or expanded(base).exists():
        return base
    found = found_model(f"./{base}", near)
    return found if expanded(found).exists() else base


def _no_folder(near: Path, error: OSError) -> str:
    return f"no folder of that name here or above {near}, and as a name on the Hub: {error}"


def _not_found(model: str, folder: Path, why: str) -> RequestError:
    said = " ".join(why.split())
    return RequestError(
        "the base of this adapter was not found",
        place=model or str(folder),
        got=said if len(said) <= WORDS_SHOWN else f"{said[:WORDS_SHOWN]} …",
        fix="say where it is: --base FOLDER",
    )


def _base_of(folder: Path, manifest: Manifest, lock: Lock, base: str | None, device: torch.device) -> Base:
    """The base of an exported adapter: where the user says it is, else by its name."""
    from hfadapt.core.samples import PREFIX
    from hfadapt.models.load import resolve_model
    from hfadapt.models.manifest import load_base_of

    known = manifest.model + (f"@{manifest.model_revision}" if manifest.model_revision else "")
    if lock.model.startswith(PREFIX):
        # It is on the Hub too, but whoever named the sample may not be able to reach it.
        known = lock.model
    elif manifest.weights_sha256 is not None and not expanded(known).exists():
        # It lay on a disk; the Hub need not be asked for the name of a folder.
        known = found_model(f"./{known}", folder)
    # A base that a stage made is in the cell, not in the exported folder: the user has to say where.
    known = known if manifest.base is None else ""
    lock = lock.model_copy(update={"model": _said_base(base, folder) if base else known, "base": None})

    def not_found(why: str) -> RequestError:
        return _not_found(lock.model, folder, why)

    if base is None and manifest.base is not None:
        raise not_found(f"the stage {manifest.base.made_by} made it: {manifest.base.how}")
    if base is None and is_missing(known):
        raise not_found(f"no folder {manifest.model} here or above {folder}, as it was where the adapter was trained")
    if base is None:
        try:
            # A sample is fetched here. What fails later is not about finding the base.
            resolve_model(known)
        except (RequestError, RunError) as error:
            raise not_found(error.problems[0].got or error.what) from None
    else:
        resolve_model(lock.model)
    try:
        return load_base_of({folder: manifest.labels}, lock, device, manifest=manifest)
    except OSError as error:
        raise not_found(_no_folder(folder, error)) from None
