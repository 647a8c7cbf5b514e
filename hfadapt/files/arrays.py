"""Images and their labels as numpy arrays in one file (`.npz`), as MedMNIST and Keras publish theirs.

`train_images` (N, H, W) or (N, H, W, 3), `train_labels` (N,), (N, 1) or (N, C), and the same of other splits; or `x`
and `y`. Nothing is unpickled. A file of one split alone names no split: `images`, `labels`.
"""

from __future__ import annotations

import io
import re
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfadapt.core.errors import DataError
from hfadapt.files import Read, Rows, split_of

if TYPE_CHECKING:
    import numpy as np

ENDING = ".npz"
MOST_BYTES = 1 << 33
"""Of an array, which is held while its rows are read."""
_IMAGES, _LABELS = re.compile("images?|imgs?|x|data"), re.compile("labels?|targets?|y|class(es)?")
_FIX = "save images (N, H, W) or (N, H, W, 3) as whole numbers from 0 to 255 and labels (N,) under names such as "
_FIX += "train_images and train_labels; or write each image as a PNG into a folder for its class"


def split_names(path: Path) -> dict[str, str]:
    """The splits of a file by how it names them: `val` for `validation`; none where it has but one."""
    if path.suffix.lower() != ENDING:
        return {}
    status = path.stat()
    found = _pairs(path, status.st_size, status.st_mtime_ns)
    return {name: split for name in found if name and (split := split_of(name))}


def read(path: Path, split: str | None = None) -> Rows:
    """A row for each image: its bytes, as files hold them, and its label, or 0 and 1 for each class.

    Raises:
        DataError: there are no images with labels, or none of the split.
    """
    status = path.stat()
    pairs, names = _pairs(path, status.st_size, status.st_mtime_ns), split_names(path)
    wanted = split_of(split or "train")
    name = next((name for name in pairs if name == split or names.get(name) == wanted), None if names else "")
    if name is None or name not in pairs:
        got = ", ".join(_members(path)) if zipfile.is_zipfile(path) else "no zip archive"
        raise DataError("the file has no images with labels", place=str(path), got=got or "no arrays", fix=_FIX)
    images, labels = (_array(path, member) for member in pairs[name])
    if images.ndim not in (3, 4) or images.shape[3:] not in ((), (1,), (3,)) or len(images) != len(labels):
        shapes = " and ".join(
            f"{member} {array.shape}" for member, array in zip(pairs[name], (images, labels), strict=True)
        )
        raise DataError("the arrays are not of images and their labels", place=str(path), got=shapes, fix=_FIX)
    if not (images.dtype.kind in "iu" and images.min(initial=0) >= 0 and images.max(initial=0) <= 255):
        got = f"{pairs[name][0]} of {images.dtype}, {images.min(initial=0)} to {images.max(initial=0)}"
        raise DataError("the pixels are no whole numbers from 0 to 255", place=str(path), got=got, fix=_FIX)
    single = labels.ndim == 1 or labels.shape[1:] == (1,)
    for number, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        known = label.reshape(-1)[0].item() if single else [each.item() for each in label.reshape(-1)]
        yield Read(number, {"image": {"bytes": _png(pixels), "path": f"{pairs[name][0]}/{number}.png"}, "label": known})


def _png(pixels: np.ndarray[Any, Any]) -> bytes:
    from PIL import Image

    grey = pixels.shape[2:] != (3,)
    file = io.BytesIO()
    Image.fromarray((pixels.reshape(pixels.shape[:2]) if grey else pixels).astype("uint8")).save(file, "PNG")
    return file.getvalue()


@lru_cache(maxsize=64)
def _pairs(path: Path, size: int, changed: int) -> dict[str, tuple[str, str]]:
    """Images and labels by what else stands in the names of both, as `train`; as long as the file is the same one."""
    found: dict[str, dict[bool, str]] = {}
    for member in _members(path):
        words = re.split(r"[\W_]+", member.lower())
        for pattern, labels in ((_IMAGES, False), (_LABELS, True)):
            if len(kind := [word for word in words if pattern.fullmatch(word)]) == 1:
                found.setdefault("_".join(word for word in words if word != kind[0]), {})[labels] = member
    return {name: (own[False], own[True]) for name, own in found.items() if len(own) == 2}


def _members(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    except (zipfile.BadZipFile, OSError):
        return []


def _array(path: Path, member: str) -> np.ndarray[Any, Any]:
    import numpy as np

    try:
        with zipfile.ZipFile(path) as archive:
            size = archive.getinfo(f"{member}.npy").file_size
        if size > MOST_BYTES:
            raise ValueError(f"{member} takes {size:,} bytes")
        with np.load(path, allow_pickle=False) as arrays:
            return np.asarray(arrays[member])
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError("an array cannot be read", place=str(path), got=f"{member}: {error}"[:200], fix=_FIX) from None
