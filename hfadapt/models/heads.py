"""What becomes of a checkpoint's own head: kept, with its classes in the recipe's order, or replaced by a new one.

A head is a table of one row of weights for each class. Its rows mean what the checkpoint's config calls them, never
what the recipe happens to list at the same place.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hfadapt.core.spec import Spec
from hfadapt.tasks import Task

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

UNNAMED = re.compile(r"LABEL_\d+")
"""What transformers calls a class without a name."""
SHOWN = 4
"""Classes that a message names."""


class BaseHead(Spec):
    """What the config of a checkpoint says of its head.

    Args:
        architecture: Class of the model that was saved, such as `BertForSequenceClassification`.
        classes: Names of the rows, in their order.
        problem_type: Of transformers; None where it is not said.
    """

    architecture: str | None = None
    classes: tuple[str, ...] = ()
    problem_type: str | None = None

    @classmethod
    def of(cls, config: PretrainedConfig) -> BaseHead:
        """From a checkpoint's config, before it is changed for a task."""
        names = getattr(config, "id2label", None) or {}
        architectures = getattr(config, "architectures", None) or [None]
        classes = tuple(str(name) for _, name in sorted(names.items()))
        kind = getattr(config, "problem_type", None)
        return cls(architecture=architectures[0], classes=classes, problem_type=kind)

    def rows(self, task: Task, labels: Sequence[str], architecture: str) -> tuple[int, ...] | None:
        """The row of the head for each output that the task wants.

        Args:
            architecture: Class of the model that the task is learned with.

        Returns:
            None where the head answers another question, or its classes have other names.
        """
        options = task.model_options(labels)
        if self.architecture not in (None, architecture):
            return None
        if (wanted := options.get("problem_type")) not in (None, self._problem_type(wanted)):
            return None
        if "id2label" not in options:
            return tuple(range(len(self.classes))) if len(self.classes) == options["num_labels"] else None
        unnamed = all(UNNAMED.fullmatch(name) for name in self.classes)
        if unnamed and len(labels) != len(self.classes):
            # Numbers alone do not make ten digits the first ten of a thousand classes.
            return None
        for spelt in (str, _plain):
            known = [spelt(name) for name in self.classes]
            asked = [spelt(name) for name in labels]
            if len({*known}) == len(known) and len({*asked}) == len(asked) and {*asked} <= {*known}:
                return tuple(known.index(name) for name in asked)
        return None

    def note(self, task: Task, labels: Sequence[str], architecture: str) -> str | None:
        """What becomes of the head, in a line; None where there is none, or nothing of it is changed."""
        if not task.outputs(labels) or self.architecture != architecture:
            return None
        rows = self.rows(task, labels, architecture)
        shown = ", ".join(self.classes[:SHOWN]) + (" …" if len(self.classes) > SHOWN else "")
        if rows is None:
            kind = (self.problem_type or "").replace("_", " ")
            return f"the head is new: the base's own is for {kind + ' of ' if kind else ''}{shown}"
        if rows == tuple(range(len(self.classes))):
            return None
        return f"the base's own head is used, with its classes ({shown}) in the order of this recipe"

    def _problem_type(self, wanted: str | None) -> str | None:
        """Where the config does not say it, one output is a number and several are classes."""
        if self.problem_type is not None:
            return self.problem_type
        return "regression" if len(self.classes) == 1 else "single_label_classification" if self.classes else wanted


def _plain(name: str) -> str:
    """A class's name without differences of spelling; `LABEL_3`, as transformers calls what has no name, is `3`."""
    folded = re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFKC", name).casefold()).strip()
    numbered = re.fullmatch(r"label (\d+)", folded)
    return numbered[1] if numbered else folded


def class_tensors(auto: Any, config: PretrainedConfig) -> dict[str, int]:
    """The tensors of a model that have a row for each class, and in which dimension."""
    import copy

    from accelerate import init_empty_weights

    shapes = []
    for more in (0, 1):
        changed = copy.deepcopy(config)
        changed.num_labels = config.num_labels + more
        with init_empty_weights():
            model = auto.from_config(changed, trust_remote_code=False)
        shapes.append({name: tuple(parameter.shape) for name, parameter in model.named_parameters()})
    few, many = shapes
    return {
        name: next(at for at, (a, b) in enumerate(zip(shape, many[name], strict=True)) if a != b)
        for name, shape in few.items()
        if shape != many.get(name, shape)
    }


def take_rows(model: Any, tensors: dict[str, int], rows: Sequence[int]) -> None:
    """Leaves the head with these of its rows, in this order."""
    import torch

    before = int(model.config.num_labels)
    for name, dim in tensors.items():
        owner, _, _ = name.rpartition(".")
        parameter, module = model.get_parameter(name), model.get_submodule(owner)
        parameter.data = parameter.data.index_select(dim, torch.tensor(rows, device=parameter.device))
        for count in ("out_features", "nf"):
            if getattr(module, count, None) == before:
                setattr(module, count, len(rows))
    for module in model.modules():
        if getattr(module, "num_labels", None) == before:
            module.num_labels = len(rows)


def start_again(model: Any, tensors: dict[str, int], seed: int) -> None:
    """Gives the rows of a head that is not kept new values, as transformers starts a head."""
    import torch

    draw = torch.Generator().manual_seed(seed)
    spread = float(getattr(model.config, "initializer_range", None) or 0.02)
    with torch.no_grad():
        for name in sorted(tensors):
            parameter: torch.nn.Parameter = model.get_parameter(name)
            fresh = torch.randn(parameter.shape, generator=draw) * spread if parameter.dim() > 1 else 0.0
            parameter.copy_(torch.as_tensor(fresh).expand_as(parameter))
