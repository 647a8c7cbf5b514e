"""From an adapted model to the weights at which its student begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hfadapt.core import registry
from hfadapt.core.errors import RunError
from hfadapt.core.show import show_bytes
from hfadapt.data import read_split
from hfadapt.hardware.catalogue import Target
from hfadapt.models import activation
from hfadapt.models.base import BaseRef
from hfadapt.models.facts import describe
from hfadapt.models.load import load_base
from hfadapt.models.merge import open_merged, save_base
from hfadapt.models.smaller import narrowed, sayable, width_of
from hfadapt.plan.student import SHARES, weighed
from hfadapt.quants import PLAIN
from hfadapt.records.student import Considered, Shape
from hfadapt.student import shape, vocabulary
from hfadapt.student.parts import shape_of
from hfadapt.student.tokens import Tokens, require_few
from hfadapt.train.batches import padded

if TYPE_CHECKING:
    from hfadapt.recipe.schema import Recipe
    from hfadapt.run_folder import Cell

SAMPLED = 512
"""Sequences of training rows by which units are compared."""
COMPARED, LEAST_COMPARED = 192, 8
"""Sequences by which layers are compared, times the number of layers: each that may go is left out once for each that
goes. Of SmolLM2's 30 layers the same 8 went by 8 sequences of tweets as by 32, in a minute instead of four."""
CHECKED = 4
REOPENED = 1e-4
AT_ONCE = 32


