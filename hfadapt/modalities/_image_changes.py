"""Changes of pictures by Pillow and numpy: augmentation, and careless input as cameras and networks give it.

Each takes a picture in RGB, how much of the change, and a random generator of its own, and returns a picture of the
same size.
"""

from __future__ import annotations

import io
import math
import random
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

Change = Callable[["Picture", float, random.Random], "Picture"]
GREY = (127, 127, 127)


# --- augmentation: `share` is the share of the rows that is changed ---------------------------------------------------


def crop(picture: Picture, share: float, draw: random.Random) -> Picture:
    """A part of 35 to 100 % of the area at a ratio of 3:4 to 4:3, scaled to the whole (Szegedy et al. 2015)."""
    from PIL import Image

    if draw.random() >= share:
        return picture
    width, height = picture.size
    area, ratio = width * height * draw.uniform(0.35, 1.0), math.exp(draw.uniform(-math.log(4 / 3), math.log(4 / 3)))
    w, h = min(width, math.sqrt(area * ratio)), min(height, math.sqrt(area / ratio))
    left, top = draw.uniform(0, width - w), draw.uniform(0, height - h)
    return picture.resize(picture.size, Image.Resampling.BICUBIC, box=(left, top, left + w, top + h))


def flip(picture: Picture, share: float, draw: random.Random) -> Picture:
    """Left and right exchanged in half of the rows; nothing for digits, letters or arrows."""
    from PIL import ImageOps

    return ImageOps.mirror(picture) if draw.random() < share / 2 else picture


def trivial(picture: Picture, share: float, draw: random.Random) -> Picture:
    """One operation of any strength (TrivialAugment, Müller and Hutter 2021, arXiv 2103.10158), of 14 as there."""
    if draw.random() >= share:
        return picture
    name = draw.choice(sorted(TRIVIAL))
    return TRIVIAL[name](picture, draw.random() * draw.choice((-1, 1)))


def mixup(picture: Picture, other: Picture, share: float, draw: random.Random) -> Picture:
    """`share` of the picture shining through the other one (Zhang et al. 2017, arXiv 1710.09412)."""
    from PIL import Image

    return Image.blend(other.resize(picture.size, Image.Resampling.BICUBIC), picture, share)


def cutmix(picture: Picture, other: Picture, share: float, draw: random.Random) -> Picture:
    """A rectangle of the other picture before all but `share` of this one (Yun et al. 2019, arXiv 1905.04899), whole,
    so that the shares are known before it is looked at."""
    from PIL import Image

    width, height = picture.size
    w, h = (round(side * math.sqrt(1 - share)) for side in picture.size)
    left, top = draw.randint(0, width - w), draw.randint(0, height - h)
    box, changed = (left, top, left + w, top + h), picture.copy()
    changed.paste(other.resize(picture.size, Image.Resampling.BICUBIC).crop(box), box)
    return changed


MIXUP_ALPHA = 0.2
"""Of the beta distribution of shares: mostly close to 0 or 1, as for models that are fine-tuned."""
BLENDS: dict[str, tuple[Callable[[Picture, Picture, float, random.Random], Picture], Callable[[random.Random], float]]]
BLENDS = {
    "mixup": (mixup, lambda draw: draw.betavariate(MIXUP_ALPHA, MIXUP_ALPHA)),
    "cutmix": (cutmix, lambda draw: draw.random()),
}
"""How two pictures become one, and the draw of the share of the first."""


def _enhanced(kind: str) -> Callable[[Picture, float], Picture]:
    def change(picture: Picture, strength: float) -> Picture:
        from PIL import ImageEnhance

        changed: Picture = getattr(ImageEnhance, kind)(picture).enhance(1 + 0.99 * strength)
        return changed

    return change


def _moved(x: tuple[float, float, float], y: tuple[float, float, float]) -> Callable[[Picture, float], Picture]:
    """An affine change, of which each coefficient grows with the strength; shifts are shares of the side."""

    def change(picture: Picture, strength: float) -> Picture:
        from PIL import Image

        width, height = picture.size
        across = (1 + x[0] * strength, x[1] * strength, x[2] * strength * width)
        down = (y[0] * strength, 1 + y[1] * strength, y[2] * strength * height)
        return picture.transform(
            picture.size, Image.Transform.AFFINE, across + down, Image.Resampling.BILINEAR, fillcolor=_edge(picture)
        )

    return change


