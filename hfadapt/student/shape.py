"""Fewer layers and narrower feed-forward parts, so that plain transformers opens the result from its config.

Of the layers the first and, where there are two, the last stay, and one after the other goes whose absence turns the
last hidden states the least on training rows: what reads them was trained with the last layer.

Of each feed-forward part those units go that have the least mean absolute activation times the norm of their column in
the next matrix; all layers keep the same number of them, as a config has one width. What they added the units that stay
take over, as far as least squares on training rows tell it.

Of a MiniLM that had learned to find licenses, before any training of its student: nDCG@10 was 80.9 (400 queries), 32.4
without its last layer, 75.4 without the last but one. On 100 other queries it was 80.8, 79.5 without the layer that is
missed the least, 79.9 with 4 of 6 layers, and with an eighth of the units 67.8, or 79.3 where others take over.

Which tensors become smaller is what the model built from the smaller config says.

Shapes: B rows of a batch, L tokens, D hidden, I units of a feed-forward part, K of them that stay.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from hfadapt.core.errors import RequestError, RunError
from hfadapt.models.said import built, require_said, shapes
from hfadapt.models.smaller import FIX, LAYERS, NUMBER, cut_config, field_of, width_of

if TYPE_CHECKING:
    import torch

STAGES = ("depths", "hidden_sizes")
"""Fields of models whose layers are stages, each as wide as the next one wants it."""
RIDGE = 1e-4
"""Of the mean square of an activation, the penalty that keeps few tokens from deciding too much."""
SHORTLIST = 6
"""Layers that are left out by turns for each that goes: of a deep model those that turn what goes through them the
least (Men et al. 2024, arXiv 2403.03853), so that the passes grow with its layers and not with their square."""
SAME = 1e-3
"""Of the largest output, what rounding may change where units are taken out."""


def layers_of(model: Any) -> int:
    """How many layers there are to choose from. Raises RequestError where they are not one list of a known number."""
    return len(stack_of(model)[1])


def require_layers(model: Any, keep: int) -> int:
    """How many layers there are, of which `keep` can stay; the model may be without weights.

    Raises:
        RequestError: there are fewer, or the config cannot say that there are so many.
    """
    before = layers_of(model)
    if not 1 <= keep <= before:
        raise RequestError(
            "so many layers cannot be kept",
            place="student.layers",
            got=str(keep),
            allowed=f"1 to {before}",
            fix=f"choose a number up to {before}",
        )
    if keep < before:
        # Those that rows miss the least are found with weights alone; what the config can say does not hang on them.
        _require_config(model, [*range(keep - 1), before - 1])
    return before


def _require_config(model: Any, kept: Sequence[int]) -> None:
    """Raises RequestError where the config cannot say that these layers alone are left."""
    path, stack = stack_of(model)
    smaller = copy.deepcopy(model.config)
    cut_config(smaller, len(kept), None, kept)
    numbers = range(len(stack))
    places = {f"{path}.{number}": f"{path}.{kept.index(number)}" if number in kept else "" for number in numbers}
    left = {}
    for name, found in shapes(model).items():
        start = ".".join(name.split(".")[: path.count(".") + 2])
        if place := places.get(start, start):
            left[place + name.removeprefix(start)] = found
    require_said(model, smaller, "student.layers", "delete `student.layers`", found=left)


def drop_layers(model: Any, keep: int, batches: Iterable[Mapping[str, torch.Tensor]]) -> list[int]:
    """Leaves `keep` layers, and says which.

    Args:
        batches: Inputs of some training rows, by which layers are compared; the values of padding do not count.

    Raises:
        RequestError: there are fewer, or the config cannot say that there are so many.
        RunError: there are no rows.
    """
    before = require_layers(model, keep)
    _, stack = stack_of(model)
    if keep == before:
        return list(range(before))
    kept = _least_missed(model, stack, keep, list(batches))
    _require_config(model, kept)
    for number in reversed(range(before)):
        if number not in kept:
            del stack[number]
    for number, layer in enumerate(stack):
        for module in layer.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                module.layer_idx = number
    cut_config(model.config, keep, None, kept)
    return kept


def require_width(model: Any, width: int) -> list[_Part]:
    """The feed-forward parts, of each of which `width` units can stay; the model may be without weights.

    Raises:
        RequestError: the config has no such width, or units cannot be taken out of these parts.
    """
    smaller = copy.deepcopy(model.config)
    cut_config(smaller, layers_of(model), width)
    return _parts(model, shapes(built(model, smaller, "student.ffn", FIX)))


def cut_ffn(model: Any, width: int, batches: Sequence[Mapping[str, torch.Tensor]]) -> None:
    """Leaves `width` units of every feed-forward part, or as many as the config makes of it.

    Args:
        batches: Inputs of training rows, by which units are compared; the values of padding do not count.

    Raises:
        RequestError: the config has no such width, or units cannot be taken out of these parts.
    """
    import torch

    if width >= width_of(model.config):
        return
    parts = require_width(model, width)
    _weigh(model, parts, batches)
    batch = batches[0]
    with torch.inference_mode():
        with _hooks([(part.down, part.silenced) for part in parts]):
            wanted = model(**batch)[0]
        for part in parts:
            part.cut()
        cut_config(model.config, layers_of(model), width)
        _count_again(model, width)
        found = model(**batch)[0]
        if not float((found - wanted).abs().max()) <= SAME * max(1.0, float(wanted.abs().max())):
            raise _unknown(model, "units that hang on each other")
        for part in parts:
            part.take_over()


def _count_again(model: Any, width: int) -> None:
    """What modules remember of their sizes."""
    from torch import nn

    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape
        elif hasattr(module, "nf"):
            module.nx, module.nf = module.weight.shape
        elif "intermediate_size" in vars(module):
            module.intermediate_size = width


# --- layers ----------------------------------------------------------------------------------------------------------


def stack_of(model: Any) -> tuple[str, Any]:
    """The list of layers and its path: as long as the config says, and shorter where that says less."""
    from torch import nn

    count = int(getattr(model.config, field_of(model.config, LAYERS, NUMBER)))
    lists = {path: each for path, each in model.named_modules() if isinstance(each, nn.ModuleList)}
    found = [(path, each) for path, each in lists.items() if len(each) == count]
    if len(found) > 1 and count > 1:
        smaller = copy.deepcopy(model.config)
        cut_config(smaller, count - 1, None)
        less = built(model, smaller, "student.layers", "delete `student.layers`")
        shorter = {path for path, each in less.named_modules() if isinstance(each, nn.ModuleList) and len(each) < count}
        found = [(path, each) for path, each in found if path in shorter]
    staged = [name for name in STAGES if isinstance(getattr(model.config, name, None), (list, tuple))]
    if not found or staged:
        raise RequestError(
            "this model's layers cannot be chosen",
            place="student",
            got=f"{type(model).__name__}, with "
            + ("stages of several sizes" if staged else f"no list of {count} layers"),
            allowed="a model with one list of layers, as transformers for texts, images and sounds have",
            fix="choose another base, or delete `student`",
        )
    return found[0]


def _least_missed(model: Any, stack: Any, keep: int, batches: Sequence[Mapping[str, torch.Tensor]]) -> list[int]:
    """The numbers of the layers that stay: the first, the last, and those that are missed the most."""
    import torch

    kept, last = list(range(len(stack))), len(stack) - 1
    if not batches:
        raise RunError("there are no rows by which layers could be compared", place="student.layers", fix="add rows")
    alike = torch.nn.functional.cosine_similarity
    turns = [0.0] * len(stack)

    def look(number: int, layer: Any, given: tuple[Any, ...], out: Any) -> None:
        goes = out[0] if isinstance(out, tuple) else out
        turns[number] -= float(alike(given[0].float(), goes.float(), dim=-1).mean())

    with torch.inference_mode(), ExitStack() as gone:
        looking = [layer.register_forward_hook(partial(look, number)) for number, layer in enumerate(stack)]
        wanted = [_last_hidden(model, batch) for batch in batches]
        for each in looking:
            each.remove()

        def turned(number: int) -> float:
            hook = stack[number].register_forward_hook(_absent)
            found = [_last_hidden(model, batch) for batch in batches]
            hook.remove()
            return -float(sum(alike(one, other, dim=-1).sum() for one, other in zip(found, wanted, strict=True)))

        while len(kept) > keep:
            # What reads the last states knows those of the last layer; the first may be of another kind than the rest.
            choices = [number for number in kept if number not in (0, last)] or [last]
            choices = sorted(choices, key=lambda number: turns[number])[:SHORTLIST]
            least = min(choices, key=turned) if len(choices) > 1 else choices[0]
            kept.remove(least)
            gone.callback(stack[least].register_forward_hook(_absent).remove)
    return kept


def _absent(layer: Any, given: tuple[Any, ...], out: Any) -> Any:
    """As if a layer were not there: what comes in goes out."""
    return (given[0], *out[1:]) if isinstance(out, tuple) else given[0]


def _last_hidden(model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """What a model's head reads (…, D), without padding where the batch tells it."""
    found: torch.Tensor = model.base_model(**batch)[0].float()
    mask = batch.get("attention_mask")
    return found[mask.bool()] if mask is not None and mask.shape == found.shape[:-1] else found


