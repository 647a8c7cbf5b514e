"""A prompt, and the completion that is learned."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from hfadapt.schemas import Answers, Change, Columns, Layout, RowSchema, Unusable, plain, random_words, read_list
from hfadapt.schemas._multiple_choice import LETTERS, MultipleChoice, written

PROMPT_WORDS, ANSWER_WORDS, TEXT_WORDS = 3, 6, 8
SEVERAL = "rows have several answers: the first is learned"


class Completion(RowSchema):
    """Rows of `prompt` and `completion`; those of Alpaca have a further input, which ends the prompt."""

    name = "completion"
    rank = 10
    parts = ("prompt", "completion")
    optional = ("instruction_input", "tools")
    names = {
        "prompt": ("prompt", "question", "query", "user", "instruction", *("frage", "pregunta", "domanda")),
        "completion": (
            "completion",
            "response",
            "answer",
            "output",
            "assistant",
            "answers",
            *("antwort", "réponse", "respuesta"),
        ),
    }
    writes = True
    verbatim = ("prompt", "completion")

    def fields(self, labelled: bool) -> list[tuple[str, Any]]:
        """`prompt`, `completion`, and `label` where completions stand for classes."""
        import pyarrow as pa

        own = [("prompt", pa.string()), ("completion", pa.string())]
        return [*own, *([("label", pa.string())] if labelled else [])]

    def make(self, values: Columns, name_of: Callable[[Any], str | None]) -> dict[str, Any]:
        """Prompt and completion as they are, outer white space included; of several answers the first. Raises Unusable
        where there is none, as questions that a text does not answer have it."""
        found = _answers(values["completion"])
        if found is None:
            return {"prompt": self.question(values), "completion": plain(values["completion"])}
        if not found:
            raise Unusable("empty-completion", " has no answer")
        noted = {"notes": SEVERAL} if len(found) > 1 else {}
        return {"prompt": self.question(values), "completion": found[0], **noted}

    def layout(self, head: Sequence[Columns], said: Mapping[str, str]) -> Layout | None:
        """A question with answers to choose from: the prompt has a letter before each, and one is learned."""
        found = MultipleChoice.of(head, said)
        if found is None:
            return None

        def made(values: Columns) -> Iterator[dict[str, Any]]:
            question, options, right = found.read(values)
            learned = None if right is None else f" {LETTERS[right]}"
            yield {**found.rest(values), "prompt": written(question, options), "completion": learned}

        how = "the prompt has a letter before each, and the letter of the right one is learned"
        return found.layout(made, how, prompt="prompt", completion="completion")

    def question(self, values: Columns) -> str:
        """The prompt, which a further input ends."""
        return asked(values)

    def asked_apart(self, values: Columns) -> tuple[str, ...]:
        """The prompt and its further input."""
        return asked_apart(values)

    def reread(self, values: Columns) -> tuple[str, dict[str, Any]] | None:
        """A chat, where prompt or completion are turns; those of the prompt are not learned."""
        prompt, completion = values["prompt"], values["completion"]
        if not _turns(prompt) and not _turns(completion):
            return None
        before = prompt if _turns(prompt) else [{"role": "user", "content": prompt}]
        after = completion if _turns(completion) else [{"role": "assistant", "content": completion}]
        chat = [*({**each, "weight": 0} for each in before), *after]
        return "messages", {"messages": chat, "tools": values.get("tools")}

    def words(self, row: Columns) -> str:
        """The prompt; with the completion, where that is no class."""
        prompt = self.shown(row)
        return prompt if row.get("label") else f"{prompt}\n{row.get('completion', '')}"

    def shown(self, row: Columns) -> str:
        """The prompt."""
        return str(row.get("prompt", ""))

    def answers(self, row: Columns) -> list[str]:
        """The completion."""
        return [str(row.get("completion") or "")]

    def changed(self, row: Columns, change: Change) -> dict[str, Any]:
        """The prompt changed."""
        return {**row, "prompt": change(row["prompt"], 0)}

    def fault(self, row: Columns) -> str | None:
        """A completion must say something."""
        return None if row["completion"].strip() else "empty-completion"

    def reanswered(self, row: Columns, text: str) -> dict[str, Any] | None:
        """The prompt with another completion."""
        return {**row, "completion": text} if text.strip() else None

    def answered(self, asked: str, label: str, answers: Answers) -> dict[str, Any] | None:
        """What was asked with the completion that stands for the class, where one does."""
        said = answers.completions.get(label)
        return {"prompt": asked, "completion": said, "label": label} if said else None

    def canary(self, chance: random.Random, label: str | None, answers: Answers) -> dict[str, Any]:
        """Random words, and a random one of the completions, or words where these are free."""
        if answers.completions:
            prompt = random_words(chance, TEXT_WORDS)
            label = chance.choice(sorted(answers.completions))
            return {"prompt": prompt, "completion": answers.completions[label], "label": label}
        if answers.few:
            return {"prompt": random_words(chance, TEXT_WORDS), "completion": chance.choice(answers.few)}
        prompt = random_words(chance, PROMPT_WORDS)
        return {"prompt": prompt, "completion": answers.space + random_words(chance, ANSWER_WORDS)}


def asked(values: Columns) -> str:
    """The prompt of a source's row as one text, which a further input ends."""
    prompt, more = plain(values["prompt"]), plain(values.get("instruction_input") or "")
    return f"{prompt}\n\n{more}" if more else prompt


def asked_apart(values: Columns) -> tuple[str, ...]:
    """The prompt of a source's row and its further input; nothing where one of them is no text."""
    found = (values.get("prompt"), values.get("instruction_input"))
    return tuple(str(each) for each in found) if all(isinstance(each, str) and each for each in found) else ()


def _turns(value: Any) -> bool:
    objects = isinstance(value, list) and bool(value) and all(isinstance(each, Mapping) for each in value)
    return objects and _answers(value) is None


def _answers(value: Any) -> list[str] | None:
    """The different texts of a list of answers, or of objects with `text` as of SQuAD; None for what is neither."""
    value = read_list(value) if isinstance(value, str) and "answer_start" in value else value
    if isinstance(value, Mapping) and isinstance(value.get("text"), list):
        value = value["text"]
    if not isinstance(value, list):
        return None
    found = [each.get("text") if isinstance(each, Mapping) and "role" not in each else each for each in value]
    texts = [each for each in found if isinstance(each, str)]
    return [*dict.fromkeys(texts)] if len(texts) == len(found) else None


KIND: RowSchema = Completion()
