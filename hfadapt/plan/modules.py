"""Which layers of a model an adapter can be put on: those that take part in the loss, as plain LoRA layers.

Nothing here goes by lists of architectures: a model with few layers is run once without memory (memory/part.py), and
peft is asked what it makes of the names. The exception are layers whose weights are read in a fused kernel on a GPU
alone, which cannot be seen from here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from hfadapt.core.errors import Problem, nearest
from hfadapt.models.facts import ModelFacts
from hfadapt.plan.memory.part import can_be_wrapped, plain_names, taking_part
from hfadapt.recipe.names import ANY_LAYER, matches

ALL_LINEAR = "all-linear"
FUSED_MODEL_TYPES = ("falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h")
FUSED_MODULES = ("conv1d", "out_proj")
"""Layers of these model types that peft refuses (peft/tuners/tuners_utils.py)."""
SHOWN = 12


@dataclass(frozen=True)
class Adaptable:
    """The linear layers that can be adapted.

    Args:
        names: Name endings of them, or the word for all; none where the whole model is trained instead.
        left_out: Name endings of those that cannot, with the reason of each.
        parts: Paths of layers that take no part, in a model with few layers.
    """

    names: tuple[str, ...] = (ALL_LINEAR,)
    left_out: tuple[tuple[str, str], ...] = ()
    parts: frozenset[str] = frozenset()

    @property
    def reason(self) -> str:
        """Why not all are adapted, in a line."""
        if not self.names:
            return "; ".join(("no layer can have an adapter beside it", *(f"its {n} {r}" for n, r in self.left_out)))
        if not self.left_out:
            return "1x1 convolutions, a linear layer for every pixel; depthwise ones and gates of channels are left"
        why: dict[str, list[str]] = {}
        for name, reason in self.left_out:
            why.setdefault(reason, []).append(name)
        return "all linear layers but " + " and ".join(f"{_shown(n)}, which {reason}" for reason, n in why.items())


def adaptable(facts: ModelFacts) -> Adaptable:
    """What can be adapted, found by a run of the model with few layers; all, where it cannot be run without memory."""
    if not facts.linears:
        return Adaptable(())
    found = taking_part(facts)
    if facts.pointwise:
        return _pointwise(facts, found or {})
    if found is None:
        return Adaptable()
    why = {False: "take no part in the loss", None: "are more than linear layers"}
    idle = {path: why[alive] for path, alive in found.items() if not alive}
    if facts.model_type in FUSED_MODEL_TYPES:
        fused = (path for path in found if _last(path) in FUSED_MODULES)
        idle |= dict.fromkeys(fused, f"are read in a fused kernel of {facts.model_type}")
    alive = [path for path in found if path not in idle]
    # What holds a linear layer may be called as another one is.
    others = idle | dict.fromkeys(holder for path in found for holder in _holders(path))
    names = dict.fromkeys(name for path in alive if (name := _ending(path, others)))
    plain = plain_names(facts, tuple(names))
    if not idle and plain is None:
        return Adaptable()
    kept = tuple(name for name in names if plain is None or name in plain)
    for path in alive:
        if not any(matches(path, name) for name in kept):
            idle[path] = "would change experts, whose weights are one tensor, too"
    missing = dict.fromkeys((_ending(path, alive) or _last(path), reason) for path, reason in idle.items())
    if plain is not None:
        missing[("experts", "keep all their weights in one tensor")] = None
    taken = {path for path, reason in idle.items() if any(matches(path, name) for name in kept)}
    return Adaptable(kept, tuple(missing), frozenset(idle) - taken)


def _pointwise(facts: ModelFacts, found: Mapping[str, bool | None]) -> Adaptable:
    """Of a net of convolutions: names that no convolution of another kind has, else paths."""
    paths = [path for linear in facts.linears for path in linear.paths]
    idle = {path: "take no part in the loss" for path in paths if found.get(path) is False}
    holders = (holder for path in (*paths, *facts.other_modules) for holder in _holders(path))
    others = dict.fromkeys((*idle, *holders, *(path for path in facts.other_modules if path not in paths)))
    names = dict.fromkeys(_ending(path, others) or _numbered(path, others) for path in paths if path not in idle)
    if not can_be_wrapped(facts, tuple(names)):
        return Adaptable((), (("convolutions", "have sizes that the net's own code reads"),))
    return Adaptable(tuple(names), tuple(idle.items()))


def module_problems(facts: ModelFacts, asked: Sequence[str]) -> list[Problem]:
    """What is wrong with modules that a recipe names."""
    paths = [path for linear in facts.linears for path in linear.paths] + list(facts.other_modules)
    names = sorted({_last(path) for path in paths})
    unknown = [name for name in asked if name != ALL_LINEAR and not any(matches(path, name) for path in paths)]
    if unknown:
        close = [found for name in unknown if (found := nearest(name, names))]
        return [
            Problem(
                f"{facts.architecture} has no such layers",
                place="adapter.modules",
                got=", ".join(unknown),
                allowed=_shown(names),
                fix=f"did you mean {' and '.join(map(repr, close))}?" if close else "leave adapter.modules: auto",
            )
        ]
    known = adaptable(facts)
    barred = [name for name in asked if name == ALL_LINEAR or any(matches(path, name) for path in known.parts)]
    if known.left_out and barred:
        return [
            Problem(
                f"some of these layers cannot be adapted: {known.reason}",
                place="adapter.modules",
                got=", ".join(barred),
                allowed=", ".join(known.names),
                fix="leave adapter.modules: auto",
            )
        ]
    return []


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _holders(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def _ending(path: str, others: Iterable[str]) -> str | None:
    """The shortest ending of a path that none of the others has, whatever the numbers of layers; None where only these
    tell them apart."""
    parts = [ANY_LAYER if part.isdigit() else part for part in path.split(".")]
    for count in range(1, len(parts) + 1):
        ending = ".".join(parts[-count:])
        if parts[-count] != ANY_LAYER and not any(matches(other, ending) for other in others):
            return ending
    return None


def _numbered(path: str, others: Iterable[str]) -> str:
    """The shortest ending that begins with a name, with the numbers of layers."""
    parts = path.split(".")
    endings = (".".join(parts[-count:]) for count in range(1, len(parts) + 1) if not parts[-count].isdigit())
    return next((each for each in endings if not any(matches(other, each) for other in others)), path)


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