def _edge(picture: Picture) -> tuple[int, ...]:
    """The colour round the picture, so that what is moved in looks like what was there."""
    import numpy as np

    values = np.asarray(picture)
    border = np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])
    return tuple(int(each) for each in np.median(border, axis=0))


def _rotated(picture: Picture, strength: float) -> Picture:
    from PIL import Image

    return picture.rotate(strength * 30, Image.Resampling.BILINEAR, fillcolor=_edge(picture))


def _point(kind: str) -> Callable[[Picture, float], Picture]:
    def change(picture: Picture, strength: float) -> Picture:
        from PIL import ImageOps

        if kind == "posterize":
            return ImageOps.posterize(picture, 8 - round(6 * abs(strength)))
        if kind == "solarize":
            return ImageOps.solarize(picture, round(255 * (1 - abs(strength))))
        changed: Picture = getattr(ImageOps, kind)(picture)
        return changed

    return change


TRIVIAL: dict[str, Callable[[Picture, float], Picture]] = {
    "identity": lambda picture, strength: picture,
    "brightness": _enhanced("Brightness"),
    "colour": _enhanced("Color"),
    "contrast": _enhanced("Contrast"),
    "sharpness": _enhanced("Sharpness"),
    "shear x": _moved((0, 0.3, 0), (0, 0, 0)),
    "shear y": _moved((0, 0, 0), (0.3, 0, 0)),
    "shift x": _moved((0, 0, 0.2), (0, 0, 0)),
    "shift y": _moved((0, 0, 0), (0, 0, 0.2)),
    "rotation": _rotated,
    "posterize": _point("posterize"),
    "solarize": _point("solarize"),
    "autocontrast": _point("autocontrast"),
    "equalize": _point("equalize"),
}


# --- careless input: `share` is how much of each picture is changed ---------------------------------------------------


def blur(picture: Picture, share: float, draw: random.Random) -> Picture:
    """Out of focus: a Gaussian of up to 4 % of the shorter side."""
    from PIL import ImageFilter

    return picture.filter(ImageFilter.GaussianBlur(0.04 * share * min(picture.size)))


def noise(picture: Picture, share: float, draw: random.Random) -> Picture:
    """Gaussian noise; `share` is its deviation, of the range of 1."""
    import numpy as np
    from PIL import Image

    values = np.asarray(picture, dtype=np.float32)
    changed = values + np.random.default_rng(draw.getrandbits(64)).normal(0, 255 * share, values.shape)
    return Image.fromarray(changed.clip(0, 255).round().astype(np.uint8))


def brightness(picture: Picture, share: float, draw: random.Random) -> Picture:
    """Darker or lighter by up to `share`."""
    from PIL import ImageEnhance

    return ImageEnhance.Brightness(picture).enhance(1 + draw.choice((-1, 1)) * share)


def jpeg(picture: Picture, share: float, draw: random.Random) -> Picture:
    """Compressed as for sending: JPEG of quality 100 less `share` of 100."""
    from PIL import Image

    file = io.BytesIO()
    picture.save(file, "JPEG", quality=max(1, round(100 * (1 - share))))
    return Image.open(file).convert("RGB")


def off_centre(picture: Picture, share: float, draw: random.Random) -> Picture:
    """Cut off: `share` of each side is missing, anywhere."""
    from PIL import Image

    width, height = picture.size
    left, top = draw.uniform(0, share * width), draw.uniform(0, share * height)
    box = (left, top, left + (1 - share) * width, top + (1 - share) * height)
    return picture.resize(picture.size, Image.Resampling.BICUBIC, box=box)


def occlusion(picture: Picture, share: float, draw: random.Random) -> Picture:
    """A grey square before `share` of the area."""
    width, height = picture.size
    side = max(1, round(math.sqrt(share * width * height)))
    left, top = draw.randint(0, max(0, width - side)), draw.randint(0, max(0, height - side))
    changed = picture.copy()
    changed.paste(GREY, (left, top, min(width, left + side), min(height, top + side)))
    return changed


CHANGES: dict[str, Change] = {
    change.__name__: change for change in (crop, flip, trivial, blur, noise, brightness, jpeg, off_centre, occlusion)
}
