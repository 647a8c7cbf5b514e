"""A GGUF file as llama.cpp runs it (xllamacpp, extra `gguf-run`), called as causal models of transformers are called.

One sequence at a time and nothing kept between them: what llama.cpp has in its cache changes its sums, and a row's
answer would depend on the rows before it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from hfadapt.core.errors import RunError

if TYPE_CHECKING:
    import torch

PACKAGE = "xllamacpp"
NAMED = 4096
"""Tokens whose probability llama.cpp is asked for, the likeliest ones. The others get what is left in equal parts, so
that a divergence comes out a little too large; all of a vocabulary would take a second for each label."""
UNLIKELY = -50.0
"""Log-probability below which nothing is told apart."""
WHOLE = "a"
"""A token that is no part of a character, in words."""
_PAIR = re.compile(r'"id":(\d+),"token":"(?:[^"\\]|\\.)*","bytes":\[[\d,]*\],"logprob":(-?[\d.eE+-]+)')


def installed() -> bool:
    """Whether it can be run here."""
    return find_spec(PACKAGE) is not None


def runtime() -> str:
    """Its name and version."""
    return f"llama.cpp ({PACKAGE} {version(PACKAGE)})"


class LlamaCpp:
    """`model(input_ids=…, attention_mask=…, logits_to_keep=…).logits`: log-probabilities, on the CPU.

    Args:
        path: The file.
        config: The model's, as transformers has it.
        positions: The most tokens of a row and of what is written after it.
        adapter: A LoRA adapter as a GGUF file, which is put on it.
    """

    training = False

    def __init__(self, path: Path, config: Any, positions: int, adapter: Path | None = None) -> None:
        import torch
        import xllamacpp

        self.config, self.path = config, path
        asked = xllamacpp.CommonParams()
        asked.model.path = str(path)
        asked.n_ctx = asked.n_batch = asked.n_ubatch = positions
        asked.n_parallel, asked.n_gpu_layers, asked.verbosity = 1, 0, 0
        asked.cache_prompt, asked.cache_ram_mib, asked.warmup = False, 0, False
        if adapter is not None:
            asked.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(adapter), 1.0)]
        asked.cpuparams.n_threads = asked.cpuparams_batch.n_threads = torch.get_num_threads()
        try:
            self._server = xllamacpp.Server(asked)
        except Exception as error:
            what = "llama.cpp does not load the file" if adapter is None else "llama.cpp does not load base and adapter"
            raise RunError(what, place=str(adapter or path), got=str(error)[:200]) from None

    @property
    def device(self) -> torch.device:
        """Where tensors are given back."""
        import torch

        return torch.device("cpu")

    def __call__(
        self, *, input_ids: torch.Tensor, attention_mask: torch.Tensor, logits_to_keep: torch.Tensor, **_: Any
    ) -> SimpleNamespace:
        """Log-probabilities (L, V) of what follows the L positions of `logits_to_keep` (B, T)."""
        import torch

        found = []
        for ids, mask, keep in zip(input_ids, attention_mask, logits_to_keep, strict=True):
            for place in keep.nonzero()[:, 0].tolist():
                found.append(self.following(ids[: place + 1][mask[: place + 1].bool()].tolist()))
        return SimpleNamespace(logits=torch.stack(found) if found else torch.zeros(0, self.config.vocab_size))

    def following(self, prompt: Sequence[int] | str) -> torch.Tensor:
        """Log-probabilities (V,) of the next token. Raises RunError where llama.cpp fails."""
        import torch

        count = self.config.vocab_size
        # It says nothing of a token that is a part of a character, so it is made to write another one: what is likely
        # is told before that counts.
        said = self._ask(prompt, 1, n_probs=min(NAMED, count), logit_bias=[[WHOLE, 1e4]])
        pairs = _PAIR.findall(said.partition('"top_logprobs":')[2])
        if not pairs:
            raise RunError("llama.cpp names no token", place=str(self.path))
        places = torch.tensor([int(number) for number, _ in pairs])
        named = torch.tensor([float(logprob) for _, logprob in pairs])
        rest = max(0.0, 1.0 - float(named.double().exp().sum())) / max(1, count - len(pairs))
        row = torch.full((count,), rest).log()
        row[places] = named
        return row.clamp(min=UNLIKELY)

    def written(self, prompt: Sequence[int], most: int) -> str:
        """What it writes greedily after a prompt, at most `most` tokens, up to the end token."""
        return str(json.loads(self._ask(prompt, most))["choices"][0]["text"])

    def _ask(self, prompt: Sequence[int] | str, most: int, **more: Any) -> str:
        asked = {"prompt": prompt, "n_predict": most, "temperature": 0, "cache_prompt": False, **more}
        said: list[str] = []
        try:
            # Asked in words it answers in words, of which only some are read.
            self._server.handle_completions(json.dumps(asked), said.append)
        except Exception as error:
            raise RunError("llama.cpp fails", place=str(self.path), got=str(error)[:200]) from None
        if not said or '"choices":' not in said[0]:
            raise RunError("llama.cpp fails", place=str(self.path), got="".join(said)[:200])
        return said[0]
