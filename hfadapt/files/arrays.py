"""Images and their labels as arrays: numpy's (`.npz`), MATLAB's (`.mat`), and the files of MNIST (IDX).

`train_images` (N, H, W) or (N, H, W, 3), `train_labels` (N,), (N, 1) or (N, C), and the same of other splits; or `x`
and `y`. MATLAB counts images last, as in SVHN's `X` (32, 32, 3, N). Nothing is unpickled. A file of one split alone
names no split: `images`, `labels`. Of IDX the labels are a file beside the images, `train-labels-idx1-ubyte` beside
`train-images-idx3-ubyte`.
"""

from __future__ import annotations

import io
import math
import re
import struct
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfadapt.core.errors import DataError
from hfadapt.files import Read, Rows, split_of
from hfadapt.files.opening import readable, suffix

if TYPE_CHECKING:
    import numpy as np

NUMPY, MATLAB = ".npz", ".mat"
IDX_IMAGES, IDX_LABELS = (".idx3-ubyte", ".idx4-ubyte"), ".idx1-ubyte"
ENDINGS = (NUMPY, MATLAB, *IDX_IMAGES, IDX_LABELS)
MOST_BYTES = 1 << 33
"""Of an array, which is held while its rows are read."""
_IMAGES, _LABELS = re.compile("images?|imgs?|x|data"), re.compile("labels?|targets?|y|class(es)?")
_FIX = "save images (N, H, W) or (N, H, W, 3) as whole numbers from 0 to 255 and labels (N,) under names such as "
_FIX += "train_images and train_labels; or write each image as a PNG into a folder for its class"
_MNIST_TEST = "t10k"
"""What MNIST calls its 10,000 test rows."""


def split_said(path: Path) -> str | None:
    """The split that a file of IDX says by its name; None for all others."""
    if suffix(path) not in (*IDX_IMAGES, IDX_LABELS):
        return None
    return split_of(path.name.lower().replace(_MNIST_TEST, "test"))


def beside(path: Path) -> tuple[Path, ...]:
    """The labels of a file of IDX with images: in its folder, or as Kaggle unpacks them in one called as they are."""
    if suffix(path) not in IDX_IMAGES:
        return ()
    name, above = map(_of_labels, path.parts[-1:-3:-1])
    places = (path.with_name(name), path.parent.with_name(above) / name)
    return tuple(place for place in places if place != path and place.is_file())[:1]


def _of_labels(name: str) -> str:
    """What the labels are called beside images of IDX that are called so."""
    return re.sub("idx[34]", "idx1", re.sub("images|imgs", "labels", name))


def split_names(path: Path) -> dict[str, str]:
    """The splits of a file by how it names them: `val` for `validation`; none where it has but one."""
    if suffix(path) not in (NUMPY, MATLAB):
        return {}
    status = path.stat()
    found = _pairs(path, status.st_size, status.st_mtime_ns)
    return {name: split for name in found if name and (split := split_of(name))}


def read(path: Path, split: str | None = None) -> Rows:
    """A row for each image: its bytes, as files hold them, and its label, or 0 and 1 for each class.

    The labels of IDX are no rows of their own.

    Raises:
        DataError: there are no images with labels, or none of the split.
    """
    if suffix(path) == IDX_LABELS:
        return
    status = path.stat()
    pairs, names = _pairs(path, status.st_size, status.st_mtime_ns), split_names(path)
    wanted = split_of(split or "train")
    name = next((name for name in pairs if name == split or names.get(name) == wanted), None if names else "")
    if name is None or name not in pairs:
        raise _without_labels(path)
    images, labels = _rows_first(*(_array(path, member) for member in pairs[name]))
    if images.ndim not in (3, 4) or images.shape[3:] not in ((), (1,), (3,)) or len(images) != len(labels):
        shapes = " and ".join(
            f"{member} {array.shape}" for member, array in zip(pairs[name], (images, labels), strict=True)
        )
        raise DataError("the arrays are not of images and their labels", place=str(path), got=shapes, fix=_FIX)
    whole = images.dtype.kind in "iu" or (images.dtype.kind == "f" and bool((images == images.round()).all()))
    if not (whole and images.min(initial=0) >= 0 and images.max(initial=0) <= 255):
        got = f"{pairs[name][0]} of {images.dtype}, {images.min(initial=0)} to {images.max(initial=0)}"
        raise DataError("the pixels are no whole numbers from 0 to 255", place=str(path), got=got, fix=_FIX)
    single = labels.ndim == 1 or labels.shape[1:] == (1,)
    for number, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        known = label.reshape(-1)[0].item() if single else [each.item() for each in label.reshape(-1)]
        called = f"{Path(pairs[name][0]).name}/{number}.png"
        yield Read(number, {"image": {"bytes": _png(pixels), "path": called}, "label": known})


def _without_labels(path: Path) -> DataError:
    if suffix(path) in IDX_IMAGES:
        wanted = _of_labels(path.name)
        what = "there are no labels beside the images"
        return DataError(what, place=str(path), got=path.name, allowed=wanted, fix=f"put {wanted} beside it")
    whole = suffix(path) != NUMPY or zipfile.is_zipfile(path)
    got = ", ".join(_members(path)) or "no arrays" if whole else "no zip archive"
    return DataError("the file has no images with labels", place=str(path), got=got, fix=_FIX)


