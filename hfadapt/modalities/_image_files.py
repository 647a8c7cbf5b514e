"""Files of images: what Pillow reads of them, and how what is read becomes plain pixels."""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING

from hfadapt.files import Unusable, format_of, seeming

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"),
    *(".pbm", ".pnm", ".jpe", ".jfif", ".mpo", ".jp2", ".tga", ".avif"),
)
UNREAD = (".heic", ".heif", ".hif", ".jxl", ".psd", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2")
TWELVE_BITS = 4095.0
"""X-rays and microscopes write so much into files of 16 bits, and would be black by what these can hold."""


def formats() -> list[str]:
    """All that Pillow reads by itself: for EPS it runs another program, for WMF the system; and HEIC where pillow-heif
    is there."""
    from PIL import Image

    Image.init()
    if "HEIF" not in Image.ID:
        with suppress(ImportError):
            import_module("pillow_heif").register_heif_opener()
    return [name for name in Image.ID if name not in ("EPS", "WMF")]


def has_twelve_bits(picture: Picture) -> bool:
    """Whether a picture of 16 bits uses 12 of them at most."""
    import numpy as np

    return picture.mode.startswith("I") and bool(np.asarray(picture).max() <= TWELVE_BITS)


def upright(picture: Picture) -> Picture:
    """Turned as its camera says; as it is where what stands beside the pixels cannot be read."""
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(picture)
    except Exception:
        return picture


def plain(picture: Picture) -> Picture:
    """In 8 bits, RGB or grey. Raises Unusable where no pixel is a number."""
    import numpy as np
    from PIL import Image

    if picture.mode in ("RGB", "L"):
        return picture
    if picture.mode.startswith(("I", "F")):
        values = np.asarray(picture, dtype=np.float32)
        known = values[np.isfinite(values)]
        if not known.size:
            raise Unusable("not-an-image", " has pixels none of which is a number")
        low, high = float(known.min()), float(known.max())
        if picture.mode.startswith("I;16") or (picture.mode == "I" and low >= 0 and 255 < high <= 65535):
            low, high = 0.0, TWELVE_BITS if high <= TWELVE_BITS else 65535.0
        scaled = np.nan_to_num((values - low) / max(high - low, 1e-9), posinf=1, neginf=0).clip(0, 1)
        return Image.fromarray((scaled * 255).round().astype(np.uint8), "L")
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture.convert("RGBA")).convert("RGB")
    return picture.convert("L" if picture.mode == "1" else "RGB")


def why_not(data: bytes, error: Exception) -> str:
    """What a file has that is no image for Pillow, with what makes it one where that is known."""
    known = format_of(data)
    if known == "HEIC" and not find_spec("pillow_heif"):
        return " has a picture in HEIC: pip install pillow-heif, or save it as JPEG"
    if known and "cannot identify" in str(error):
        return f" has {known}, which Pillow {version('pillow')} does not read: save it as JPEG or PNG"
    return f" has {seeming(data, 'image', _first_line(error))}"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    # Pillow names the object that it was given, which says nothing.
    return (
        "of no known kind" if "cannot identify" in str(error) else (lines[0] if lines else type(error).__name__)[:120]
    )
