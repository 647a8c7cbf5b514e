"""The Task contract: how rows become examples, what the loss is, what is scored and answered. One folder per task.

Shapes: B rows, T tokens, V vocabulary, C classes, L labels that carry a loss, N rows of a split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfadapt.core.errors import DataError, Problem, nearest
from hfadapt.files.places import Place
from hfadapt.modalities import Example, Row
from hfadapt.schemas import LabelKind
from hfadapt.tasks._answers import Answer as Answer
from hfadapt.tasks._answers import Served as Served

if TYPE_CHECKING:
    import numpy as np
    import torch

ANSWER_ROWS = 32
COLUMNS = ("gold", "predictions", "probabilities", "losses", "tokens", "sides")
"""Of `Scores`, with an entry for each row."""


@dataclass(frozen=True)
class Scores:
    """What a model said about N rows; absent parts are None.

    Args:
        gold: What is right. `class`: (N,) indices; `classes`: (N, C) of 0 and 1; `number`: (N,); `tokens`: (N,) arrays
            of indices, one per token; `ranks`: (N,) arrays of the best ranks, from 1; empty if asked before.
        predictions: What the model chose, likewise.
        probabilities: (N, C); `tokens`: (N,) arrays (tokens, C).
        losses: (N,) negative log-likelihood in nats (of numbers the squared error), summed over the row's labels.
        tokens: (N,) number of labels behind each loss.
        kind: What `gold` and `predictions` are.
        names: Names of the classes, where a metric reads them.
        sides: (N, 2, 3) of a better and a worse answer: log-probability in nats, that of the model before training (NaN
            where it was not asked), and tokens.
    """

    gold: np.ndarray | None
    predictions: np.ndarray | None
    probabilities: np.ndarray | None
    losses: np.ndarray
    tokens: np.ndarray
    kind: LabelKind = "class"
    names: tuple[str, ...] = ()
    sides: np.ndarray | None = None

    @classmethod
    def joined(cls, parts: Sequence[tuple[Sequence[int], Scores]]) -> Scores:
        """What was said about all rows, from what was said about parts of them.

        Args:
            parts: Numbers of rows, each in one part, and the scores of these rows.
        """
        import numpy as np

        order = np.argsort(np.concatenate([np.asarray(numbers) for numbers, _ in parts]))

        def column(name: str) -> Any:
            values = [getattr(scores, name) for _, scores in parts]
            return None if values[0] is None else np.concatenate(values)[order]

        columns: dict[str, Any] = {name: column(name) for name in COLUMNS}
        return replace(parts[0][1], **columns)

    @property
    def single(self) -> bool:
        """Whether one class was chosen for each row."""
        return self.kind == "class" and self.gold is not None and self.predictions is not None


def ragged(rows: Sequence[np.ndarray]) -> np.ndarray:
    """(N,) arrays of different lengths as one array of objects, also where all happen to be of one length."""
    import numpy as np

    found = np.empty(len(rows), dtype=object)
    for number, row in enumerate(rows):
        found[number] = row
    return found


@dataclass(frozen=True)
class Remark:
    """What the audit is to warn of: the code of the finding, what is said, the same for all rows of the kind, a fix."""

    code: str
    what: str
    fix: str


@dataclass(frozen=True)
class RowMetric:
    """A metric of N rows, as sums over rows, so that a bootstrap is one matrix product.

    Args:
        about: What it is, in a line.
        needs: What it reads: `classes`, `probabilities` or `losses` of Scores, or `texts` (evaluate/metrics/text.py).
        higher_is_better: Direction of improvement.
        statistics: What each row contributes, (N, K), from Scores or Texts.
        value: The metric of summed contributions, (..., K) → (...).
        kinds: The kinds of scores that it reads; empty for all.
        unit_range: Whether it lies between 0 and 1, so that a point is a hundredth.
        weighted: In place of `statistics` and `value` for what is no sum over rows: the metric of Scores and of how
            often each row was drawn, (S, N) → (S,).
        fits: Whether the scores are such as it is made for, beside `needs` and `kinds`.
        hub_name: What the Hub calls it, if it has another name there.
        suits: Whether it says something of a task whose scores it could be made of.
    """

    name: str
    about: str
    needs: str
    higher_is_better: bool
    statistics: Callable[[Any], np.ndarray]
    value: Callable[[np.ndarray], np.ndarray]
    kinds: frozenset[LabelKind] = frozenset()
    unit_range: bool = False
    fits: Callable[[Scores], bool] = lambda scores: True
    hub_name: str = ""
    weighted: Callable[[Any, np.ndarray], np.ndarray] | None = None
    suits: Callable[[Task], bool] = lambda task: True


Batches = Callable[[Sequence[Example]], Iterator[tuple[Sequence[int], Mapping[str, "torch.Tensor"]]]]
ReadSplit = Callable[[str], Iterable[Row]]


class Task:
    """What a task has to say, with what most of them have in common. Stateless; the instance is called `KIND`.

    Attributes:
        name: Name in recipes.
        title: What the task is, in words for messages: "text classification".
        pipeline_tag: Name of the task on the Hub.
        peft_task_type: Name in `peft.TaskType`; None where peft has none, as for images.
        auto_class: The class of transformers that loads the base with this task's head.
        modality: What its rows are made of.
        schemas: Row schemas that it learns from.
        label_kind: What it learns: `none` for text.
        soft_labels: Whether a row may be labelled with shares of several classes, by name, as a blend of two rows is.
        baseline: What the adapter is compared with: `base` (zero-shot) or `linear probe`.
        metrics: Metrics that fit every row of this task, the leading one first.
        own_metrics: Metrics beside those that all tasks know.
        writes: Whether its model writes text: it can be asked to generate, and general text can be scored.
        per_token: Whether its labels stand at tokens.
        packs: Whether rows may be packed into one sequence.
        without: Parts of the fast path (recipe/fast.py) that do not fit what its models are given.
        needs_head: Whether the base has to bring the head as it was trained, as its output layer over the vocabulary.
        fits: Row schemas of which `fitted` makes other rows; of chats it is always asked.
        redraws: Whether rows are learned in another way in each epoch (`in_epoch`).
        joint: Whether a row's loss depends on the others of its batch, from all of which `joint_losses` works it out.
        alone: Whether a text by itself makes a row (`RowSchema.alone`), of which only a teacher's answer is learned.
        whole_rows: Whether all sequences of a row go through the model together, since its loss is of them together.
        refers: Whether it is scored against the model as it stood before training, of which `referred` keeps a part.
        objective: What its adapters minimise where the recipe does not say.
        compares: Whether an answer depends on the texts that are asked with it, the first of which is the query.
        gives_vectors: Whether it answers with a vector for each text, which hangs on the text alone but for the query.
        reads: What it reads of a model's output: logits, or the last hidden state of a model without a head.
        file_reads: Likewise of a file for another runtime, where it is another output than of the model.
        library: What opens a whole model, as the Hub calls it.
        usage: Python that does, where that is no transformers.
        files: Names of the files of `write_beside`.
        defaults: What its plan starts from in place of the usual, by field, with the reason.
        least_steps: Optimizer steps that its adapters need, however few the rows; the plan repeats rows for them.
        counted: What has one class each, in words for tables: rows.
        assumed_tokens: Length of rows, before any data was seen.
        assumed_parts: Sequences as which a row goes through the model, likewise.
        reading: Python that prints the answer in `out`, numpy's array of the output of one row, with `labels`.
        meaning: What the numbers of `out` say, in words for code in other languages, where the labels are LABELS.
        alike_means: What `alike` calls alike, in words.
        in_spreads: Answers are numbers: how far they drift is said in standard deviations of theirs, not in nats.
        folder: Where snippet.py.j2 lies: the code of the card that opens an adapter and asks it one thing, a template
            of jinja with `fact`, `peft`, `sample`, `base`, `quant`, `schema`, `example` (card/snippet.py).
    """

    name: str
    title: str
    pipeline_tag: str
    peft_task_type: str | None
    auto_class: str
    modality: str = "text"
    schemas: frozenset[str]
    label_kind: LabelKind = "class"
    soft_labels: bool = False
    baseline: str = "linear probe"
    metrics: tuple[str, ...]
    own_metrics: tuple[RowMetric, ...] = ()
    writes: bool = False
    per_token: bool = False
    packs: bool = False
    without: tuple[str, ...] = ()
    needs_head: bool = False
    fits: frozenset[str] = frozenset()
    redraws: bool = False
    joint: bool = False
    alone: bool = False
    whole_rows: bool = False
    refers: bool = False
    objective: str = "supervised"
    compares: bool = False
    gives_vectors: bool = False
    reads: str = "logits"
    file_reads: str = ""
    library: str = "transformers"
    usage: str | None = None
    files: frozenset[str] = frozenset()
    defaults: Mapping[str, tuple[Any, str]] = {}
    least_steps: int = 0
    counted: str = "rows"
    assumed_tokens: int = 128
    assumed_parts: float = 1.0
    answer_rows: int = ANSWER_ROWS
    reading: str = "print(out.shape)"
    meaning: str = ""
    alike_means: str = "the same choice"
    in_spreads: bool = False
    folder: Path

    def snippet_agrees(self, printed: str, prediction: Any) -> bool:
        """Whether what the snippet printed is what the evaluation predicted for the same row."""
        return bool(printed)

    def kind(self, form: str) -> LabelKind:
        """What gold and predictions are for rows of a schema."""
        return self.label_kind

    # --- the model ---------------------------------------------------------------------------------------------------

    def outputs(self, labels: Sequence[str]) -> int:
        """Outputs of the head; 0 for a model without one that depends on labels."""
        return len(labels)

    def auto_class_of(self, model_type: str) -> str:
        """The class that loads a base of this type, where that is another than `auto_class`."""
        return self.auto_class

    def model_options(self, labels: Sequence[str]) -> dict[str, Any]:
        """Keyword arguments for loading the base with it."""
        raise NotImplementedError

    def settings(self, tokenizer: Any) -> dict[str, Any]:
        """What the task takes from the base beside its weights, by name; for the record and the card."""
        return {}

    def notes(self, tokenizer: Any) -> list[str]:
        """What the user is to know of it, in a line each."""
        return []

    def encode(
        self, rows: Sequence[Row], tokenizer: Any, *, max_length: int, labels: Sequence[str] = ()
    ) -> list[Example]:
        """Rows exactly as training and evaluation will see them; row i becomes example i.

        Raises:
            DataError: the chat template is missing, or a label is not in `labels`.
        """
        raise NotImplementedError

    def fitted(self, row: Row, tokenizer: Any, max_length: int | None = None) -> list[Row]:
        """The rows as which a prepared row is learned with this tokenizer: mostly itself.

        Args:
            max_length: The most tokens of a row, where longer ones may be divided.

        Raises:
            Unusable: it is left out.
            DataError: it cannot be encoded.
        """
        return [row]

    def in_epoch(
        self, rows: Sequence[Row], examples: Sequence[Example], tokenizer: Any, draw: tuple[int, int]
    ) -> list[Example]:
        """Encoded training rows as they are learned in one epoch: a function of each row and the draw alone.

        Args:
            rows: With `source` and `row`.
            examples: The same rows as `encode` gives them.
            draw: Seed and 0-based epoch.
        """
        return list(examples)

    def remarks(self, row: Row, tokenizer: Any) -> list[Remark]:
        """What is not as one would expect in how a row is learned, for the audit. Raises as `fitted`."""
        return []

    def noticed(self, examples: Sequence[Example]) -> list[Remark]:
        """What is not as one would expect of all training rows together, for the audit."""
        return []

    def prompt(self, example: Example) -> Any:
        """What stands for the inputs of an example in the hash of all prompts."""
        return example.inputs["input_ids"]

    def collate(self, examples: Sequence[Example], pad_token_id: int) -> dict[str, torch.Tensor]:
        """Pads examples to one batch: inputs, and `labels` where every example has them."""
        raise NotImplementedError

    def pack(self, examples: Sequence[Example], tokens: int, pad_token_id: int) -> dict[str, torch.Tensor]:
        """Rows one after the other in a sequence of `tokens`, for a task that packs: inputs, labels, and `rows`."""
        raise NotImplementedError

    def targets(self, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The L labels of a batch: the place of each in the flattened logits, the label, and its row, all (L, …)."""
        raise NotImplementedError

    def outputs_of(self, model: Any, batch: Mapping[str, torch.Tensor]) -> Any:
        """The model's outputs, `logits` among them."""
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])

    def label_logits(self, model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Logits of the L labels of a batch: (L, V) over the vocabulary, or (L, C) over the classes."""
        raise NotImplementedError

    def criterion(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The loss of each of L labels (L,), in float32: in nats, or a squared error."""
        import torch

        return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")

    def divergence(self, reference: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """How far the answers in logits (L, C) are from those of a reference: KL(reference || other) in nats, (L,)."""
        p, q = reference.log_softmax(-1), other.log_softmax(-1)
        return (p.exp() * (p - q)).sum(-1)

    def unit(self, reference: Sequence[torch.Tensor]) -> float:
        """What logits are divided by before two models' are compared; 1 for chances, which have no unit.

        Args:
            reference: The reference's logits, in several parts (L, C).
        """
        return 1.0

    def alike(self, reference: torch.Tensor, other: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Whether two models give the same answer by their logits (L, C), and how decided the reference is, 0 to 1:
        both (L,), or (L, C) where each class is an answer. Here the likeliest class, and the chance by which it leads.
        """
        leads = reference.softmax(-1).topk(2).values
        return reference.argmax(-1) == other.argmax(-1), leads[:, 0] - leads[:, 1]

    def start_head(self, head: torch.nn.Module, targets: Sequence[Any]) -> None:
        """Where a fresh head begins, before it is trained.

        Args:
            targets: The labels of the training rows.
        """

    def head_start(self, rows: int, labels: int) -> float:
        """The share of the linear probe's answers with which a new head starts; with 0 it has learned nothing, and
        pulls at what the base knows (Kumar et al. 2022). What a probe is sure of leaves an adapter little to learn."""
        return 0.0

    def losses(self, model: Any, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss of each of L labels (L,), in float32, and the row it belongs to (L,)."""
        _, targets, rows = self.targets(batch)
        return self.criterion(self.label_logits(model, batch), targets), rows

    def joint_losses(
        self, outputs: torch.Tensor, examples: Sequence[Example], places: Sequence[Sequence[int]]
    ) -> torch.Tensor:
        """The losses (L,) of rows that are learned together, in float32; for tasks that are `joint`.

        Args:
            outputs: What `label_logits` gives for each of S different sequences, (S, D).
            places: For each example the places of its parts in `outputs`.
        """
        raise NotImplementedError

    def joint_distances(
        self, outputs: torch.Tensor, reference: torch.Tensor, places: Sequence[Sequence[int]], relations: bool | None
    ) -> torch.Tensor:
        """How far the outputs of each row are from a teacher's (L,), beside losses of `joint_losses`.

        Args:
            outputs, reference: For each of S different sequences, (S, D) and the teacher's (S, D').
            relations: Compare what follows from all of a row or batch, and not each output; None where that is open.
        """
        raise NotImplementedError

    def log_probabilities(self, model: Any, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """How likely what each of S sequences is to write is, summed over its labels, in nats and float32, and their
        number, both (S,); for tasks of `whole_rows`."""
        raise NotImplementedError

    # --- scoring and answering ---------------------------------------------------------------------------------------

    def score(
        self, model: Any, examples: Sequence[Example], batches: Batches, choices: Sequence[Sequence[int]] = ()
    ) -> Scores:
        """Scores N examples without gradients; `batches` forms padded batches on the model's device.

        Args:
            choices: For tasks that write, the token ids of the completions among which the model may choose.
        """
        raise NotImplementedError

    def referred(self, examples: Sequence[Example], before: Scores) -> list[Example]:
        """The examples with what the model said of them before training, for tasks that `refer`."""
        return list(examples)

    def worst(self, adapter: Scores, most: int) -> list[int]:
        """Rows on which an adapter is wrong, the worst first, where its answers are no classes."""
        return []

    def warnings(self, metrics: Mapping[str, float]) -> list[str]:
        """What a user has to know of an adapter with these metrics."""
        return []

    def setting(self, examples: Sequence[Example]) -> str | None:
        """What the scores of these rows depend on beside the rows themselves, in a line."""
        return None

    def write_beside(self, folder: Path, model: Any, tokenizer: Any, max_length: int) -> None:
        """Adds the files with which a whole model opens in the library that its users know."""

    def for_file(self, model: Any, tokenizer: Any) -> Any:
        """The model as a file for another runtime computes, in place. Raises RunError where no file can do that."""
        return model

    def file_faults(self, model: Any, batch: Mapping[str, torch.Tensor], tokenizer: Any) -> list[str]:
        """What is wrong with how a file answers a batch, however well it tells answers apart."""
        return []

    def javascript(self, tokenizer: Any) -> tuple[str, str]:
        """The pipeline of transformers.js, and what it is given beside a value."""
        return self.pipeline_tag, ""

    def answer_texts(self, form: str, completions: Mapping[str, str], read: ReadSplit) -> dict[str, str]:
        """The texts among which the model chooses its answer, by name; none where it does not choose among texts.

        Args:
            form: The row schema of the data.
            completions: The completion that stands for each label.
            read: Reads a split.
        """
        return {}

    def choices(self, texts: Mapping[str, str], tokenizer: Any) -> dict[str, tuple[int, ...]]:
        """`answer_texts` as token ids without the end token."""
        return {}

    def fault(self, value: Any) -> Problem | None:
        """Why a value cannot be answered: a blank text, or a file that cannot be read."""
        blank = isinstance(value, str) and not value.strip()
        return Problem("there is nothing to answer", got="a blank text") if blank else None

    def opened(self, asked: Served, said: str | Sequence[Mapping[str, Any]]) -> list[int]:
        """Token ids of what precedes a text that is to be written, for tasks whose model writes.

        Args:
            said: A chat as the adapter was trained on; or a text, which is continued as it stands.

        Raises:
            RequestError: the chat is none, or not of a kind that the adapter has seen.
        """
        raise NotImplementedError

    def answer(
        self, served: Sequence[Served], texts: Sequence[str], max_new_tokens: int, names: Sequence[str] = ()
    ) -> list[Answer]:
        """An answer to each text from its own adapter; all are on one model and have the same choices.

        Args:
            names: For each text the name of its adapter inside the model, where it has several.
        """
        raise NotImplementedError


def unique_parts(examples: Sequence[Example]) -> tuple[list[Example], list[list[int]]]:
    """The different sequences of examples, and for each example the places of its parts among them."""
    found: dict[tuple[Any, ...], int] = {}
    parts, places = list[Example](), list[list[int]]()
    for example in examples:
        places.append([])
        for part in example.parts:
            place = found.setdefault(tuple(part.inputs.items()), len(parts))
            if place == len(parts):
                parts.append(part)
            places[-1].append(place)
    return parts, places


def index_of(label: Any, labels: Sequence[str], row: Row, number: int) -> int:
    """The number of a class. Raises DataError, naming the row and the nearest class, for an unknown one."""
    if label in labels:
        return list(labels).index(label)
    close = nearest(str(label), labels)
    what, fix = "a label is not in the label set", f"did you mean {close!r}?" if close else None
    raise DataError(what, place=str(Place.of(row, number)), got=repr(label), allowed=", ".join(labels), fix=fix)