# --- feed-forward parts ----------------------------------------------------------------------------------------------


@dataclass
class _Part:
    """One feed-forward part: I units, the matrix `down` out of them, and what has a row for each of them.

    Args:
        left: Units that are kept.
        axis: Of the weight of `down` along its units: 1, or of GPT-2's Conv1D 0.
        into: Tensors with one or, where gate and value are one matrix, two rows for each unit, and along which axis.
        worth: (I,) of each unit.
        kept: (left,) the best of them.
        found: (K + 1, K + 1) products of the activations that stay, and of 1, with each other, summed over tokens.
        missed: (K + 1, D) likewise with what the units that go add to what comes out.
    """

    down: Any
    axis: int
    left: int
    into: list[tuple[torch.nn.Parameter, int]] = field(default_factory=list)
    worth: Any = 0.0
    kept: Any = None
    found: Any = 0.0
    missed: Any = 0.0

    @property
    def units(self) -> int:
        return int(self.down.weight.shape[self.axis])

    def weigh(self, given: torch.Tensor, mask: torch.Tensor | None) -> None:
        """Adds the absolute activations (…, I), of padding none where `mask` (B, L) says it."""
        self.worth = self.worth + _of_tokens(given, mask).abs().sum(0)

    def choose(self) -> None:
        """Decides which units stay."""
        worth = self.worth * self.down.weight.detach().float().norm(dim=1 - self.axis)
        self.kept = worth.topk(self.left).indices.sort().values

    def silenced(self, given: torch.Tensor) -> torch.Tensor:
        """The activations (…, I), zero for units that go."""
        import torch

        return given * torch.zeros_like(given[..., :1]).expand_as(given).index_fill(-1, self.kept, 1.0)

    def compare(self, given: torch.Tensor, mask: torch.Tensor | None) -> None:
        """Adds to `found` and `missed` what the activations (…, I) say, likewise."""
        import torch

        tokens = _of_tokens(given, mask)
        goes = torch.ones(self.units, dtype=torch.bool, device=given.device)
        goes[self.kept] = False
        matrix = self.down.weight.detach().float().movedim(self.axis, 0)
        stays = torch.cat([tokens[:, self.kept], torch.ones_like(tokens[:, :1])], 1)
        added = tokens[:, goes] @ matrix[goes]
        # Summed on the host, as not every device has 64 bits.
        self.found = self.found + (stays.T @ stays).cpu().double()
        self.missed = self.missed + (stays.T @ added).cpu().double()

    def take_over(self) -> None:
        """Adds to the rows of the units that stay what comes nearest to what those that went added, by least squares
        with a small penalty on what is added; to the bias, where there is one, likewise."""
        import torch

        count = self.left + (getattr(self.down, "bias", None) is not None)
        found, missed = self.found[:count, :count], self.missed[:count]
        penalty = RIDGE * found.diagonal().mean() * torch.eye(count, dtype=found.dtype)
        more = torch.linalg.solve(found + penalty, missed)
        weight = self.down.weight.data
        weight += more[: self.left].movedim(0, self.axis).to(weight)
        if count > self.left:
            self.down.bias.data += more[-1].to(weight)

    def cut(self) -> None:
        """Takes out the units that go, in place."""
        import torch

        units = self.units
        for parameter, axis in self.into:
            rows = torch.cat([self.kept + start for start in range(0, parameter.shape[axis], units)])
            parameter.data = parameter.data.index_select(axis, rows)
        self.down.weight.data = self.down.weight.data.index_select(self.axis, self.kept)


