"""Pictures with a label: rows of `image`, laid out as the Hub's Image feature (bytes of a file and its name)."""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfadapt.core.samples.preparation import Content, Sample, prepares, write_rows

if TYPE_CHECKING:
    import numpy as np


@prepares("digits-8x8")
def small_digits(sample: Sample, content: Content, folder: Path) -> None:
    """64 strengths from 0 to 16 and the digit, one picture a line."""
    _write_digits(content[sample.files[0]], 8, 16, folder)


@prepares("digits-28x28")
def digits(sample: Sample, content: Content, folder: Path) -> None:
    """784 strengths from 0 to 255 and the digit, one picture a line."""
    _write_digits(content[sample.files[0]], 28, 255, folder)


def _write_digits(content: bytes, side: int, most: int, folder: Path) -> None:
    import numpy as np

    table = np.loadtxt(io.BytesIO(gzip.decompress(content)), delimiter=",")
    pixels = (table[:, :-1] * (255 / most)).round().astype(np.uint8).reshape(-1, side, side)
    labels = table[:, -1].astype(int)
    rows = [_row(f"{i:04d}.png", png(pixels[i]), str(label)) for i, label in enumerate(labels)]
    write_rows(rows, folder)


@prepares("image-folders")
def image_folders(sample: Sample, content: Content, folder: Path) -> None:
    """Picture files in folders that are called as their label."""
    rows = []
    for name, data in content.items():
        *_, label, file = name.split("/")
        rows.append(_row(f"{label}/{file}", data, label))
    write_rows(rows, folder)


@prepares("solar-cells")
def solar_cells(sample: Sample, content: Content, folder: Path) -> None:
    """Cells of one kind, from a table of file, probability of a defect and kind; those in doubt are left out."""
    labels = {0.0: "intact", 1.0: "defective"}
    place = sample.files[0].rpartition("/")[0]
    rows = []
    for line in content[sample.files[0]].decode().splitlines():
        name, probability, kind = line.split()
        if kind == sample.member and float(probability) in labels:
            rows.append(_row(Path(name).name, content[f"{place}/{name}"], labels[float(probability)]))
    write_rows(rows, folder)


def _row(name: str, data: bytes, label: str) -> dict[str, Any]:
    return {"image": {"bytes": data, "path": name}, "label": label}


def png(pixels: np.ndarray) -> bytes:
    """A PNG file of grey pixels, (height, width) of uint8."""
    height, width = pixels.shape
    header = struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0)
    # Every line of pixels begins with its filter: 0 is none.
    lines = b"".join(b"\0" + line.tobytes() for line in pixels)
    chunks = _chunk(b"IHDR", header), _chunk(b"IDAT", zlib.compress(lines, 9)), _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
