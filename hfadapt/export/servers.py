"""What a server of other people asks of an export, and the command that serves it there.

vLLM reads an adapter's config by itself (vllm/lora/peft_helper.py): it refuses some of what peft can do, and passes
over the rest, such as ranks of single layers, with wrong answers. Its ranks are fixed steps.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hfadapt.core import registry
from hfadapt.core.errors import Problem, RequestError, choice_problem
from hfadapt.core.samples import PREFIX
from hfadapt.formats import Format, over_http
from hfadapt.models.adapter_files import CONFIG, tensor_shapes
from hfadapt.models.attach import WEIGHTS
from hfadapt.models.base import BaseRef
from hfadapt.models.load import source_of
from hfadapt.recipe.sources import expanded
from hfadapt.run_folder import Cell

SERVED = "adapter"
"""The format that is written for a server, where none is named."""
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Of `--max-lora-rank`."""
PLAIN: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "modules_to_save": (None, []),
    "use_dora": (None, False),
    "bias": (None, "none"),
    "lora_bias": (None, False),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "trainable_token_indices": (None, [], {}),
    "layer_replication": (None, []),
}
"""What vLLM takes of an adapter's config."""


class Vllm:
    """vLLM's server with OpenAI's API."""

    name = "vllm"

    def problems(self, cell: Cell, kind: Format) -> Iterator[Problem]:
        """Why it cannot serve the export."""
        if not registry.task(cell.lock.task).writes:
            yield Problem("vLLM serves adapters that write texts", "task", got=cell.lock.task, fix="hfadapt serve RUN")
        elif kind.needs_base and not registry.adapter(cell.lock.adapter.method).whole_model:
            yield from self._of_adapter(cell)

    def _of_adapter(self, cell: Cell) -> Iterator[Problem]:
        path = cell.adapter / CONFIG
        config = json.loads(path.read_text(encoding="utf-8"))
        merged = "export the whole model: --format merged --for vllm"
        for field, values in PLAIN.items():
            if config.get(field) not in values:
                got, allowed = json.dumps(config[field])[:80], " or ".join(json.dumps(each) for each in values)
                yield Problem(f"vLLM takes no adapter with such a {field}", str(path), got, allowed, merged)
        if not 0 < config["r"] <= RANKS[-1]:
            yield Problem(
                "vLLM takes no adapter of this rank", "adapter.rank", str(config["r"]), f"at most {RANKS[-1]}", merged
            )
        parts = (".lora_A.weight", ".lora_B.weight")
        other = [name for name in tensor_shapes(cell.adapter / WEIGHTS) if not name.endswith(parts)]
        if other and not config.get("modules_to_save"):
            yield Problem("vLLM takes A and B of linear layers alone", str(path.parent / WEIGHTS), other[0], fix=merged)
        if "=" in cell.domain or cell.domain.split() != [cell.domain]:
            yield Problem(
                "vLLM takes NAME=FOLDER, and the domain is no such name",
                "domains",
                got=repr(cell.domain),
                allowed="a name without = and spaces",
                fix="give the domain another name in the recipe",
            )

    def command(self, cell: Cell, kind: Format, folder: Path) -> list[str]:
        """Two commands: the server's, and one that asks it as training did."""
        whole = not kind.needs_base or registry.adapter(cell.lock.adapter.method).whole_model
        half = cell.lock.dtype if cell.lock.dtype in ("float16", "bfloat16") else "float32"
        words = ["vllm", "serve", str(folder.resolve()), "--served-model-name", cell.domain]
        if not whole:
            rank = json.loads((cell.adapter / CONFIG).read_text(encoding="utf-8"))["r"]
            most = next(each for each in RANKS if each >= rank)
            words = ["vllm", "serve", *_base(cell), "--dtype", half, "--enable-lora", "--max-lora-rank", str(most)]
            words += ["--lora-modules", f"{cell.domain}={folder.resolve()}"]
        path, body = over_http(cell)
        asked = json.dumps({"model": cell.domain, **body}, ensure_ascii=False)
        return [
            shlex.join(words),
            shlex.join(["curl", f"localhost:8000{path}", "-H", "Content-Type: application/json", "-d", asked]),
        ]


SERVERS = {each.name: each for each in (Vllm(),)}


def server(name: str) -> Vllm:
    """A server by name. Raises RequestError for an unknown one."""
    if name not in SERVERS:
        problem = choice_problem("no such server is known", name, SERVERS, "--for")
        raise RequestError(problem.what, problems=[problem])
    return SERVERS[name]


def check_server(name: str, cell: Cell, kind: Format) -> None:
    """Raises RequestError, with all reasons, where a server cannot serve an export."""
    if problems := list(server(name).problems(cell, kind)):
        raise RequestError(problems[0].what, problems=problems)


def _base(cell: Cell) -> list[str]:
    """The base by its name on the Hub, or where it is."""
    location = BaseRef.of(cell.lock).location
    source = source_of(BaseRef.of(cell.lock))
    if not location.startswith(PREFIX) and expanded(location).exists():
        return [str(Path(source.path).resolve())]
    revision = ["--revision", source.revision] if source.revision else []
    return [source.hub_id or str(Path(source.path).resolve()), *revision]
