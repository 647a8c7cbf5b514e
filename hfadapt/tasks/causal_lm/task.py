"""Text generation: prompt → completion, chat messages, or plain text.

The loss is taken on completions (assistant turns) only, each with its end-of-sequence token, so the adapter learns to
stop. Logits are computed for labelled positions alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfadapt.core import registry
from hfadapt.core.errors import DataError, RequestError
from hfadapt.modalities import IGNORED, Example, Row
from hfadapt.modalities.text import packed, pad_labelled, pieces, started, text_example, token_ids
from hfadapt.schemas import Asked
from hfadapt.tasks import Answer, Batches, ReadSplit, Remark, Scores, Served, Task
from hfadapt.tasks._answers import Cut
from hfadapt.tasks.causal_lm.chat import Chat, asked_chat, encoded_chat, read_turns

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

MOST_CHOICES = 20
"""With at most this many different completions, the task is to choose among them."""

SHORTEST_MARK = 3
"""Shorter special tokens are no marks that stand in a text by mistake."""

SHORTEST_ANSWER = 2
"""One token, and the one that ends the answer."""


class CausalLM(Task):
    """Rows of prompt and completion, of messages, or of text."""

    name = "causal-lm"
    title = "language modelling"
    pipeline_tag = "text-generation"
    peft_task_type = "CAUSAL_LM"
    auto_class = "AutoModelForCausalLM"
    schemas = frozenset({"completion", "messages", "text"})
    label_kind = "none"
    baseline = "base"
    metrics: tuple[str, ...] = ("perplexity",)
    writes = True
    per_token = True
    packs = True
    needs_head = True
    fits = frozenset({"text"})
    assumed_tokens = 512
    # In 16 bits a language model's answer would depend on what else is in the batch.
    answer_rows = 1
    folder = Path(__file__).parent

    def outputs(self, labels: Sequence[str]) -> int:
        """The vocabulary's, whatever the labels."""
        return 0

    def snippet_agrees(self, printed: str, prediction: Any) -> bool:
        """Whatever it wrote: a model may end its answer at once."""
        return True

    def model_options(self, labels: Sequence[str]) -> dict[str, Any]:
        """Nothing beyond the defaults."""
        return {}

    def encode(
        self, rows: Sequence[Row], tokenizer: Any, *, max_length: int, labels: Sequence[str] = ()
    ) -> list[Example]:
        """Labels are `IGNORED` on everything the model is not asked to produce.

        A row that is too long loses the start of its prompt, not its completion; the last tokens of a chat or text.
        """
        if tokenizer.eos_token_id is None:
            raise DataError(
                "the tokenizer has no end-of-sequence token, so the model could not learn to stop",
                place=str(tokenizer.name_or_path),
                fix="use a model whose tokenizer names its eos_token",
            )
        examples = []
        for number, row in enumerate(rows):
            if "messages" in row:
                ids, marks = encoded_chat(row, tokenizer)
                length = len(ids)
            elif "completion" in row:
                # The two parts are tokenised apart, as at generation.
                prompt, answer = prompt_ids(row["prompt"], tokenizer), completion_ids(row["completion"], tokenizer)
                length = len(prompt) + len(answer)
                prompt = without_beginning(prompt, len(answer), max_length)
                ids, marks = [*prompt, *answer], [IGNORED] * len(prompt) + answer
            else:
                ids = list(tokenizer(row["text"], verbose=False)["input_ids"])
                # A tokenizer may end every text by itself, and a text may be a whole chat with its end.
                ids += [] if ids[-1:] == [tokenizer.eos_token_id] else [tokenizer.eos_token_id]
                # The first token is no label: nothing comes before it from which it could be predicted.
                marks = [IGNORED, *ids[1:]]
                length = len(ids)
            examples.append(text_example(ids[:max_length], marks[:max_length], length=length, row=number))
        return examples

    def fitted(self, row: Row, tokenizer: Any, max_length: int | None = None) -> list[Row]:
        """A chat of which the template changes earlier turns is learned as one row for each answer, a long text in
        pieces."""
        if "messages" in row:
            return Chat(row, tokenizer).rows()
        if max_length is None or "completion" in row:
            return [row]
        # One token is the end that is put after each text.
        return [{**row, "text": piece} for piece in pieces(row["text"], tokenizer, max_length - 1)]

    def remarks(self, row: Row, tokenizer: Any) -> list[Remark]:
        """What a template does not write of a chat, answers that teach silence, and marks of the model in a text."""
        found = Chat(row, tokenizer).remarks() if "messages" in row else []
        turns = [str(each["content"]) for each in row.get("messages", ())]
        said = "\n".join([*turns, *(str(row.get(part) or "") for part in ("prompt", "completion", "text"))])
        marks = [each for each in tokenizer.all_special_tokens if len(each) >= SHORTEST_MARK and each in said]
        if marks:
            what = f"the text holds {min(marks)}, which the model reads as one of its marks rather than as words"
            found.append(Remark("special-token", what, "nothing, if it is meant; else take it out of these rows"))
        return found

    def collate(self, examples: Sequence[Example], pad_token_id: int) -> dict[str, torch.Tensor]:
        """input_ids, attention_mask and labels, all (B, T)."""
        return pad_labelled(examples, pad_token_id)

    def pack(self, examples: Sequence[Example], tokens: int, pad_token_id: int) -> dict[str, torch.Tensor]:
        """input_ids, position_ids, labels and rows, all (1, `tokens`)."""
        return packed(examples, tokens, pad_token_id)

    def targets(self, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The positions that predict a label, counted through all B·T, and for each the label and its row."""
        import torch

        labels = batch["labels"]
        keep = torch.zeros_like(labels, dtype=torch.bool)
        keep[:, :-1] = labels[:, 1:] != IGNORED
        places = keep.flatten().nonzero()[:, 0]
        rows = batch["rows"].flatten()[places] if "rows" in batch else places // labels.shape[1]
        return places, labels.flatten()[places + 1], rows

    def losses(self, model: Any, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Cross-entropy in float32 at the labelled positions."""
        logits, targets, rows = labelled_logits(model, batch)
        return self.criterion(logits, targets), rows

    def label_logits(self, model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Logits (L, V) of the positions that predict a label."""
        return labelled_logits(model, batch)[0]

    def score(
        self, model: Any, examples: Sequence[Example], batches: Batches, choices: Sequence[Sequence[int]] = ()
    ) -> Scores:
        """The loss of each row's own labels; with `choices`, also which of them the model finds most likely.

        Every choice is the token ids of a completion without its end; the gold one is read off the example.
        """
        import numpy as np

        losses = np.zeros(len(examples))
        tokens = np.zeros(len(examples), dtype=np.int64)
        single = bool(choices) and all(len(choice) == 1 for choice in choices)
        probabilities = np.zeros((len(examples), len(choices))) if choices else None
        for numbers, batch in batches(examples):
            for number, logp, targets in _row_logprobs(model, batch, numbers):
                losses[number] = -float(logp.gather(1, targets[:, None]).sum())
                tokens[number] = len(targets)
                if single:
                    assert probabilities is not None
                    probabilities[number] = logp[0, [choice[0] for choice in choices]].cpu().numpy()
        if probabilities is None:
            return Scores(None, None, None, losses, tokens)
        if not single:
            for column, choice in enumerate(choices):
                variants = [_with_completion(example, choice) for example in examples]
                for numbers, batch in batches(variants):
                    for number, logp, targets in _row_logprobs(model, batch, numbers):
                        probabilities[number, column] = float(logp.gather(1, targets[:, None]).sum())
        gold = np.array([list(map(tuple, choices)).index(_completion(example)[:-1]) for example in examples])
        shifted = np.exp(probabilities - probabilities.max(-1, keepdims=True))
        return Scores(gold, probabilities.argmax(-1), shifted / shifted.sum(-1, keepdims=True), losses, tokens)

    # --- answers -----------------------------------------------------------------------------------------------------

    def answer_texts(self, form: str, completions: Mapping[str, str], read: ReadSplit) -> dict[str, str]:
        """The completions among which the model is asked to choose, by name.

        Empty when the rows are not of the kind where every answer is one of a few.
        """
        texts = dict(completions)
        if not texts and "completion" in registry.schema(form).parts:
            seen = sorted({row["completion"] for row in read("train")})
            tested = {row["completion"] for split in ("validation", "test") for row in read(split)}
            if 2 <= len(seen) <= MOST_CHOICES and tested <= set(seen):
                names = [text.strip() or text for text in seen]
                # Answers that differ in white space alone keep it in their names.
                texts = dict(zip(seen if len(set(names)) < len(names) else names, seen, strict=True))
        return texts

    def choices(self, texts: Mapping[str, str], tokenizer: Any) -> dict[str, tuple[int, ...]]:
        """`answer_texts` as token ids without the end token."""
        return {name: tuple(completion_ids(text, tokenizer, end=False)) for name, text in texts.items()}

    def opened(self, asked: Served, said: str | Sequence[Mapping[str, Any]]) -> list[int]:
        """A chat goes into the template of the model where chats were learned; where prompts were, one turn is a prompt
        like those."""
        if isinstance(said, str):
            return list(started(prompt_ids(said, asked.tokenizer), asked.tokenizer))
        turns = read_turns(said)
        if not turns:
            raise RequestError("the chat has no turns", place="messages", fix="give at least one of the user")
        if _chats(asked):
            return list(asked.tokenizer(asked_chat(turns, asked.tokenizer), add_special_tokens=False)["input_ids"])
        if [each["role"] for each in turns] != ["user"]:
            raise RequestError(
                "this adapter was trained on prompts and answers, not on chats",
                place="messages",
                got=", ".join(each["role"] for each in turns) or "no turns",
                allowed="one turn of the user, which goes where the text of a training row went",
            )
        return _whole_ids(asked, turns[0]["content"])

    def answer(
        self, served: Sequence[Served], texts: Sequence[str], max_new_tokens: int, names: Sequence[str] = ()
    ) -> list[Answer]:
        """The most likely of the choices; without choices, what the model writes."""
        if served[0].choices:
            return self._choose(served, texts, names)
        prompts = [asked_ids(each, text) for each, text in zip(served, texts, strict=True)]
        written = served[0].generate(prompts, max_new_tokens, names)
        said = served[0].tokenizer.batch_decode(written, skip_special_tokens=True)
        return [
            Answer(text=text, generated=each.strip(), cut=Cut.of(len(_whole_ids(own, text)), len(prompt)))
            for own, text, each, prompt in zip(served, texts, said, prompts, strict=True)
        ]

    def _choose(self, served: Sequence[Served], texts: Sequence[str], names: Sequence[str]) -> list[Answer]:
        import torch

        model, choices = served[0].model, served[0].choices
        examples = [question(each, text) for each, text in zip(served, texts, strict=True)]

        def batches(rows: Sequence[Example]) -> Any:
            batch = self.collate(rows, served[0].pad_token_id)
            yield list(range(len(rows))), {name: part.to(model.device) for name, part in batch.items()}

        with torch.inference_mode():
            asked = partial(model, **({"adapter_names": list(names)} if names else {}))
            scores = self.score(asked, examples, batches, tuple(choices.values()))
        assert scores.probabilities is not None
        words = list(choices)
        return [
            Answer(
                text=text,
                label=words[int(row.argmax())],
                probability=float(row.max()),
                cut=Cut.of(len(_whole_ids(own, text)), example.labels.index(next(iter(choices.values()))[0])),
            )
            for own, text, row, example in zip(served, texts, scores.probabilities, examples, strict=True)
        ]


def labelled_logits(model: Any, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits (L, V) of the L positions that predict a label, the labels (L,), and the row of each (L,)."""
    import torch

    places, targets, rows = KIND.targets(batch)
    keep = torch.zeros_like(batch["labels"], dtype=torch.bool)
    keep.view(-1)[places] = True
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids") if name in batch}
    output = model(**inputs, logits_to_keep=keep, use_cache=False)
    logits = output.logits if output.logits.dim() == 2 else output.logits[keep]
    return logits, targets, rows


def _row_logprobs(model: Any, batch: Mapping[str, torch.Tensor], numbers: Sequence[int]) -> Any:
    """Per row: its number, log-probabilities (L, V) in float32 at its labelled positions, and the labels (L,)."""
    import torch

    logits, targets, owners = labelled_logits(model, batch)
    for i, number in enumerate(numbers):
        own = owners == i
        yield number, torch.log_softmax(logits[own].float(), -1), targets[own]


def question(asked: Served, text: str) -> Example:
    """The row of a text that is answered with one of the choices.

    One stand-in label makes the row scorable; only the choice is read.
    """
    ids = asked_ids(asked, text, max(map(len, asked.choices.values())) + 1)
    end = asked.tokenizer.eos_token_id
    first = next(iter(asked.choices.values()))
    labels = (*(IGNORED,) * len(ids), *first, end)
    return text_example((*ids, *first, end), labels, length=len(labels), row=0)


def asked_ids(asked: Served, text: str, answer_tokens: int = SHORTEST_ANSWER) -> list[int]:
    """Token ids of what precedes the answer, as training saw them: the recipe's template, a chat turn, or the text.

    What is too long for an answer of so many tokens loses its beginning. How long an answer that is written freely will
    be is not known. With room for the shortest, no prompt is cut that a row of training or evaluation could have held.
    """
    return without_beginning(_whole_ids(asked, text), answer_tokens, asked.max_length)


def _chats(asked: Served) -> bool:
    """Whether what is asked goes into the model's chat template."""
    return asked.prompt is None and asked.form is not None and registry.schema(asked.form).chat


def _whole_ids(asked: Served, text: str) -> list[int]:
    if _chats(asked) and isinstance(text, Asked):
        return list(asked.tokenizer(asked_chat(text.turns, asked.tokenizer), add_special_tokens=False)["input_ids"])
    if _chats(asked):
        messages = [{"role": "user", "content": text}]
        rendered = asked.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return list(started(asked.tokenizer(rendered, add_special_tokens=False)["input_ids"], asked.tokenizer))
    if asked.prompt is not None and "{text}" in asked.prompt:
        text = asked.prompt.replace("{text}", text)
    return list(started(prompt_ids(text, asked.tokenizer), asked.tokenizer))


def without_beginning(prompt: Sequence[int], answer_tokens: int, max_length: int) -> list[int]:
    """A prompt that leaves room for its answer, end token included: one that is too long keeps its last tokens."""
    return list(prompt[-max(1, max_length - answer_tokens) :])


def prompt_ids(prompt: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of a prompt, left open for what follows."""
    ids = list(tokenizer(prompt, verbose=False)["input_ids"])
    # Some tokenizers (T5-like) close every text; a closed prompt would teach the model to start after an end.
    return ids[:-1] if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id else ids


def completion_ids(completion: str, tokenizer: PreTrainedTokenizerBase, end: bool = True) -> list[int]:
    """Token ids of a completion, followed by the end-of-sequence token unless `end` is False."""
    ids = list(tokenizer(completion, add_special_tokens=False, verbose=False)["input_ids"])
    assert tokenizer.eos_token_id is not None
    return [*ids, int(tokenizer.eos_token_id)] if end else ids


def _completion(example: Example) -> tuple[int, ...]:
    return tuple(label for label in example.labels if label != IGNORED)


def _with_completion(example: Example, choice: Sequence[int]) -> Example:
    prompt = len(example.labels) - len(_completion(example))
    ids, labels = (*token_ids(example)[:prompt], *choice), (*(IGNORED,) * prompt, *choice)
    return text_example(ids, labels, length=example.length, row=example.row)


KIND = CausalLM()
