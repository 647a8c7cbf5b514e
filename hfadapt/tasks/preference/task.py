"""A language model that writes what is preferred: rows of a prompt, a better answer and a worse one.

What is minimised is the objective's; here is how pairs become sequences, and what the gain over the model before
training is worth.

Shapes: B rows, S = 2 B sequences (each better answer before the worse one), T tokens, N rows of a split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hfadapt.modalities import IGNORED, Example, Row
from hfadapt.modalities.text import text_example
from hfadapt.schemas import Unusable
from hfadapt.tasks import Batches, Remark, RowMetric, Scores
from hfadapt.tasks.causal_lm.chat import Chat
from hfadapt.tasks.causal_lm.task import CausalLM, completion_ids, labelled_logits, prompt_ids, without_beginning

if TYPE_CHECKING:
    import numpy as np
    import torch

SIDES = ("chosen", "rejected")
REFERENCE = "reference"
"""What is known of a pair: the log-probabilities of both answers before training."""
LONGER_WINS, LEAST_PAIRS = 0.7, 20
"""From this share of pairs on the longer answer, or the shorter one, is said to give the better one away."""
COLLAPSED = -1.0
"""Nats per token by which better answers may become less likely before it is said."""


def _gains(scores: Scores) -> np.ndarray:
    """(N, 2) what each answer has gained over the model before training, in nats."""
    assert scores.sides is not None
    found: np.ndarray = scores.sides[..., 0] - scores.sides[..., 1]
    return found


def _wins(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Half a win where both are the same, as of the model before training."""
    return (first > second) + 0.5 * (first == second)


def _shares(values: np.ndarray, counts: np.ndarray | None = None) -> np.ndarray:
    import numpy as np

    return np.stack([values, np.ones(len(values)) if counts is None else counts], axis=1).astype(np.float64)


def _ratio(sums: np.ndarray) -> np.ndarray:
    return sums[..., 0] / sums[..., 1].clip(min=1e-12)


def _rewarded(scores: Scores) -> np.ndarray:
    return _shares(_wins(*_gains(scores).T))


def _margin(scores: Scores) -> np.ndarray:
    gains = _gains(scores)
    return _shares(gains[:, 0] - gains[:, 1])


def _ranked(scores: Scores) -> np.ndarray:
    assert scores.sides is not None
    return _shares(_wins(*scores.sides[..., 0].T))


def _moved(scores: Scores, side: int) -> np.ndarray:
    assert scores.sides is not None
    return _shares(_gains(scores)[:, side], scores.sides[:, side, 2])


def _has_sides(scores: Scores) -> bool:
    return scores.sides is not None


def _has_gains(scores: Scores) -> bool:
    import numpy as np

    return scores.sides is not None and not np.isnan(scores.sides).any()


METRICS = (
    RowMetric(
        "reward_accuracy",
        "share of pairs whose better answer has gained more than the worse one over the model before training",
        *("losses", True, _rewarded, _ratio),
        unit_range=True,
        fits=_has_gains,
    ),
    RowMetric(
        "reward_margin",
        "by how much more the better answer has gained, in nats, averaged over pairs",
        *("losses", True, _margin, _ratio),
        fits=_has_gains,
    ),
    RowMetric(
        "ranking_accuracy",
        "share of pairs whose better answer is the likelier one, long answers being less likely than short ones",
        *("losses", True, _ranked, _ratio),
        unit_range=True,
        fits=_has_sides,
    ),
    RowMetric(
        "chosen_log_ratio",
        "what better answers have gained over the model before training, in nats per token",
        *("losses", True, lambda scores: _moved(scores, 0), _ratio),
        fits=_has_gains,
    ),
    RowMetric(
        "rejected_log_ratio",
        "what worse answers have gained over the model before training, in nats per token",
        *("losses", False, lambda scores: _moved(scores, 1), _ratio),
        fits=_has_gains,
    ),
)


