"""The Format contract: how a finished adapter leaves the run folder. One file per format.

What a format writes is opened again as a stranger would: with plain transformers and peft, or with a runtime of its
own, which `Runner` lets tasks call like a model of transformers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from hfadapt.core import registry
from hfadapt.core.errors import RequestError
from hfadapt.formats._runner import Runner as Runner
from hfadapt.formats._runner import Shape as Shape
from hfadapt.quants import is_quantised

if TYPE_CHECKING:
    import torch

    from hfadapt.models.facts import ModelFacts
    from hfadapt.models.load import Base
    from hfadapt.recipe.schema import Lock
    from hfadapt.records.stages import Manifest
    from hfadapt.run_folder import Cell


@dataclass(frozen=True)
class Form:
    """One way to serve an adapter.

    Args:
        storage: dtype or quant of the base's weights.
        merged: Whether the adapter is part of them.
        dequantised: Merged into what the quantised base stands for, not into the original weights.
        own: Name of a form that only its runtime has, such as `int8-dynamic`. drift.json does not know it: export
            judges the written file instead.
    """

    storage: str
    merged: bool
    dequantised: bool = False
    own: str = ""

    @property
    def name(self) -> str:
        """Name in drift.json, such as `merged-bfloat16`, or its own."""
        return self.own or "-".join(
            ("merged" if self.merged else "adapter", *(("dequantised",) * self.dequantised), self.storage)
        )

    @property
    def quantised(self) -> bool:
        """Whether the weights are held in fewer bits than a dtype has."""
        return is_quantised(self.storage)


@dataclass(frozen=True)
class Head:
    """What precedes the tensors in a file of weights, such as names, settings and a vocabulary.

    Args:
        bytes: Its length.
        vocabulary: Whether a list of ordinary words is part of it.
        text: What of the file can be read, where that does not stand at its beginning.
    """

    bytes: int
    vocabulary: bool
    text: str | None = None


@dataclass(frozen=True)
class Estimate:
    """A form of a model that has not been written yet.

    Args:
        form: Its name.
        bytes: What its files take, about.
        arithmetic: In what its products are computed, as `latency` of a target names it: `float32` or `int8`.
    """

    form: str
    bytes: int
    arithmetic: str


class Format(Protocol):
    """What a format has to say. A subclass is stateless; its instance in the module is called `KIND`."""

    @property
    def name(self) -> str:
        """Name on the command line."""

    @property
    def needs_base(self) -> bool:
        """Whether the base is needed beside it, unless the method trains the base itself."""

    packages: tuple[str, ...] = ()
    """Python packages that it needs beside those of training, by the names under which they are imported."""
    library: str = ""
    """What opens it, as the Hub calls it; empty for the task's own library."""
    own_readme: bool = False
    """Whether its README says how it is run, and the card stands beside it, though the base is needed."""
    most_labels: int | None = None
    """Labels that its runtime is asked for, where each takes it long; None for those of all rows."""
    rounds: Literal["", "values", "rows"] = ""
    """Where it has a form that rounds to 8 bits as values come: by the range of all values at once, or of each row."""
    bare: frozenset[str] = frozenset()
    """Its files of numbers alone that are called as pickles are; nothing unpickles them."""
    extra: str = ""
    """The extra of hfadapt that installs them; empty where each is installed by its own name."""

    @property
    def runtime(self) -> str:
        """Name and version of what runs the files."""
        return f"transformers {version('transformers')}"

    def make_ready(self) -> None:
        """Makes, once, what it needs beside packages. Raises HfadaptError where that cannot be."""
        return

    def unfit(self, task: str, config: Mapping[str, Any]) -> str | None:
        """Why models of this task and config cannot be written in the format, or None; known before training."""
        return None

    def estimates(self, facts: ModelFacts) -> tuple[Estimate, ...]:
        """The forms that it would have of a model that is not trained yet, the preferred one first."""
        return ()

    def forms(self, lock: Lock) -> tuple[Form, ...]:
        """The forms that it can hold, the preferred one first; none where nothing can drift.

        Where some are forms of drift.json, one of these is written, unless another is named.
        """
        return ()

    def refusal(self, cell: Cell) -> str | None:
        """Why this trained model cannot be written in the format, or None."""
        return None

    def holds(self, name: str, whole: bool) -> bool:
        """Whether a file of this name, below the folder, may be part of it, beside the tokenizer's.

        Args:
            whole: The method trains the base itself.
        """

    def loads(self, form: str, name: str) -> bool:
        """Whether a file of this name is loaded where a form is used, and does not lie beside it for others to take."""
        return self.holds(name, True)

    def needed(self, whole: bool) -> frozenset[str]:
        """Files without which it cannot be opened; argument as of `holds`."""

    def head(self, path: Path) -> Head | None:
        """Where the tensors begin in a file of its own; None for safetensors and for what is no file of weights."""
        return None

    def write(self, cell: Cell, form: Form | None, folder: Path, device: torch.device) -> Any:
        """Writes the model's files into an empty folder, and returns the model that they are to hold."""

    def together(self) -> AbstractContextManager[None]:
        """Around writing several forms of one model: what they have in common may be made once."""
        return nullcontext()

    def tolerance(self, cell: Cell, form: Form | None) -> float | None:
        """Largest mean difference of a label's loss, in nats, between what was written and what is read back; None for
        a form that is not to be the same, which only the gate judges."""

    def reopen(self, cell: Cell, folder: Path, device: torch.device) -> Any:
        """The files as a stranger would open them: a model of transformers, or a `Runner`.

        Raises:
            RunError: what is to run them cannot.
        """

    def processor(self, cell: Cell, folder: Path) -> Any:
        """What turns values into inputs, as the files hold it; None where a stranger takes the base's."""
        if self.needs_base:
            return None
        kind = registry.modality_of(cell.lock.task)
        return kind.sized(kind.load_processor(str(folder), None), cell.lock.data.max_length)

    def faults(self, cell: Cell, folder: Path, model: Any) -> Iterator[str]:
        """What is wrong with the written files, looked at without running them.

        Args:
            model: What `write` gave, on the CPU.
        """
        return iter(())

    def operators(self, folder: Path) -> dict[str, int]:
        """How often each operator of its runtime stands in the files; nothing where transformers runs them."""
        return {}

    def open(self, folder: Path, manifest: Manifest, lock: Lock, device: torch.device) -> Base:
        """A folder of a whole model, which has been checked, ready to be asked: in evaluation mode, frozen."""

    def usage(self, cell: Cell) -> str:
        """Python that opens the files, for the README."""

    def notes(self, cell: Cell) -> str:
        """What the README says after that."""
        return ""

    def commands(self, cell: Cell, folder: Path) -> list[str]:
        """What runs an exported folder on this machine, shown once it is written."""
        return []

    def tried(self, cell: Cell, folder: Path) -> str | None:
        """What `usage` printed in a process of its own; None where it was not run.

        Raises:
            RunError: it fails.
        """
        return None


