"""What pages about Android have in common, whatever runtime a file is for: how pictures and sounds are read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

PICTURE = """
/** `{name}` of a picture that stands upright: red, then green, then blue, each row by row. */
fun pixels(picture: Bitmap): Array<Array<Array<FloatArray>>> {{
    val mean = floatArrayOf({mean})
    val deviation = floatArrayOf({deviation})
    val width = {width}
    val height = {height}
    val scaled = resampled(picture, width, height)
    val left = (width - {side_wide}) / 2
    val top = (height - {side}) / 2
    return arrayOf(Array(3) {{ colour ->
        Array({side}) {{ y ->
            FloatArray({side_wide}) {{ x ->
                (scaled[colour][(top + y) * width + left + x] * {factor}f - mean[colour]) / deviation[colour]
            }}
        }}
    }})
}}

/** Red, green and blue of a picture of another size, on white: along its rows and then its columns, as Pillow does. */
private fun resampled(picture: Bitmap, width: Int, height: Int): List<IntArray> {{
    val across = parts(picture.width, width)
    val down = parts(picture.height, height)
    val line = IntArray(picture.width)
    val rows = List(3) {{ IntArray(width * picture.height) }}
    for (y in 0 until picture.height) {{
        picture.getPixels(line, 0, line.size, 0, y, line.size, 1)
        for (colour in 0..2) for (x in 0 until width) {{
            rows[colour][y * width + x] = mixed(across[x]) {{ onWhite(line[it], colour) }}
        }}
    }}
    return rows.map {{ row ->
        IntArray(width * height) {{ place -> mixed(down[place / width]) {{ row[it * width + place % width] }} }}
    }}
}}

private fun onWhite(pixel: Int, colour: Int): Int {{
    val alpha = pixel ushr 24
    return ((pixel shr (16 - 8 * colour) and 0xff) * alpha + 255 * (255 - alpha) + 127) / 255
}}

/** Of which pixels each of `to` consists: the first of them, and the weights in parts of 2^22. */
private fun parts(from: Int, to: Int): List<Pair<Int, IntArray>> {{
    val scale = from.toDouble() / to
    val wide = maxOf(scale, 1.0)
    return List(to) {{ place ->
        val centre = (place + 0.5) * scale
        val first = maxOf((centre - {reach} * wide + 0.5).toInt(), 0)
        val end = minOf((centre + {reach} * wide + 0.5).toInt(), from)
        val weights = DoubleArray(end - first) {{ filter((it + first - centre + 0.5) / wide) }}
        val sum = weights.sum()
        Pair(first, IntArray(weights.size) {{ Math.round(weights[it] / sum * (1 shl 22)).toInt() }})
    }}
}}

private inline fun mixed(part: Pair<Int, IntArray>, value: (Int) -> Int): Int {{
    var sum = 1L shl 21
    part.second.forEachIndexed {{ place, weight -> sum += weight.toLong() * value(part.first + place) }}
    return (sum shr 22).toInt().coerceIn(0, 255)
}}

private fun filter(distance: Double): Double {{
    val x = Math.abs(distance)
    return {filter}
}}
"""
FILTERS = {
    1: (3.0, "if (x == 0.0) 1.0 else if (x >= 3) 0.0 else 3 * Math.sin(Math.PI * x) * Math.sin(Math.PI * x / 3) / "
        "(Math.PI * Math.PI * x * x)"),
    2: (1.0, "maxOf(1 - x, 0.0)"),
    3: (2.0, "if (x < 1) (1.5 * x - 2.5) * x * x + 1 else if (x < 2) ((2.5 - 0.5 * x) * x - 4) * x + 2 else 0.0"),
}  # fmt: skip
"""By Pillow's number for `resample` how far a filter reaches, and the weight at a distance."""
KNOWN = {
    "crop_size", "size", "resample", "rescale_factor", "image_mean", "image_std", "do_resize", "do_rescale",
    "do_normalize", "do_center_crop", "do_convert_rgb", "image_processor_type", "data_format", "default_to_square",
}  # fmt: skip
"""Settings that `pixels` follows, or that change nothing in it."""

UPRIGHT = (
    "`pixels` computes what the image processor of `preprocessor_config.json` makes of a picture with Pillow, which "
    "may begin with the columns: colours may then differ by a step or two of 255. "
    "`BitmapFactory` does not turn a photograph as its EXIF data say: turn it before (`androidx.exifinterface`)."
)
OTHERWISE = (
    "`{name}` are the numbers that the image processor of `preprocessor_config.json` makes of a picture that stands "
    "upright, on white. It does something that hfadapt cannot say in Kotlin{why}: port it, and compare its numbers of "
    "a few pictures with Python's."
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
        if (why := _beyond(shapes[picture], settings)) is not None:
            return "", OTHERWISE.format(name=picture, why=why)
        return _pixels(picture, shapes[picture], settings), UPRIGHT
    if "sampling_rate" in settings:
        return "", SOUND.format(rate=settings["sampling_rate"], arguments=about.get("hfadapt.arguments", "none"))
    return "", tokens


def named(labels: Sequence[str]) -> str:
    """The line that has the classes in their order, where there are any."""
    return f"val LABELS = listOf({', '.join(map(quoted, labels))})\n\n" if labels else ""


def quoted(text: str) -> str:
    """A text in Kotlin."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$") + '"'


def _beyond(shape: tuple[int, ...], settings: Mapping[str, Any]) -> str | None:
    """What of a processor's settings `pixels` does not follow; None where it follows all."""
    others = sorted(name for name, value in settings.items() if value and name not in KNOWN)
    if others:
        return f" ({', '.join(others)})"
    size, made = settings.get("size") or {}, shape[2:]
    shortest = size.get("shortest_edge")
    least = (shortest, shortest) if shortest else (size.get("height") or 0, size.get("width") or 0)
    if settings.get("do_center_crop"):
        crop = settings.get("crop_size") or {}
        kept = (crop.get("height"), crop.get("width")) == made and all(map(int.__ge__, least, made))
    else:
        kept = not shortest and least == made
    return None if kept and settings.get("do_resize") and settings.get("resample") in FILTERS else ""


def _pixels(name: str, shape: tuple[int, ...], settings: Mapping[str, Any]) -> str:
    """The code that makes a file's input of a picture."""
    _, _, side, wide = shape
    size = settings["size"]
    width, height = str(size.get("width")), str(size.get("height"))
    if shortest := size.get("shortest_edge"):
        width, height = (
            f"{shortest} * picture.{own} / minOf(picture.width, picture.height)" for own in ("width", "height")
        )
    normal = settings.get("do_normalize")
    mean, deviation = (
        (settings.get(each) if normal else None) or usual
        for each, usual in (("image_mean", (0, 0, 0)), ("image_std", (1, 1, 1)))
    )
    reach, weight = FILTERS[settings["resample"]]
    return PICTURE.format(
        name=name,
        mean=", ".join(f"{value}f" for value in mean),
        deviation=", ".join(f"{value}f" for value in deviation),
        factor=settings.get("rescale_factor") if settings.get("do_rescale") else 1,
        width=width,
        height=height,
        side=side,
        side_wide=wide,
        reach=reach,
        filter=weight,
    )
