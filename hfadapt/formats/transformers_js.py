"""The ONNX files that transformers.js and ONNX Runtime Web look for: onnx/model_quantized.onnx and onnx/model.onnx.

In a browser the rounded one is taken by default (`dtype: "q8"`), the other one with `dtype: "fp32"`. They are the files
of the format `onnx`, opened and judged here by ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hfadapt.core import registry
from hfadapt.formats import Format
from hfadapt.formats.onnx import DYNAMIC, FLOAT, STATIC, Onnx
from hfadapt.models.base import BaseRef
from hfadapt.models.load import load_processor, source_of
from hfadapt.run_folder import Cell

PLAIN, ROUNDED = "onnx/model.onnx", "onnx/model_quantized.onnx"


class TransformersJs(Onnx):
    """A rounded form lies beside the float one, as on the Hub."""

    name = "transformers-js"
    files = {FLOAT.own: (PLAIN,), DYNAMIC.own: (ROUNDED, PLAIN), STATIC.own: (ROUNDED, PLAIN)}

    library = "transformers.js"
    writes = False

    def unfit(self, task: str, config: Mapping[str, Any]) -> str | None:
        """Also what its pipelines make shares of one class of: numbers, and several classes of what is no text."""
        kind = registry.task(task)
        files = bool(registry.modality(kind.modality).suffixes)
        if kind.label_kind == "number" or (kind.label_kind == "classes" and files):
            return f"the pipelines of transformers.js answer with shares of one class, this is {kind.title}"
        return super().unfit(task, config)

    def loads(self, form: str, name: str) -> bool:
        """One of the two."""
        return super().loads(form, name) and (name not in (PLAIN, ROUNDED) or name == self.files[form][0])

    def outputs(self, task: str) -> tuple[str, ...]:
        """Also what transformers.js itself makes the answer of, such as the hidden states that it pools."""
        return tuple(dict.fromkeys((registry.task(task).reads, *super().outputs(task))))

    def notes(self, cell: Cell) -> str:
        """What a page says."""
        task = registry.task(cell.lock.task)
        tag, more = task.javascript(load_processor(source_of(BaseRef.of(cell.lock)), task.modality))
        return (
            "In a page or in Node, where this folder lies under the name `MODEL` (not run when this was written):\n\n"
            '```js\nimport { pipeline } from "@huggingface/transformers";\n\n'
            f'const ask = await pipeline("{tag}", "MODEL");  // dtype: "fp32" for onnx/model.onnx\n'
            f'console.log(await ask("example"{more and f", {more}"}));\n```'
        )


KIND: Format = TransformersJs()