def missing(kind: Format) -> tuple[str, ...]:
    """The packages of a format that are not installed."""
    return tuple(name for name in kind.packages if find_spec(name) is None)


def install(kind: Format, package: str) -> str:
    """The command that installs a package of a format."""
    return f'pip install "hfadapt[{kind.extra}]"' if kind.extra else f"pip install {package}"


def require_packages(kind: Format) -> None:
    """Raises RequestError where a format needs packages that are not installed, with the command that does it."""
    if lacking := missing(kind):
        raise RequestError(
            f"the format {kind.name} needs packages that are not installed",
            place="--format",
            got=f"no {', no '.join(lacking)}",
            fix=" && ".join(dict.fromkeys(install(kind, name) for name in lacking)),
        )


def over_http(cell: Cell) -> tuple[str, dict[str, Any]]:
    """Path and body with which a server that has OpenAI's API is asked about TEXT as training asked the model."""
    template = cell.lock.template_of(cell.lock.domain)
    prompt = template.prompt if template else None
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "TEXT"}]}
    chat = prompt is None and registry.schema(cell.data.form).chat
    if not chat:
        body = {"prompt": "TEXT" if prompt is None else prompt.replace("{text}", "TEXT")}
    return f"/v1/{'chat/' if chat else ''}completions", {**body, "temperature": 0, "max_tokens": 64}