def _parts(model: Any, smaller: Mapping[str, tuple[int, ...]]) -> list[_Part]:
    """The feed-forward parts: what has another shape in the smaller model (`smaller`: shapes by name)."""
    parts: dict[str, _Part] = {}
    into: list[tuple[str, torch.nn.Parameter, int, int]] = []
    for name, parameter in model.named_parameters():
        owner, _, _ = name.rpartition(".")
        module, after = model.get_submodule(owner), smaller.get(name, ())
        if after == tuple(parameter.shape):
            continue
        axes = [axis for axis, (a, b) in enumerate(zip(parameter.shape, after, strict=False)) if a != b]
        if len(axes) != 1 or parameter.dim() > 2:
            raise _unknown(model, f"{name}, of mixtures of experts or convolutions")
        # GPT-2's Conv1D has its weight the other way round.
        inwards = 0 if hasattr(module, "nf") else 1
        if parameter.dim() == 2 and axes == [inwards]:
            parts[owner] = _Part(module, inwards, after[inwards])
        else:
            into.append((owner, parameter, axes[0], after[axes[0]]))
    for owner, parameter, axis, rows in into:
        # The part that it is nearest to in the tree of modules.
        near = {path: _shared(owner, path) for path in parts}
        best = [parts[path] for path in near if near[path] == max(near.values())]
        if len(best) != 1 or parameter.shape[axis] * best[0].left != rows * best[0].units:
            raise _unknown(model, owner)
        best[0].into.append((parameter, axis))
    if not parts or not all(part.into for part in parts.values()):
        raise _unknown(model, "none")
    return list(parts.values())