class Preferring(CausalLM):
    """Rows of `prompt`, `chosen` and `rejected`, texts or chats; afterwards a language model like any other."""

    name = "preference"
    title = "preferences"
    schemas = frozenset({"preferences", "preference-chats"})
    fits = frozenset({"preferences"})
    metrics = tuple(metric.name for metric in METRICS)
    own_metrics = METRICS
    objective = "preference"
    whole_rows = True
    refers = True
    counted = "pairs"
    assumed_parts = 2.0
    defaults: Mapping[str, tuple[Any, str]] = {
        # alignment-handbook has 5e-6 for 7 B parameters. SmolLM2-135M in benchmarks/preference.py: with 5e-5 reward
        # accuracy is clearly above one half, with 2e-4 the perplexity of general text rises six times as much.
        "train.learning_rate": (5e-5, "usual for DPO of adapters is 5e-6 to 5e-5; with more, general text is lost")
    }

    def encode(
        self, rows: Sequence[Row], tokenizer: Any, *, max_length: int, labels: Sequence[str] = ()
    ) -> list[Example]:
        """An example of both sequences, one after the other, each also in `parts`.

        A prompt that is too long loses the same beginning before both answers. Plain text is read as by any language
        model.
        """
        found = []
        for number, row in enumerate(rows):
            if "text" in row:
                found += [replace(each, row=number) for each in self._plain([row], tokenizer, max_length)]
                continue
            chat = "messages" in row
            parts = self._plain(_sides(row), tokenizer, max_length) if chat else _texts(row, tokenizer, max_length)
            parts = [replace(part, row=number) for part in parts]
            ids, marks = (
                tuple(token for part in parts for token in each(part))
                for each in (lambda part: part.inputs["input_ids"], lambda part: part.labels)
            )
            size, length = max(part.size for part in parts), max(part.length for part in parts)
            found.append(Example({"input_ids": ids, "parts": tuple(parts)}, marks, size, length, number))
        return found

    def _plain(self, rows: Sequence[Row], tokenizer: Any, max_length: int) -> list[Example]:
        return super().encode(rows, tokenizer, max_length=max_length)

    def fitted(self, row: Row, tokenizer: Any, max_length: int | None = None) -> list[Row]:
        """Itself. Raises Unusable where an answer would be cut: what is left of both could not be compared."""
        if "messages" in row:
            for chat in _sides(row):
                _ = Chat(chat, tokenizer).groups
        if max_length is None:
            return [row]
        (example,) = self.encode([row], tokenizer, max_length=1 << 30)
        for side, part in zip(SIDES, example.parts, strict=True):
            first = next(place for place, label in enumerate(part.labels) if label != IGNORED)
            # Of a text the prompt may lose all but its last token.
            needed = part.length if "messages" in row else part.length - first + 1
            if needed > max_length:
                raise Unusable("answer-too-long", f": its {side} answer needs {needed:,} tokens of {max_length:,}")
        return [row]

    def remarks(self, row: Row, tokenizer: Any) -> list[Remark]:
        """As of a language model, of both sides."""
        rows = _sides(row) if "messages" in row else [{**row, "completion": row[side]} for side in SIDES]
        return list(dict.fromkeys(each for one in rows for each in super(Preferring, self).remarks(one, tokenizer)))

    def noticed(self, examples: Sequence[Example]) -> list[Remark]:
        """Where the length of the answers alone tells the better one."""
        chosen, rejected, longer = _lengths(examples)
        if len(examples) < LEAST_PAIRS or max(longer, 1 - longer) < LONGER_WINS:
            return []
        which, share = ("longer", longer) if longer > 0.5 else ("shorter", 1 - longer)
        what = f"the {which} answer is the better one in {share:.0%} of the pairs (mean tokens {chosen:.0f} and "
        what += f"{rejected:.0f}), so length may be all that is learned"
        return [Remark("length-tells", what, "add pairs whose better answer is not the " + which)]

    def setting(self, examples: Sequence[Example]) -> str | None:
        """How long the answers are."""
        chosen, rejected, longer = _lengths(examples)
        return (
            f"{len(examples):,} pairs, better answers of {chosen:.0f} and worse ones of {rejected:.0f} tokens, "
            f"of which the longer one is the better in {longer:.0%}"
        )

    # --- batches -----------------------------------------------------------------------------------------------------

    def collate(self, examples: Sequence[Example], pad_token_id: int) -> dict[str, torch.Tensor]:
        """input_ids, attention_mask and labels (S, T), and the row of each sequence, `owners` (S,)."""
        return {**super().collate(_parts(examples), pad_token_id), "owners": _owners(examples)}

    def pack(self, examples: Sequence[Example], tokens: int, pad_token_id: int) -> dict[str, torch.Tensor]:
        """input_ids, position_ids, labels and rows (1, `tokens`), of which these count sequences, and `owners`."""
        return {**super().pack(_parts(examples), tokens, pad_token_id), "owners": _owners(examples)}

    def targets(self, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As of a language model, by rows."""
        places, targets, sequences = super().targets(batch)
        return places, targets, batch["owners"][sequences]

    def losses(self, model: Any, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Cross-entropy in float32 at the tokens of both answers: whether a model can be run on them."""
        logits, targets, sequences = labelled_logits(model, batch)
        return self.criterion(logits, targets), batch["owners"][sequences]

    def log_probabilities(self, model: Any, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Of each of S answers."""
        import torch

        logits, targets, sequences = labelled_logits(model, batch)
        none = torch.zeros(len(batch["owners"]), device=logits.device)
        found = none.index_add(0, sequences, -self.criterion(logits, targets))
        return found, none.index_add(0, sequences, torch.ones_like(none)[sequences])

    # --- scoring -----------------------------------------------------------------------------------------------------

    def score(
        self, model: Any, examples: Sequence[Example], batches: Batches, choices: Sequence[Sequence[int]] = ()
    ) -> Scores:
        """The loss of both answers, and how likely each is beside how likely it was; of plain text its loss alone."""
        import numpy as np

        if any(len(example.parts) != len(SIDES) for example in examples):
            return super().score(model, examples, batches)
        sides = np.full((len(examples), 2, 3), np.nan)
        for numbers, batch in batches(examples):
            logp, tokens = self.log_probabilities(model, batch)
            sides[numbers, :, 0] = logp.view(-1, 2).double().cpu().numpy()
            sides[numbers, :, 2] = tokens.view(-1, 2).cpu().numpy()
        for number, example in enumerate(examples):
            if example.known is not None:
                sides[number, :, 1] = example.known[REFERENCE]
        losses, tokens = -sides[..., 0].sum(1), sides[..., 2].sum(1).astype(np.int64)
        return Scores(None, None, None, losses, tokens, sides=sides)

    def referred(self, examples: Sequence[Example], before: Scores) -> list[Example]:
        """With the log-probabilities of both answers."""
        assert before.sides is not None
        return [
            replace(example, known={REFERENCE: said})
            for example, said in zip(examples, before.sides[..., 0], strict=True)
        ]

    def worst(self, adapter: Scores, most: int) -> list[int]:
        """Pairs whose worse answer has gained more."""
        gains = _gains(adapter)
        margins = gains[:, 0] - gains[:, 1]
        return [int(row) for row in margins.argsort(kind="stable")[:most] if margins[row] < 0]

    def warnings(self, metrics: Mapping[str, float]) -> list[str]:
        """Better answers may become less likely, as long as worse ones do so even more."""
        lost = metrics.get("chosen_log_ratio", 0.0)
        if lost > COLLAPSED:
            return []
        return [
            f"better answers have become less likely by {-lost:.2f} nats per token: the adapter may write worse than "
            "the model before it; add train.objective_options: {nll: 0.5}, or lower train.learning_rate"
        ]


def _texts(row: Row, tokenizer: Any, max_length: int) -> list[Example]:
    prompt = prompt_ids(row["prompt"], tokenizer)
    answers = [completion_ids(row[side], tokenizer) for side in SIDES]
    kept = without_beginning(prompt, max(map(len, answers)), max_length)
    found = []
    for answer in answers:
        ids, marks = [*kept, *answer], [*[IGNORED] * len(kept), *answer]
        length = len(prompt) + len(answer)
        found.append(text_example(ids[:max_length], marks[:max_length], length=length, row=0))
    return found


def _sides(row: Row) -> list[Row]:
    """The two chats of a row; of what both begin with nothing is learned."""
    before = [{**turn, "trained": False} if turn["role"] == "assistant" else turn for turn in row["messages"]]
    return [{**row, "messages": [*before, *row[side]]} for side in SIDES]


def _parts(examples: Sequence[Example]) -> list[Example]:
    return [part for example in examples for part in example.parts]


def _owners(examples: Sequence[Example]) -> torch.Tensor:
    import torch

    return torch.tensor([number for number, example in enumerate(examples) for _ in example.parts])


def _lengths(examples: Sequence[Example]) -> tuple[float, float, float]:
    """Mean tokens of better and worse answers, and the share of pairs whose better one is the longer."""
    import numpy as np

    counts = np.array([[part.label_count for part in example.parts] for example in examples])
    chosen, rejected = counts.mean(0) if len(counts) else (0.0, 0.0)
    return float(chosen), float(rejected), float(_wins(*counts.T).mean()) if len(counts) else 0.5


KIND = Preferring()
