"""What pages about Android have in common, whatever runtime a file is for: how pictures and sounds are read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

PICTURE = """
/** `{name}` of a picture: red, then green, then blue, each row by row. */
fun pixels(picture: Bitmap): Array<Array<Array<FloatArray>>> {{
    val mean = floatArrayOf({mean})
    val deviation = floatArrayOf({deviation})
    val scaled = Bitmap.createScaledBitmap(picture, {width}, {height}, true)
{crop}    val values = IntArray({side} * {side_wide})
    cut.getPixels(values, 0, {side_wide}, 0, 0, {side_wide}, {side})
    return arrayOf(Array(3) {{ channel ->
        Array({side}) {{ y ->
            FloatArray({side_wide}) {{ x ->
                val value = values[y * {side_wide} + x] shr (16 - 8 * channel) and 0xff
                (value * {factor}f - mean[channel]) / deviation[channel]
            }}
        }}
    }})
}}
"""

SCALED = (
    "Android scales pictures in its own way: compare `pixels` of a few pictures with what Python's processor "
    "makes of them. `preprocessor_config.json` holds all of its settings."
)
SOUND = (
    "The numbers are those that the feature extractor of `preprocessor_config.json` makes of one channel at {rate} Hz, "
    "without silence at its ends, with a root mean square of 0.1 (arguments: {arguments}). Android has none of its "
    "own: port it, and compare its numbers of a few recordings with Python's."
)


def read_as(shapes: Mapping[str, tuple[int, ...]], about: Mapping[str, str], tokens: str) -> tuple[str, str]:
    """Code that makes the inputs, and what is to be known of them.

    Args:
        shapes: Of the inputs.
        about: What the file says of itself.
        tokens: What is to be known where it reads texts.
    """
    settings = json.loads(about.get("hfadapt.preprocessing", "{}"))
    picture = next((name for name, shape in shapes.items() if len(shape) == 4), None)
    if picture:
        return _pixels(picture, shapes[picture], settings), SCALED
    if "sampling_rate" in settings:
        return "", SOUND.format(rate=settings["sampling_rate"], arguments=about.get("hfadapt.arguments", "none"))
    return "", tokens


def quoted(text: str) -> str:
    """A text in Kotlin."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$") + '"'


def _pixels(name: str, shape: tuple[int, ...], settings: Mapping[str, Any]) -> str:
    """The code that makes a file's input of a picture."""
    _, _, side, wide = shape
    size = settings.get("size") or {}
    height, width = size.get("height", side), size.get("width", wide)
    edges = size.get("shortest_edge")
    if edges:
        height = width = edges
    crop = f"    val cut = Bitmap.createBitmap(scaled, {(width - wide) // 2}, {(height - side) // 2}, {wide}, {side})\n"
    return PICTURE.format(
        name=name,
        mean=", ".join(f"{value}f" for value in settings.get("image_mean") or (0, 0, 0)),
        deviation=", ".join(f"{value}f" for value in settings.get("image_std") or (1, 1, 1)),
        factor=settings.get("rescale_factor") or 1,
        width=width,
        height=height,
        side=side,
        side_wide=wide,
        crop=crop if (height, width) != (side, wide) else "    val cut = scaled\n",
    )