class Maker:
    """Makes the student of a cell from its adapter's merged model, in 32 bits.

    Args:
        rows: The folder of the rows that the student learns.
        recipe: Says what is to be written; the lock, in which all is settled, does not tell what was asked for.
        target: Whose budget decides, where it only serves.
    """

    def __init__(self, cell: Cell, rows: Path, recipe: Recipe, target: Target | None, device: torch.device) -> None:
        assert recipe.student is not None
        self.cell, self.recipe, self.target, self.device = cell, recipe, target, device
        self.settings = recipe.student
        self.lock, self.task = cell.lock, registry.task(cell.lock.task)
        self.base = open_merged(self.lock, cell.data.labels, cell.adapter, "float32", device)
        # The head was trained with the adapter, and belongs to the model now.
        self.base.fresh_modules = ()
        self.adapted = self.shape()
        self.tokens = Tokens(cell, rows, self.base.tokenizer)
        self.considered: list[Considered] = []
        self.cut_otherwise = 0.0
        self.ramp = ""

    # --- the shape ---------------------------------------------------------------------------------------------------

    def shapes(self, tokens: int | None) -> list[tuple[int, float]]:
        """Layers and share of units: as asked for, or those that the budget allows and no other one outdoes, the most
        layers first: of MiniLM on tweets 5 layers with a quarter of the units had a validation loss of 0.59, 4 with
        half 1.04, and 3 with three quarters 2.40.

        Args:
            tokens: Size of the vocabulary, where it becomes smaller.

        Raises:
            RunError: none is small enough.
        """
        asked = self.settings
        if asked.layers is not None:
            # Says why, where there is no list of them.
            shape.layers_of(self.base.model)
        all_layers = self.adapted.layers or 0
        layers = all_layers if asked.layers is None else asked.layers
        if layers != "auto" and asked.ffn != "auto":
            return [(int(layers), float(asked.ffn))]
        assert self.target is not None
        config = self.base.model.config
        choices = [
            (count, share)
            for count in (range(all_layers, 0, -1) if layers == "auto" else [int(layers)])
            for share in (SHARES if asked.ffn == "auto" and self.adapted.width else [1.0])
            if not self.adapted.width or sayable(config, narrowed(self.adapted.width, share))
        ]
        whole = describe(self.base.model, "", self.lock.task, len(self.cell.data.labels), config)
        length = self.lock.data.max_length
        recipe = self.recipe.model_copy(update={"budgets": self.lock.budgets})
        found = [(weighed(recipe, self.target, whole, length, *choice, tokens), choice) for choice in choices]
        found.sort(key=lambda each: -each[0][1])
        self.considered = [one for (one, _), _ in found]
        fitting = [choice for (one, _), choice in found if one.fits]
        if not fitting:
            least = self.considered[-1]
            raise RunError(
                f"no student of this model is small and fast enough for {self.target.name}",
                place="student",
                got=f"{least.layers} layer{'s' if least.layers > 1 else ''}, {least.ffn:.0%} of the units"
                f"{self._of_tokens(tokens)}: {show_bytes(least.bytes)}",
                fix=f"{self._fewer(tokens)}a larger budget, another format (export.format), fewer bits "
                "(export.storage), or a smaller base",
            )
        best = [
            (count, share)
            for count, share in fitting
            if not any(more >= count and wider >= share and (more, wider) != (count, share) for more, wider in fitting)
        ]
        return sorted(best, reverse=True)[: asked.tries]

    def _of_tokens(self, tokens: int | None) -> str:
        if not self.adapted.tokens:
            return ""
        why = " that rows of validation need" if not tokens and self.settings.vocabulary == "auto" else ""
        return f" and {tokens or self.adapted.tokens:,} of {self.adapted.tokens:,} tokens{why}"

    def _fewer(self, tokens: int | None) -> str:
        """What to do about a vocabulary that stays whole."""
        whole = self.adapted.tokens and not tokens
        return "student.vocabulary: data, which keeps the tokens of training rows alone; or " if whole else ""

    def cut(self, folder: Path, kept: Sequence[int] | None, layers: int, ffn: float) -> BaseRef:
        """Cuts the model and writes it; after that the maker has the smaller one.

        Raises:
            RequestError: the model cannot be cut so.
            RunError: test rows have too many other tokens, or what was written is not what was cut.
        """
        if kept is not None:
            self._trim(kept)
        if layers < (self.adapted.layers or 0):
            compared = max(LEAST_COMPARED, COMPARED // (self.adapted.layers or 1))
            shape.drop_layers(self.base.model, layers, self._inputs(compared))
        if ffn < 1.0:
            width = narrowed(width_of(self.base.model.config), ffn)
            shape.cut_ffn(self.base.model, width, self._inputs(SAMPLED))
        if self.settings.activation:
            self.ramp = activation.swap(self.base.model, self.settings.activation)
        parent, how = BaseRef.of(self.lock), described(self.adapted, self.shape())
        ref = save_base(self.base, folder, parent=parent, made_by="student", how=how).stored(PLAIN, "float32")
        self._check(ref)
        return ref

    def shape(self) -> Shape:
        """The size of the model as it stands."""
        return shape_of(self.base, self.lock.task, self.lock.data.max_length)

    # --- the vocabulary ----------------------------------------------------------------------------------------------

    def kept(self) -> list[int] | None:
        """Ids of the tokens that stay; None for all."""
        return self.tokens.kept(self.settings) if self.adapted.tokens else None

    def _trim(self, kept: Sequence[int]) -> None:
        old, before = self.base.tokenizer, self.tokens.ids("test")
        vocabulary.trim(self.base, kept)
        new = self.base.tokenizer
        self.cut_otherwise = vocabulary.cut_otherwise(old, new, before, self.tokens.ids("test", new))
        require_few(self.cut_otherwise, self.settings)

    # --- what was written --------------------------------------------------------------------------------------------

    def _inputs(self, most: int) -> list[Mapping[str, torch.Tensor]]:
        """So many sequences of training rows, in batches of similar length."""
        rows = list(islice(read_split(self.cell.folder, "train"), SAMPLED))
        options: dict[str, Any] = {"max_length": self.lock.data.max_length, "labels": self.cell.data.labels}
        parts = [part for row in self.task.encode(rows, self.base.tokenizer, **options) for part in row.parts]
        # Of rows with several sequences some of every row; batches alone would be of the shortest.
        parts = parts[:: max(1, len(parts) // most)][:most]
        batches = padded(self.task, parts, self.base.pad_token_id, self.device, AT_ONCE)
        return [{name: value for name, value in batch.items() if name != "labels"} for _, batch in batches]

    def _check(self, ref: BaseRef) -> None:
        """The files hold the model that was cut: what its config cannot say, nobody could open."""
        again = load_base(ref, self.cell.data.labels, self.device)
        batch = self._inputs(CHECKED)[0]
        with torch.inference_mode():
            found, wanted = (self.task.outputs_of(model, batch)[0] for model in (again.model.eval(), self.base.model))
        difference = float((found - wanted).abs().max())
        if again.fresh_modules or not difference <= REOPENED * max(1.0, float(wanted.abs().max())):
            raise RunError(
                "the smaller model is another one when it is opened again, so its config cannot hold it",
                place="student",
                got=f"{', '.join(again.fresh_modules) or 'outputs'} differ by {difference:.2g}",
                fix="leave more of the model as it is",
            )


def described(before: Shape, after: Shape) -> str:
    """What was cut, in words for the card."""
    return f"the adapted model with {', '.join(after.beside(before)) or 'rounding to 8 bits in mind'}"
