"""The ONNX files that transformers.js and ONNX Runtime Web look for: onnx/model_quantized.onnx and onnx/model.onnx.

In a browser the rounded one is taken by default (`dtype: "q8"`), the other one with `dtype: "fp32"`. They are the files
of the format `onnx`, opened and judged here by ONNX Runtime.
"""

from __future__ import annotations

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