def _shared(one: str, other: str) -> int:
    """How many modules two paths have in common."""
    steps = zip(one.split("."), other.split("."), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], steps))


def _of_tokens(given: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Activations (…, I) as those of one token after the other."""
    if mask is not None and mask.shape == given.shape[:-1]:
        given = given[mask.bool()]
    return given.detach().float().flatten(0, -2)


def _weigh(model: Any, parts: Sequence[_Part], batches: Sequence[Mapping[str, torch.Tensor]]) -> None:
    """Chooses the units of each part that stay, and sums up what the others add. Raises RunError without any rows."""
    import torch

    if not batches:
        raise RunError("there are no rows by which units could be compared", place="student.ffn", fix=FIX)
    for looks in ([part.weigh for part in parts], [part.compare for part in parts]):
        for batch in batches:
            looking = [partial(look, mask=batch.get("attention_mask")) for look in looks]
            with torch.inference_mode(), _hooks([(part.down, look) for part, look in zip(parts, looking, strict=True)]):
                model.base_model(**batch)
        for part in parts:
            if part.kept is None:
                part.choose()


@contextmanager
def _hooks(looks: Sequence[tuple[Any, Callable[[torch.Tensor], torch.Tensor | None]]]) -> Iterator[None]:
    """Within, modules are given what a function makes of their first input; None for the same."""

    def hook(look: Callable[[torch.Tensor], torch.Tensor | None]) -> Any:
        def changed(module: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
            found = look(given[0])
            return given if found is None else (found, *given[1:])

        return changed

    made = [module.register_forward_pre_hook(hook(look)) for module, look in looks]
    try:
        yield
    finally:
        for each in made:
            each.remove()


def _unknown(model: Any, got: str) -> RequestError:
    return RequestError(
        "units cannot be taken out of the feed-forward parts of this model",
        place="student.ffn",
        got=f"{type(model).__name__}: {got}",
        allowed="one matrix out of the units of each part, and one or two into them",
        fix=FIX,
    )
