"""Makes a .tflite file, in the Python of LiteRT's own environment: `python _litert_worker.py FOLDER`.

That environment has neither hfadapt nor the model's code, and hfadapt's has no converter, whose packages do not go
together with its own. In the folder lie graph.pt2 (torch.export), rows.npz (rows of each input (N, …), of which the
first is an example of what the graph takes) and job.json: `recipe`, a name of ai_edge_quantizer.recipe or null, and
`about`, the texts that the file is to say of itself. It writes model.tflite and seen.json beside them.
"""

import importlib.metadata
import json
import sys
from pathlib import Path

import numpy as np

SIGNATURE = "serving_default"
INTEGERS = {"int64": "int32"}
"""The converter holds integers in 32 bits."""


def convert(folder: Path, rows: dict) -> None:
    """The graph as a float file, its inputs named as in the graph."""
    import litert_torch
    import torch

    program = torch.export.load(folder / "graph.pt2")
    example = {name: torch.from_numpy(values[:1]) for name, values in rows.items()}
    litert_torch.convert(program.module(), sample_kwargs=example).export(str(folder / "model.tflite"))


def quantise(path: Path, recipe: str, rows: dict) -> None:
    """Rounds a float file in its place; ranges of activations are learned from the rows, where the recipe needs them.

    Numbers go in and come out as float32.
    """
    from ai_edge_quantizer import quantizer
    from ai_edge_quantizer import recipe as recipes

    steps = getattr(recipes, recipe)()
    made = quantizer.Quantizer(str(path), steps)
    if made.need_calibration:
        for end in ("INPUT", "OUTPUT"):
            made.update_quantization_recipe(regex=".*", operation_name=end, algorithm_key="no_quantize")
    count = len(next(iter(rows.values())))
    feeds = [
        {name: values[i : i + 1].astype(INTEGERS.get(values.dtype.name, values.dtype)) for name, values in rows.items()}
        for i in range(count)
    ]
    ranges = made.calibrate({SIGNATURE: feeds}, num_threads=1) if made.need_calibration else None
    made.quantize(ranges).export_model(str(path), overwrite=True)


def tell(path: Path, about: dict) -> None:
    """Adds texts to the file's metadata, and shortens the names of what is computed between its ends.

    The converter names each tensor by all modules that it was made of: a twentieth of a small file in 8 bits.
    """
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model(str(path))
    model.description = b"hfadapt"
    for graph in model.subgraphs:
        ends = {*graph.inputs, *graph.outputs}
        for place, tensor in enumerate(graph.tensors):
            if place not in ends and tensor.name:
                tensor.name = tensor.name.partition(b";")[0].rpartition(b"/")[2].rpartition(b".")[2]
    for name, text in about.items():
        buffer, entry = schema.BufferT(), schema.MetadataT()
        buffer.data = np.frombuffer(text.encode(), dtype=np.uint8)
        entry.name, entry.buffer = name.encode(), len(model.buffers)
        model.buffers.append(buffer)
        model.metadata = [*(model.metadata or ()), entry]
    flatbuffer_utils.write_model(model, str(path))


def main(folder: Path) -> None:
    """All of it."""
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    rows = dict(np.load(folder / "rows.npz"))
    convert(folder, rows)
    path = folder / "model.tflite"
    if job["recipe"]:
        quantise(path, job["recipe"], rows)
    tell(path, job["about"])
    names = ("ai-edge-litert", "ai-edge-quantizer", "litert-torch", "torch")
    seen = {"versions": {name: importlib.metadata.version(name) for name in names}, "bytes": path.stat().st_size}
    (folder / "seen.json").write_text(json.dumps(seen), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
