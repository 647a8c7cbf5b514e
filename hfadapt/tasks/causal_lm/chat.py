"""Chats as the chat template of a model writes them, and what of that text is learned.

Each answer is learned after the text that the model will be shown before it: the template over the turns before, with
the generation prompt. Answers whose text stays as it is when turns are added stand in one example. A template that
changes earlier turns (Qwen3 takes thinking out of them, Mistral moves the system's text) makes an example of each.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, Any

from hfadapt.core.errors import DataError, RequestError
from hfadapt.core.limits import limited
from hfadapt.files.places import Place
from hfadapt.modalities import IGNORED, Row
from hfadapt.modalities.text import require_offsets
from hfadapt.schemas import Unusable
from hfadapt.schemas._turns import turns_of
from hfadapt.tasks import Remark

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

THOUGHTS = ("reasoning_content", "thinking", "reasoning")
NOT_SHOWN = "use a model whose chat template writes it, or take it out of the data"
REFUSED = (
    "change these rows so that the template takes them, such as the system's text at the beginning of the user's first "
    "turn, or two turns of one role as one; or use a model whose template takes them"
)


@dataclass(frozen=True)
class Answer:
    """One turn of the assistant.

    Args:
        turn: Its place among the turns.
        prompt: The text before it.
        text: Its text with what ends it.
        asked: Whether `prompt` is what the template shows before an answer is generated.
    """

    turn: int
    prompt: str
    text: str
    asked: bool = True

    @property
    def whole(self) -> str:
        """The text up to its end."""
        return self.prompt + self.text

    @property
    def span(self) -> tuple[int, int]:
        """Where in `whole` it stands; a line break after its end token belongs to the next turn."""
        return len(self.prompt), len(self.prompt) + (len(self.text.rstrip()) or len(self.text))


TEMPLATE_SECONDS, TEMPLATE_BYTES = 5, 1 << 30
"""More than any chat needs: a template comes with a model, and is a program."""


class Chat:
    """One row of messages under a tokenizer's chat template.

    Raises:
        DataError: there is no template, it refuses the chat, or its answers cannot be found in what it writes.
        Unusable: an answer calls tools, and the template does not write calls.
    """

    def __init__(self, row: Row, tokenizer: PreTrainedTokenizerBase) -> None:
        if not tokenizer.chat_template:
            raise DataError(
                "the model has no chat template",
                place=str(tokenizer.name_or_path),
                fix="use the instruction-tuned version of the model, or put a chat_template.jinja into a local copy "
                "of it and name that folder as model",
            )
        self.row, self.tokenizer = row, tokenizer
        self.source = str(tokenizer.chat_template)
        messages = row["messages"]
        last = max((at for at, each in enumerate(messages) if _learned(each)), default=len(messages) - 1)
        self.rest = messages[last + 1 :]
        self.tools = json.loads(row["tools"]) if row.get("tools") else None
        self.given = [
            {"role": each["role"], "content": each["content"], **_more(each)} for each in messages[: last + 1]
        ]
        self.learned = [at for at, each in enumerate(messages) if _learned(each)]

    @cached_property
    def turns(self) -> list[dict[str, Any]]:
        """The turns in the first of the shapes in use that the template takes and writes calls of."""
        fault: DataError | None = None
        taken: list[dict[str, Any]] | None = None
        for shape in self._shapes():
            try:
                text = self.write(shape)
            except DataError as error:
                fault = fault or error
                continue
            if all(name in text for each in shape for name in called(each)):
                return shape
            taken = taken or shape
        if taken is None:
            raise fault or DataError("the chat has no turns", place=self.place)
        return taken

    def _shapes(self) -> Iterator[list[dict[str, Any]]]:
        """As given; where tools are called also with null contents, and arguments as text: templates differ in that."""
        turns = [self._spoken(each) for each in self.given]
        calling = [at for at, each in enumerate(turns) if "tool_calls" in each]
        for null, text in product((False, True), (False, True)) if calling else [(False, False)]:
            shape = [dict(each) for each in turns]
            for at in calling:
                if null and not shape[at]["content"]:
                    shape[at]["content"] = None
                if text:
                    shape[at]["tool_calls"] = [_in_text(call) for call in shape[at]["tool_calls"]]
            yield shape

    def _spoken(self, turn: Mapping[str, Any]) -> dict[str, Any]:
        """A turn in the words of the template: `developer` is a system to most, and thoughts have several names."""
        spoken = dict(turn)
        if spoken["role"] == "developer" and "developer" not in self.source:
            spoken["role"] = "system"
        for name in THOUGHTS:
            known = next((other for other in THOUGHTS if other in self.source), name)
            if name in spoken and name not in self.source and known not in spoken:
                spoken[known] = spoken.pop(name)
        return spoken

    @property
    def place(self) -> str:
        """The row, for messages."""
        return str(Place.of(self.row))

    def write(self, turns: Sequence[Mapping[str, Any]], ask: bool = False, tools: bool = True) -> str:
        """What the template makes of turns. Raises DataError with its own words where it refuses them."""
        try:
            with limited(TEMPLATE_SECONDS, TEMPLATE_BYTES):
                return str(
                    self.tokenizer.apply_chat_template(
                        [dict(each) for each in turns],
                        tools=self.tools if tools else None,
                        tokenize=False,
                        add_generation_prompt=ask,
                    )
                )
        except (TimeoutError, MemoryError) as error:
            # No answer to a chat: a template that does not end for one does not for the next.
            most = f"{TEMPLATE_BYTES >> 30} GiB" if isinstance(error, MemoryError) else f"{TEMPLATE_SECONDS} s"
            raise RequestError(
                f"the chat template takes more than {most} for one chat",
                place=self.place,
                fix=f"do not use {self.tokenizer.name_or_path} as it is: compare its template with that of its base",
            ) from None
        except Exception as error:  # a template is a program, and may fail in any way
            words = str(error).strip().splitlines()
            syntax = type(error).__name__ == "TemplateSyntaxError"
            raise DataError(
                f"the chat template {'is broken' if syntax else 'refuses the chat'}: "
                f"{words[0] if words else type(error).__name__}",
                place=self.place,
                fix=f"correct the template of {self.tokenizer.name_or_path}" if syntax else REFUSED,
            ) from None

    @cached_property
    def answers(self) -> list[Answer]:
        """The turns that are learned, each after what the model will be shown."""
        found = [self._answer(at) for at in self.learned]
        for each in found:
            unseen = [name for name in called(self.turns[each.turn]) if name not in each.text]
            if unseen:
                what = f": the chat template does not write tool_calls (turn {each.turn + 1} calls {', '.join(unseen)})"
                raise Unusable("tool-calls-not-shown", what)
        return found

    def _answer(self, at: int) -> Answer:
        turns = self.turns[: at + 1]
        after = self.write(turns)
        if at == 0:
            header = self._header()
            start = after.find(header) + len(header) if header and header in after else _begins(after, turns[0])
            return Answer(at, after[:start], after[start:])
        asked = self.write(turns[:-1], ask=True)
        if after.startswith(asked):
            return Answer(at, asked, after[len(asked) :])
        before = self.write(turns[:-1])
        header = asked[len(before) :] if asked.startswith(before) else ""
        rest = after[len(before) :] if after.startswith(before) else self._after_last(before, after, turns)
        if rest is None:
            raise DataError(
                "the chat template changes earlier turns when a turn is added, so that no answer can be told from them",
                place=self.place,
                got=repr(after[:120]),
                fix=REFUSED,
            )
        if rest.startswith(header):
            return Answer(at, before + header, rest[len(header) :])
        # The generation prompt opens what the template does not write into a finished turn, such as thinking.
        shared = min(_shared(header, rest), _begins(rest, turns[-1]))
        return Answer(at, before + header[:shared], rest[shared:], asked=False)

    def _after_last(self, before: str, after: str, turns: Sequence[Mapping[str, Any]]) -> str | None:
        """What follows the turn before the last one, where a template has changed what comes before that."""
        said = str(turns[-2]["content"] or "").strip()
        anchor = before[before.rfind(said) :] if said and said in before else ""
        end = len(after) - len(turns[-1]["content"] or "")
        place = after.rfind(anchor, 0, end) if anchor else -1
        return None if place < 0 else after[place + len(anchor) :]

    def _header(self) -> str:
        """What the template writes before an answer."""
        turns = [{"role": "user", "content": "x"}]
        asked, before = self.write(turns, ask=True, tools=False), self.write(turns, tools=False)
        return asked[len(before) :] if asked.startswith(before) else ""

    @cached_property
    def groups(self) -> list[list[Answer]]:
        """The answers that stand in one example, by example."""
        found: list[list[Answer]] = []
        for answer in reversed(self.answers):
            # The last answer of a group holds the text of all.
            fitting = next((group for group in found if group[-1].prompt.startswith(answer.whole)), None)
            if fitting is None:
                found.insert(0, [answer])
            else:
                fitting.insert(0, answer)
        return found

    def rows(self) -> list[Row]:
        """The row itself, or one for each group of answers, in which the other answers are not trained."""
        if len(self.groups) < 2:
            return [self.row]
        rows: list[Row] = []
        for group in self.groups:
            kept = {answer.turn for answer in group}
            turns = [
                {**each, "trained": False} if each["role"] == "assistant" and at not in kept else each
                for at, each in enumerate(self.row["messages"][: group[-1].turn + 1])
            ]
            rows.append({**self.row, "messages": turns})
        return rows

    def remarks(self) -> list[Remark]:
        """Keys and turns that the template does not write, and answers that are learned otherwise than expected."""
        found = [Remark("not-shown", each, NOT_SHOWN) for each in self._unseen()]
        if any(each["role"] != "assistant" for each in self.rest):
            found.append(Remark("not-trained", "what follows the last answer of a chat is left out", "add its answer"))
        if any(not each.text.strip() or self._silent(each.turn) for each in self.answers):
            what = "an assistant turn is empty, so that the model learns to say nothing"
            found.append(Remark("empty-answer", what, "fill these turns, or give them weight: 0"))
        odd = next((each for each in self.answers if not each.asked), None)
        if odd is not None:
            end = self.write(self.turns[: odd.turn], ask=True)[-20:]
            what = f"the generation prompt ends in {end!r}, which the template does not write before a finished answer"
            found.append(Remark("other-prompt", what, "give answers in the form that the template expects"))
        return found

    def _silent(self, at: int) -> bool:
        turn = self.given[at]
        return not turn["content"].strip() and len(turn) == 2

    def _unseen(self) -> list[str]:
        """What of the row the template does not write."""
        text = "".join(group[-1].whole for group in self.groups)
        squeezed = "".join(text.split())
        found = ["`tools`"] if self.tools and self._same(tools=False) else []
        keys = dict.fromkeys(key for each in self.turns for key in each if key not in ("role", "content"))
        found += [f"`{key}` of a turn" for key in keys if self._same(without=key)]
        for role in dict.fromkeys(each["role"] for each in self.given):
            contents = (_bare(each["content"]) for each in self.given if each["role"] == role)
            if any("".join(each.split()) not in squeezed for each in contents):
                found.append(f"a turn of the {role}")
        thoughts = (_thought(self.given[at]["content"]) for at in self.learned)
        if any("".join(each.split()) not in squeezed for each in thoughts):
            found.append("the thinking in an answer")
        return [f"{each} is not shown to the model: its chat template does not write it" for each in found]

    def _same(self, without: str = "", tools: bool = True) -> bool:
        """Whether the template writes the same without a key, or without the tools."""
        turns = [{key: value for key, value in each.items() if key != without} for each in self.turns]
        try:
            return self.write(turns, tools=tools) == self.write(self.turns)
        except DataError:
            return False


def encoded_chat(row: Row, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Token ids of a chat up to its last answer, and labels: those of each answer and its end, else `IGNORED`.

    Of a chat whose answers stand in several examples (`Chat.rows`), the last.

    Raises:
        DataError: as `Chat`; or a part of the chat cannot be told from others by its tokens.
    """
    chat = Chat(row, tokenizer)
    try:
        groups = chat.groups
    except Unusable as fault:
        raise DataError(f"an answer cannot be learned{fault.detail}", place=chat.place, fix=REFUSED) from None
    require_offsets(tokenizer, "turn of a chat")
    text = groups[-1][-1].whole if groups else chat.write(chat.turns)
    spans = [answer.span for answer in groups[-1]] if groups else []
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids = list(encoded["input_ids"])
    labels = [
        token if any(start < right and left < end and right > left for start, end in spans) else IGNORED
        for token, (left, right) in zip(ids, encoded["offset_mapping"], strict=True)
    ]
    return ids, labels