def _rows_first(images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> tuple[Any, Any]:
    """Both with rows first, where MATLAB has kept them: it counts images last, has no vectors, and texts in cells."""
    import numpy as np

    if labels.dtype.kind == "O":
        labels = np.array([str(np.ravel(each)[0]) if np.size(each) else "" for each in labels.ravel()])
    if labels.ndim == 2 and len(labels) == 1 != len(images):
        labels = labels[0]
    if images.ndim in (3, 4) and len(images) != len(labels) == images.shape[-1]:
        images = np.moveaxis(images, -1, 0)
    return images, labels


def _png(pixels: np.ndarray[Any, Any]) -> bytes:
    from PIL import Image

    grey = pixels.shape[2:] != (3,)
    file = io.BytesIO()
    Image.fromarray((pixels.reshape(pixels.shape[:2]) if grey else pixels).astype("uint8")).save(file, "PNG")
    return file.getvalue()


@lru_cache(maxsize=64)
def _pairs(path: Path, size: int, changed: int) -> dict[str, tuple[str, str]]:
    """Images and labels by what else stands in the names of both, as `train`; as long as the file is the same one."""
    if suffix(path) in IDX_IMAGES:
        found = beside(path)
        return {"": (str(path), str(found[0]))} if found else {}
    kinds: dict[str, dict[bool, str]] = {}
    for member in _members(path):
        words = re.split(r"[\W_]+", member.lower())
        for pattern, labels in ((_IMAGES, False), (_LABELS, True)):
            if len(kind := [word for word in words if pattern.fullmatch(word)]) == 1:
                kinds.setdefault("_".join(word for word in words if word != kind[0]), {})[labels] = member
    return {name: (own[False], own[True]) for name, own in kinds.items() if len(own) == 2}


def _members(path: Path) -> list[str]:
    if suffix(path) == MATLAB:
        return [*_sizes(path)]
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    except (zipfile.BadZipFile, OSError):
        return []


def _array(path: Path, member: str) -> np.ndarray[Any, Any]:
    """One of a file's arrays. Raises DataError where it cannot be read."""
    readers = {NUMPY: _of_numpy, MATLAB: _of_matlab}
    try:
        return readers.get(suffix(path), _of_idx)(path, member)
    except DataError:
        raise
    except Exception as error:
        # Of broken files numpy and scipy raise errors of every kind.
        raise _unread(path, f"{Path(member).name}: {error or type(error).__name__}") from None


def _of_numpy(path: Path, member: str) -> np.ndarray[Any, Any]:
    import numpy as np

    with zipfile.ZipFile(path) as archive:
        _refuse_huge(archive.getinfo(f"{member}.npy").file_size)
    with np.load(path, allow_pickle=False) as arrays:
        return np.asarray(arrays[member])


def _of_idx(path: Path, member: str) -> np.ndarray[Any, Any]:
    """Two zero bytes, the type of the numbers, how many axes there are, and their lengths; then the numbers."""
    import numpy as np

    with readable(Path(member)) as file:
        head = file.read(4)
        if len(head) < 4 or head[:3] != b"\0\0\x08":
            raise ValueError("no IDX of whole numbers from 0 to 255")
        if len(axes := file.read(4 * head[3])) < 4 * head[3]:
            raise ValueError("its head is cut off")
        shape = struct.unpack(f">{head[3]}I", axes)
        _refuse_huge(size := math.prod(shape))
        content = file.read(size)
    if len(content) < size:
        raise ValueError(f"{len(content):,} of {size:,} bytes: it is cut off")
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)


def _sizes(path: Path) -> dict[str, int]:
    """The arrays in a file of MATLAB, and bytes that each may take.

    Raises:
        DataError: it is none, broken, or of version 7.3, which is HDF5.
    """
    from scipy.io import whosmat

    try:
        return {name: 8 * math.prod(shape) for name, shape, _ in whosmat(path, appendmat=False)}
    except NotImplementedError:
        fix = "save it with -v7 in MATLAB, or as .npz: numpy.savez(FILE, images=…, labels=…) of what h5py reads"
        raise DataError("files of MATLAB 7.3 are not read", place=str(path), got="HDF5", fix=fix) from None
    except Exception as error:
        # scipy raises errors of every kind on broken files.
        raise _unread(path, str(error) or type(error).__name__) from None


def _of_matlab(path: Path, member: str) -> np.ndarray[Any, Any]:
    import numpy as np
    from scipy.io import loadmat

    _refuse_huge(_sizes(path)[member])
    return np.asarray(loadmat(path, appendmat=False, variable_names=[member])[member])


def _refuse_huge(size: int) -> None:
    if size > MOST_BYTES:
        raise ValueError(f"it takes {size:,} bytes")


def _unread(path: Path, why: str) -> DataError:
    return DataError("an array cannot be read", place=str(path), got=why[:200], fix=_FIX)
