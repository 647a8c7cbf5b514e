"""What a server asks a bank of adapters: answers as `predict` gives them, and texts that are written freely."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hfadapt.core import registry
from hfadapt.core.errors import HfadaptError, RequestError
from hfadapt.core.progress import quiet_libraries
from hfadapt.models.attach import internal_name
from hfadapt.models.facts import position_limit
from hfadapt.models.generate import Reason, Wanted, write
from hfadapt.schemas import Unusable
from hfadapt.serve.adapted import MAX_NEW_TOKENS, Adapted, answers, room_for
from hfadapt.serve.bank import Bank
from hfadapt.serve.batching import Job, Limits
from hfadapt.serve.rows import text_of
from hfadapt.tasks import Answer

UNKNOWN = "\ufffd"
"""What stands for a character of which not all tokens are there yet."""


@dataclass(frozen=True)
class Asking:
    """Rows that are answered as `predict` does it.

    Args:
        domains: Of each row.
        inputs: Texts, bytes of files, or rows by the recipe's columns.
    """

    domains: Sequence[str]
    inputs: Sequence[Any]


class Answering:
    """`predict` for rows of many requests at once, each through the adapter of its own domain."""

    def __init__(self, bank: Bank, limits: Limits) -> None:
        self.bank, self.limits = bank, limits
        self.task = registry.task(next(iter(bank.adapters.values())).task)

    def measure(self, asked: Asking) -> int:
        """What a row is cut to, or less where the texts are shorter."""
        adapters = [self.bank.adapter(domain) for domain in asked.domains]
        most = max(each.max_length for each in adapters)
        if not registry.modality(self.task.modality).tokens:
            return most
        texts = [each if isinstance(each, str) else " ".join(map(str, each.values())) for each in _whole(asked.inputs)]
        longest = max(map(len, adapters[0].tokenizer(texts, verbose=False)["input_ids"]))
        return min(most, max(1, int(longest)))

    @quiet_libraries()
    def do(self, jobs: Sequence[Job]) -> None:
        """All rows together; where a request is refused, each is asked alone, and the refusal is its own."""
        try:
            found = self._answers([job.asked for job in jobs], max(job.tokens for job in jobs))
        except HfadaptError as error:
            if len(jobs) == 1:
                jobs[0].done.set_exception(self._named(error, jobs[0].asked))
                return
            for job in jobs:
                self.do([job])
            return
        at = 0
        for job in jobs:
            job.done.set_result(found[at : at + job.rows])
            at += job.rows

    def _named(self, error: HfadaptError, asked: Asking) -> HfadaptError:
        """Says which inputs of a request are at fault, where it has several and a file among them cannot be read."""
        if len(asked.inputs) == 1 or not isinstance(error, RequestError):
            return error
        faults = enumerate(map(self.task.fault, asked.inputs))
        found = [replace(fault, place=f"inputs.{number}") for number, fault in faults if fault is not None]
        return RequestError(found[0].what, problems=found) if found else error

    def _answers(self, asked: Sequence[Asking], longest: int) -> list[Answer]:
        own: list[Adapted] = []
        texts: list[Any] = []
        names: list[str] = []
        for request in asked:
            for number, (domain, value) in enumerate(zip(request.domains, request.inputs, strict=True)):
                adapted = self.bank.adapter(domain)
                if isinstance(value, Mapping) and not self.task.compares:
                    value, adapted = _filled(adapted, _whole(value), number), replace(adapted, prompt=None)
                own.append(adapted)
                texts.append(_whole(value) if isinstance(value, Mapping) else value)
                names.append(internal_name(domain))
        rows = max(1, min(self.limits.batch_rows, self.limits.batch_tokens // longest))
        return answers(own, texts, MAX_NEW_TOKENS, batch_rows=None if self.task.compares else rows, names=names)


def _filled(adapted: Adapted, values: Mapping[str, Any], number: int) -> str:
    try:
        return text_of(adapted, values)
    except Unusable as fault:
        raise RequestError(f"input {number}{fault.detail}", place="inputs") from None


@dataclass(frozen=True)
class Written:
    """A text that was written, and what it took.

    Args:
        completion_tokens: With the end token, where it was written.
    """

    text: str
    reason: Reason
    prompt_tokens: int
    completion_tokens: int


@dataclass
class Writing:
    """A text that is to be written.

    Args:
        said: A chat, or a text that is continued.
        max_tokens: None for as many as `predict` writes.
        stops: Texts that end it; they are not part of it.
        bare: Without white space at both ends, as `predict` gives it.
        tell: Told each piece of the text when it is there.
        given_up: Whether nobody waits any more.
        prompt: Token ids, once it was measured.
    """

    domain: str
    said: str | Sequence[Mapping[str, Any]]
    max_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stops: Sequence[str] = ()
    bare: bool = True
    tell: Callable[[str], None] | None = None
    given_up: bool = False
    prompt: list[int] = field(default_factory=list)


class WritingTexts:
    """Texts of many requests, written in one batch."""

    def __init__(self, bank: Bank, limits: Limits) -> None:
        self.bank, self.limits = bank, limits
        self.positions = position_limit(bank.model, bank.model.config)[0]

    def measure(self, asked: Writing) -> int:
        """The prompt and what may follow it. Raises RequestError where the model has no room for both."""
        adapted = self.bank.adapter(asked.domain)
        asked.prompt = registry.task(adapted.task).opened(adapted, _whole(asked.said))
        room = room_for(self.positions, asked.prompt, asked.max_tokens)
        most = MAX_NEW_TOKENS if asked.max_tokens is None else asked.max_tokens
        asked.max_tokens = min(most, room)
        return len(asked.prompt) + asked.max_tokens

    @quiet_libraries()
    def do(self, jobs: Sequence[Job]) -> None:
        """Each text is told as soon as it is complete, whatever the others still need."""
        adapted = self.bank.adapter(jobs[0].asked.domain)
        wanted = []
        for job in jobs:
            asked: Writing = job.asked
            assert asked.max_tokens is not None
            wanted.append(
                Wanted(
                    asked.prompt,
                    asked.max_tokens,
                    Listener(job, adapted.tokenizer).hear,
                    internal_name(asked.domain),
                    asked.temperature,
                    asked.top_p,
                    asked.seed,
                )
            )
        write(adapted.model, adapted.tokenizer, wanted)


class Listener:
    """Makes text of the tokens of one continuation, and looks for what ends it."""

    def __init__(self, job: Job, tokenizer: Any) -> None:
        self.job, self.asked, self.tokenizer = job, job.asked, tokenizer
        self.sent = 0

    def hear(self, ids: list[int], reason: Reason | None) -> bool:
        """Whether it goes on."""
        asked: Writing = self.asked
        if asked.given_up:
            self.job.done.set_result(None)
            return False
        if reason is None and not asked.stops and asked.tell is None:
            return True
        text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
        end = min((at for stop in asked.stops if (at := text.find(stop)) >= 0), default=-1)
        tokens = len(ids) + (reason == "stop")
        if end >= 0:
            text, reason = text[:end], "stop"
        if asked.bare:
            text = text.strip()
        if asked.tell is not None:
            ready = len(text) if reason else self._ready(text)
            if ready > self.sent:
                asked.tell(text[self.sent : ready])
                self.sent = ready
        if reason is None:
            return True
        self.job.done.set_result(Written(text, reason, len(asked.prompt), tokens))
        return False

    def _ready(self, text: str) -> int:
        """How much of a text no further token can take back: half a character, or the beginning of what ends it."""
        text = text.rstrip(UNKNOWN)
        starts = (
            len(text) - size
            for stop in self.asked.stops
            for size in range(min(len(stop) - 1, len(text)), 0, -1)
            if text.endswith(stop[:size])
        )
        return min(starts, default=len(text))


def _whole(value: Any) -> Any:
    """Half characters, which JSON can hold, replaced."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {_whole(key): _whole(each) for key, each in value.items()}
    return [_whole(each) for each in value] if isinstance(value, list) else value