def read_turns(said: Any) -> list[dict[str, Any]]:
    """The turns of a chat in any of the shapes that data may have. Raises RequestError where they cannot be read."""
    try:
        return turns_of(said)
    except Unusable as fault:
        raise RequestError(f"the chat cannot be read{fault.detail}", place="messages") from None


def asked_chat(turns: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase) -> str:
    """What the template shows before the next answer of a chat. Raises DataError as `Chat`."""
    chat = Chat({"messages": [{**each, "trained": False} for each in turns]}, tokenizer)
    return chat.write(chat.turns, ask=True)


def called(turn: Mapping[str, Any]) -> list[str]:
    """The names of the tools that a turn calls."""
    return [call["function"]["name"] for call in turn.get("tool_calls", ())]


def _learned(turn: Mapping[str, Any]) -> bool:
    return turn["role"] == "assistant" and turn.get("trained") is not False


def _more(turn: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(turn["more"]) if turn.get("more") else {}


def _in_text(call: Mapping[str, Any]) -> dict[str, Any]:
    arguments = call["function"]["arguments"]
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {**call, "function": {**call["function"], "arguments": text}}


def _shared(one: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (left, right) in pairs if left != right), min(len(one), len(other)))


def _begins(text: str, turn: Mapping[str, Any]) -> int:
    """Where the content of a turn begins in its text."""
    return max(0, text.rfind(_bare(turn["content"])))


def _bare(content: str | None) -> str:
    """A content without the thoughts before it."""
    return (content or "").split("</think>")[-1].strip()


def _thought(content: str) -> str:
    return content.rpartition("</think>")[0].replace("<think>", "").strip()
