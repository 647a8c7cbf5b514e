"""ONNX graphs of models that write: keys and values of the tokens before go in and come out, so none is read twice.

Inputs are `input_ids` (B, T), `attention_mask` (B, P + T), `position_ids` (B, T) and, of each layer L,
`past_key_values.L.key` and `.value` (B, heads, P, width); outputs `logits` (B, T, V) and `present.L.key` and `.value`
(B, heads, P + T, width). P is 0 where a text begins. Such names other tools of ONNX Runtime use too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from hfadapt.formats._runner import OnCpu
from hfadapt.formats._single_file import quietly

if TYPE_CHECKING:
    import numpy as np
    import torch

PAST, PRESENT, LOGITS = "past_key_values", "present", "logits"
PLAIN_LAYER = "full_attention"
ROWS, BEFORE, NEW = 2, 5, 3
"""Sizes of the example from which a graph is made; none of them is that of another axis, or 1."""


def unfit(config: Mapping[str, Any]) -> str | None:
    """Why the cache of a model holds something else than keys and values of all tokens, by its config; or None."""
    kinds = set(config.get("layer_types") or ()) - {PLAIN_LAYER}
    windows = config.get("sliding_window") is not None and config.get("use_sliding_window", True)
    if kinds or windows:
        return f"its layers keep {', '.join(sorted(kinds)) or 'sliding windows'}, not keys and values of all tokens"
    if config.get("is_encoder_decoder"):
        return "it has an encoder, whose keys and values this graph has not"
    return None


def exported(model: Any) -> Any:
    """The graph of a causal model of transformers, on the CPU, as an `onnx.ModelProto`."""
    import torch

    ids = torch.zeros(ROWS, NEW, dtype=torch.long)
    mask = torch.ones(ROWS, BEFORE + NEW, dtype=torch.long)
    places = torch.arange(BEFORE, BEFORE + NEW).expand(ROWS, NEW).contiguous()
    # The layers share an axis: with one of its own for each, showing that they are all alike takes the square of them.
    rows, new, before = (torch.export.Dim(name) for name in ("rows", "new", "before"))
    free, both, whole = {0: rows, 1: new}, {0: rows, 1: torch.export.Dim.DYNAMIC}, {0: rows, 2: before}
    with quietly(), torch.no_grad():
        kept = model(input_ids=ids[:, :BEFORE], use_cache=True).past_key_values.layers
        sizes = [each.keys.shape[1::2] for each in kept]
        past = [tuple(torch.zeros(ROWS, heads, BEFORE, width) for _ in range(2)) for heads, width in sizes]
        names = [f"{layer}.{part}" for layer in range(len(past)) for part in ("key", "value")]
        made = torch.onnx.export(
            _cached(model).eval(),
            (ids, mask, places, past),
            dynamo=True,
            dynamic_shapes=(free, both, dict(free), [(whole, dict(whole)) for _ in past]),
            input_names=["input_ids", "attention_mask", "position_ids", *(f"{PAST}.{name}" for name in names)],
            output_names=[LOGITS, *(f"{PRESENT}.{name}" for name in names)],
        )
    assert made is not None
    return made.model_proto


def _cached(model: Any) -> torch.nn.Module:
    """A model that takes keys and values as tensors, and gives them so."""
    import torch
    from transformers import DynamicCache

    class Cached(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(
            self, ids: torch.Tensor, mask: torch.Tensor, places: torch.Tensor, past: Sequence[tuple[torch.Tensor, ...]]
        ) -> tuple[torch.Tensor, ...]:
            cache = DynamicCache(config=model.config)
            for layer, (keys, values) in enumerate(past):
                cache.update(keys, values, layer)
            found = self.model(
                input_ids=ids, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True
            )
            return found.logits, *(part for each in cache.layers for part in (each.keys, each.values))

    return Cached()


class Writer(OnCpu):
    """A graph with a cache, called as causal models of transformers are: `model(…).logits` and `model.generate(…)`.

    Args:
        run: Runs one batch: arrays in and out, by name.
        past: Of each input of keys or values its heads and width.
        config: The model's.
        generation_config: Likewise; what of it counts are the tokens that end a text.
    """

    def __init__(
        self,
        run: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]],
        past: Mapping[str, tuple[int, int]],
        config: Any,
        generation_config: Any,
    ) -> None:
        self._run, self._past, self.config, self.generation_config = run, past, config, generation_config

    def named_modules(self) -> Iterator[tuple[str, Any]]:
        """None."""
        return iter(())

    def __call__(self, *, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: Any) -> SimpleNamespace:
        """Logits (B, T, V) of whole rows, filled up at the right."""
        return SimpleNamespace(logits=self._step(input_ids, attention_mask, {})[0])

    def _step(
        self, new: torch.Tensor, mask: torch.Tensor, past: Mapping[str, np.ndarray]
    ) -> tuple[torch.Tensor, dict[str, np.ndarray]]:
        """Logits of new tokens (B, T), and what is kept of all (B, P + T)."""
        import numpy as np
        import torch

        places = (mask.cumsum(-1) - 1).clamp(min=0)[:, -new.shape[1] :]
        nothing = {name: np.zeros((len(new), n, 0, width), np.float32) for name, (n, width) in self._past.items()}
        given = {"input_ids": new, "attention_mask": mask, "position_ids": places}
        found = dict(self._run({name: each.numpy() for name, each in given.items()} | (dict(past) or nothing)))
        return torch.from_numpy(found.pop(LOGITS)), {
            name: found[f"{PRESENT}{name.removeprefix(PAST)}"] for name in self._past
        }

    def generate(
        self,
        *,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        max_new_tokens: int,
        do_sample: bool = False,
        logits_processor: Iterable[Any] = (),
        stopping_criteria: Iterable[Any] = (),
        **_: Any,
    ) -> torch.Tensor:
        """Prompts (B, T), filled up at the left, with what follows them, as transformers' own does it.

        Args:
            do_sample: Draw from the whole distribution; otherwise the likeliest token is taken.
        """
        import torch

        named = self.generation_config.eos_token_id
        ends = torch.tensor(named if isinstance(named, list) else [] if named is None else [named])
        ids, mask, new = input_ids, attention_mask, input_ids
        past: dict[str, np.ndarray] = {}
        going = torch.ones(len(ids), dtype=torch.bool)
        for _step in range(max_new_tokens):
            logits, past = self._step(new, mask, past)
            scores = logits[:, -1]
            for change in logits_processor:
                scores = change(ids, scores)
            token = torch.multinomial(scores.softmax(-1), 1)[:, 0] if do_sample else scores.argmax(-1)
            token = torch.where(going, token, self.generation_config.pad_token_id or 0)
            new = token[:, None]
            ids, mask = torch.cat([ids, new], 1), torch.cat([mask, torch.ones_like(new)], 1)
            going = going & ~torch.isin(token, ends)
            for ended in stopping_criteria:
                going = going & ~ended(ids, scores)
            if not going.any():
                break
        return ids
