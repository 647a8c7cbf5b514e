"""Images: read by Pillow alone, kept small and plain, and given to a model by transformers' own processors."""

from __future__ import annotations

import hashlib
import io
import json
import math
import random
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfadapt.core.errors import RequestError
from hfadapt.files import Blob, Doubt, Unusable
from hfadapt.files.stored import Stored
from hfadapt.modalities import Modality, Row, Taken
from hfadapt.modalities._image_changes import BLENDS, CHANGES
from hfadapt.modalities._image_files import SUFFIXES, UNREAD, formats, has_twelve_bits, plain, upright, why_not
from hfadapt.modalities._later import Blended, Changed, later

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image as Picture

MOST_PIXELS = 100_000_000
"""Larger images are refused unread: a file of a few kilobytes can unpack to gigabytes."""
STORED_SIDE = 768
"""The shorter side of what is kept, in pixels; models that are adapted here look at less."""
LOOK_SIDE = 16
"""An image is compared by a grey thumbnail of this side."""
TINY_SIDE = 8
USUAL_SIDE = 224
LEAST_CONTRAST = 0.004
"""About one step of 255."""
PREVIEW_BYTES = 4096
SMALL_TIMES, SMALLEST_SIDE = 4, 112
"""Small images are enlarged so many times, and at least to this side, not to the model's whole size."""
INTERPOLATE = "interpolate_pos_encoding"
"""The argument of models that have an embedding for each place of a picture, and take pictures of other sizes."""
SIDES = frozenset(("left", "right", "clockwise", "counterclockwise", "anticlockwise"))
DIGITS = frozenset(("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"))
"""Words of class names by which pictures are known that must not be mirrored."""
CONV_STRIDE = 32
"""Convolutional nets without patches halve a side five times."""
SEEING = "vision_config"
"""Where models of pictures and texts keep what is said of pictures."""


def opened(value: bytes | Stored | Changed | Blended | Picture) -> Picture:
    """The picture behind a kept value, in RGB."""
    from PIL import Image

    if isinstance(value, Blended):
        blend, _ = BLENDS[value.name]
        return blend(opened(value.first), opened(value.second), value.share, random.Random(value.seed))
    if not isinstance(value, (bytes, Stored, Changed)):
        return value.convert("RGB")
    changed = Changed.of(value)
    picture = Image.open(io.BytesIO(bytes(changed.kept))).convert("RGB")
    for name, share, seed in changed.steps:
        picture = CHANGES[name](picture, share, random.Random(seed))
    return picture


@dataclass(frozen=True)
class Processor:
    """Makes a model's pixels of pictures: transformers' own processor of the model, on Pillow, at a chosen size.

    Args:
        inner: The processor of transformers.
        side: Height and width of what the model is given, in pixels.
        most: The side that the model was made for.
        patch: Pixels of a side that become one position of the model.
        fixed: Whether the model takes no other side.
    """

    inner: Any
    side: int
    most: int
    patch: int
    fixed: bool
    name_or_path: str
    pad_token_id: int | None = None
    eos_token_id: int | None = None
    chat_template: str | None = None

    def at(self, positions: int) -> Processor:
        """For pictures of at most so many positions."""
        side = self.patch * math.isqrt(min(positions, (self.most // self.patch) ** 2))
        if self.fixed or side == self.side or side < self.patch:
            return self
        inner = type(self.inner)(**_resized(self.inner.to_dict(), side / self.most))
        return replace(self, inner=inner, side=side)

    @property
    def positions(self) -> int:
        """Positions of a picture."""
        return (self.side // self.patch) ** 2

    def natural(self, row: Row) -> int:
        """Positions at which a prepared row's picture shows all that is in it."""
        if self.fixed:
            return self.positions
        side = min(self.most, max(SMALLEST_SIDE, SMALL_TIMES * max(int(row["width"]), int(row["height"]))))
        return (-(-side // self.patch)) ** 2

    def inputs(self, values: Sequence[bytes | Stored | Changed | Blended | Picture]) -> dict[str, np.ndarray]:
        """`pixel_values` (B, 3, side, side) float32."""
        made = self.inner([opened(value) for value in values], return_tensors="np")
        return {"pixel_values": made["pixel_values"]}

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes preprocessor_config.json."""
        self.inner.save_pretrained(folder)


def _resized(settings: Mapping[str, Any], times: float) -> dict[str, Any]:
    """A processor's settings with its sizes in another proportion."""
    found = {key: value for key, value in settings.items() if key != "image_processor_type"}
    for name in ("size", "crop_size"):
        if found.get(name):
            found[name] = {side: round(pixels * times) for side, pixels in found[name].items()}
    return found


def _blended(
    name: str, one: bytes | Stored | Changed, other: bytes | Stored | Changed, draw: random.Random
) -> tuple[Blended, float]:
    share = BLENDS[name][1](draw)
    return Blended(name, Changed.of(one), Changed.of(other), share, draw.getrandbits(64)), share


class Image(Modality):
    """Images, read by Pillow."""

    name = "image"
    noun, nouns = "image", "images"
    reader = "image processor"
    imports = "from PIL import Image, ImageOps\nfrom transformers import AutoImageProcessor"
    reading = (
        'processor = AutoImageProcessor.from_pretrained(".", backend="pil")\n'
        'picture = ImageOps.exif_transpose(Image.open(example)).convert("RGBA")\n'
        'white = Image.new("RGBA", picture.size, "white")\n'
        'picture = Image.alpha_composite(white, picture).convert("RGB")\n'
        'inputs = dict(processor(picture, return_tensors="np"))'
    )
    accepted = "a path, bytes, a PIL image, an array (height, width, 3) of uint8, or a list of these"
    unit = "positions"
    cut, longer = "scaled down", "larger"
    one_size = True
    suffixes, unread = SUFFIXES, UNREAD
    component = 'gr.Image(label="LABEL", type="filepath")'
    refusals = ("not-an-image", "image-too-large")
    facts = {"width": "pixels", "height": "pixels", "brightness": "of 1", "contrast": "of 1"}
    operations = {name: partial(later, name) for name in ("trivial", "crop", "flip")}
    # The robust default, the baseline, and blends.
    trials = ({"trivial": 1.0}, {"crop": 1.0, "flip": 1.0}, {"mixup": 0.5, "cutmix": 0.5})
    mixtures = {name: partial(_blended, name) for name in BLENDS}
    perturbations = {
        "blur": (partial(later, "blur"), 0.5),
        "noise": (partial(later, "noise"), 0.1),
        "brightness": (partial(later, "brightness"), 0.4),
        "JPEG": (partial(later, "jpeg"), 0.8),
        "crop": (partial(later, "off_centre"), 0.2),
        "occlusion": (partial(later, "occlusion"), 0.1),
    }

    def load_processor(self, path: str, revision: str | None) -> Processor:
        """The model's image processor.

        Raises:
            RequestError: there is none, or it does not make square pictures of a known size.
        """
        from transformers import AutoConfig, AutoImageProcessor

        try:
            config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False)
            # By Pillow: the other ones need torchvision.
            inner = AutoImageProcessor.from_pretrained(path, revision=revision, backend="pil", trust_remote_code=False)
        except Exception as error:
            raise RequestError(
                "the base has no image processor that can be read",
                place=path,
                got=f"{type(error).__name__}: {' '.join(str(error).split())}"[:300],
                allowed="a preprocessor_config.json beside its weights",
                fix="put it there: AutoImageProcessor.from_pretrained(MODEL).save_pretrained(FOLDER)",
            ) from None
        sizes = (getattr(inner, "crop_size", None), inner.size)
        size = next((dict(each) for each in sizes if each), {})
        side = size.get("height") or size.get("shortest_edge") or 224
        return Processor(inner, side, side, _patch(config.to_dict()), _takes_one_size(config), path)

    def sized(self, processor: Processor, max_length: int) -> Processor:
        """The processor for pictures of at most `max_length` positions."""
        return processor.at(max_length)

    def arguments(self, config: Any, max_length: int) -> dict[str, Any]:
        """What the model is asked for beside pixels."""
        return {INTERPOLATE: True} if _interpolates(config) else {}

    def identity(self, processor: Processor) -> Any:
        """The settings of transformers' processor at the model's own size."""
        return json.loads(processor.inner.to_json_string()) if processor.side == processor.most else processor.most

    def usual(self, config: Mapping[str, Any]) -> int | None:
        """Positions of a picture of the usual size."""
        return int((USUAL_SIDE // _patch(config)) ** 2)

    def shaped(self, config: Mapping[str, Any], length: int) -> Mapping[str, Any]:
        """With the side that so many positions have."""
        side = {"image_size": _patch(config) * math.isqrt(length)}
        own = config.get(SEEING)
        return {**config, SEEING: {**own, **side}} if isinstance(own, Mapping) else {**config, **side}

    def traced(self, config: Any, rows: int, length: int) -> dict[str, Any]:
        """`pixel_values` (rows, channels, side, side)."""
        import torch

        config = getattr(config, SEEING, None) or config
        size = getattr(config, "image_size", None) or 224
        size = size if isinstance(size, (list, tuple)) else (size, size)
        return {"pixel_values": torch.zeros(rows, getattr(config, "num_channels", 3), *size)}

    def take(self, data: bytes) -> Taken:
        """Reads an image: its first frame, turned as its camera says, in 8 bits, on white where it is transparent.

        What is kept is the file itself where that is already so, else PNG, or JPEG of quality 95 for what was JPEG.
        Its text and places (EXIF) are not kept.
        """
        from PIL import Image

        notes = []
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                picture = Image.open(io.BytesIO(data), formats=formats())
                kind, mode, own = picture.format, picture.mode, picture.size
                if own[0] * own[1] > MOST_PIXELS:
                    raise Image.DecompressionBombError(f"{own[0]:,} x {own[1]:,} pixels")
                if getattr(picture, "n_frames", 1) > 1:
                    notes.append("images with several frames: the first is used")
                    picture.seek(0)
                picture.load()
                described = "exif" in picture.info or bool(picture.getexif())
                turned = upright(picture)
                own = turned.size
        except Image.DecompressionBombError as error:
            most = f"more than {MOST_PIXELS / 1e6:.0f} million pixels are not read"
            raise Unusable("image-too-large", f" has a file that unpacks to a huge image: {error}; {most}") from None
        except Exception as error:
            # Pillow's readers raise errors of every kind on broken files.
            raise Unusable("not-an-image", why_not(data, error)) from None
        pixels = plain(turned)
        if mode not in ("RGB", "L", "1"):
            notes.append(f"images in mode {mode}: made {pixels.mode}")
        if has_twelve_bits(turned):
            notes.append("images of 16 bits whose values end below 4,096: read as of 12 bits")
        scale = STORED_SIDE / min(pixels.size)
        small = scale >= 1
        if not small:
            pixels = pixels.resize([max(1, round(each * scale)) for each in pixels.size], Image.Resampling.LANCZOS)
        kept = data
        if not small or described or notes or pixels.mode != mode or kind not in ("PNG", "JPEG"):
            file = io.BytesIO()
            if kind in ("JPEG", "MPO", "WEBP", "AVIF", "HEIF"):
                pixels.save(file, "JPEG", quality=95, subsampling=0)
            else:
                pixels.save(file, "PNG")
            kept = file.getvalue()
            pixels = Image.open(file)
        return Taken(kept, _look(pixels), _facts(pixels, own), tuple(notes))

    def given(self, value: Any) -> Blob | None:
        """A path, bytes, a picture of PIL, or an array (height, width) or (height, width, 1, 3 or 4) of uint8."""
        import numpy as np
        from PIL import Image, ImageOps

        if isinstance(value, np.ndarray):
            whole = value.ndim == 2 or (value.ndim == 3 and value.shape[2] in (1, 3, 4))
            if value.dtype != np.uint8 or not whole:
                return None
            value = Image.fromarray(value[:, :, 0] if value.ndim == 3 and value.shape[2] == 1 else value)
        if isinstance(value, Image.Image):
            file = io.BytesIO()
            # TIFF has every mode that there is.
            ImageOps.exif_transpose(value).save(file, "TIFF")
            return Blob("", file.getvalue())
        return super().given(value)

    def doubts(self, row: Row) -> list[Doubt]:
        """Tiny ones, and even surfaces, in which there is nothing to see."""
        found = []
        if min(row["width"], row["height"]) < TINY_SIDE:
            fix = "take them out: icons and placeholders show nothing that is worth learning"
            found.append(Doubt("tiny-image", f"a side of less than {TINY_SIDE} pixels", fix))
        if row["contrast"] < LEAST_CONTRAST:
            found.append(Doubt("blank-image", "one even colour", "look at them, and take them out"))
        return found

    def brought(self, processor: Processor, rows: Sequence[Row]) -> str:
        """To which size, how many of them grow or shrink for it, and whether their edges are left out."""
        settings = processor.inner.to_dict()
        size = dict(settings.get("size") or {}) if settings.get("do_resize", True) else {}
        crop = dict(settings.get("crop_size") or {}) if settings.get("do_center_crop") else {}
        shown = f"{processor.side} x {processor.side} pixels"
        if not size:
            return f"the middle {shown} of each"
        shortest = size.get("shortest_edge")
        sides = [min(row["width"], row["height"]) if shortest else max(row["width"], row["height"]) for row in rows]
        to = shortest or max(size.get("height") or 0, size.get("width") or 0) or processor.side
        counts = (("enlarged", sum(side < to for side in sides)), ("scaled down", sum(side > to for side in sides)))
        changed = ", ".join(f"{count:,} of {len(rows):,} {how}" for how, count in counts if count) or "all have it"
        what = f"the shorter side brought to {to} pixels" if shortest else f"brought to {shown}"
        return f"{what} ({changed})" + (f", and the middle {shown} taken" if crop else "")

    def mislabels(self, operation: str, labels: Sequence[str]) -> str:
        """Of `flip`, where most classes look like digits or letters, or one is named after a side."""
        sides = [label for label in labels if SIDES & {*re.findall(r"[^\W\d_]+", label.casefold())}]
        signs = [label for label in labels if len(label) == 1 or label.isdecimal() or label.casefold() in DIGITS]
        found = sides or (signs if 2 * len(signs) > len(labels) else [])
        if operation != "flip" or not found:
            return ""
        kind = "say left or right" if sides else "look like digits or letters"
        return f"{len(found)} of {len(labels)} classes {kind} ({', '.join(found[:4])}), and a mirrored one is another"

    def vector(self, look: str) -> np.ndarray:
        """The thumbnail with mean 0 and length 1: brightness and contrast do not count."""
        import numpy as np

        grey = np.frombuffer(bytes.fromhex(look.split()[1]), dtype=np.uint8).astype(np.float32)
        grey -= grey.mean()
        length = float(np.linalg.norm(grey))
        # Of an even surface nothing is left to compare by; such images are alike only where they are equal.
        return grey / length if length > 1.0 * len(grey) ** 0.5 else np.zeros_like(grey)

    def nearness(self, similarity: float) -> float:
        """0.995 for the usual 0.8: copies in other sizes, colours or qualities, and not two of one kind."""
        return 1 - (1 - similarity) / 40

    def random(self, chance: random.Random) -> bytes:
        """Coloured noise."""
        from PIL import Image

        small = Image.frombytes("RGB", (8, 8), chance.randbytes(8 * 8 * 3))
        file = io.BytesIO()
        small.resize((64, 64), Image.Resampling.BICUBIC).save(file, "PNG")
        return file.getvalue()

    def probes(self) -> list[bytes]:
        """Coloured noise that is no square, and larger than most models look at."""
        from PIL import Image

        file = io.BytesIO()
        picture = Image.open(io.BytesIO(self.random(random.Random(0))))
        picture.resize((397, 261), Image.Resampling.BICUBIC).save(file, "PNG")
        return [file.getvalue()]

    def preview(self, data: bytes | Stored, side: int) -> tuple[bytes, str]:
        """The image itself, smaller; very small ones are enlarged without smoothing. As JPEG where PNG is large."""
        from PIL import Image

        picture = opened(data)
        if (times := side // max(picture.size)) > 1:
            picture = picture.resize([times * each for each in picture.size], Image.Resampling.NEAREST)
        picture.thumbnail((2 * side, side))
        file = io.BytesIO()
        picture.save(file, "PNG")
        if len(file.getvalue()) <= PREVIEW_BYTES:
            return file.getvalue(), "image/png"
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=85)
        return file.getvalue(), "image/jpeg"


def _patch(config: Mapping[str, Any]) -> int:
    """Pixels of a side that become one position."""
    own = config.get(SEEING)
    patch = (own if isinstance(own, Mapping) else config).get("patch_size") or CONV_STRIDE
    return int(patch[0] if isinstance(patch, (list, tuple)) else patch)


def _interpolates(config: Any) -> bool:
    """Whether a model is to be asked to interpolate its embeddings of the places of a picture."""
    import inspect

    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING as KNOWN

    if type(config) not in KNOWN:
        return False
    found = KNOWN[type(config)]
    found = found[0] if isinstance(found, tuple) else found
    return INTERPOLATE in inspect.signature(found.forward).parameters


def _takes_one_size(config: Any) -> bool:
    """Whether a model has an embedding for each place of a picture of one size and does not interpolate them."""
    seeing = getattr(config, SEEING, None) or config
    if getattr(seeing, "patch_size", None) is None or config.model_type.startswith("dino"):
        return False
    return not _interpolates(config)


def _look(picture: Picture) -> str:
    """A hash of the pixels, and a grey thumbnail in hexadecimal."""
    from PIL import Image

    exact = hashlib.sha256(f"{picture.size}".encode() + picture.convert("RGB").tobytes()).hexdigest()[:32]
    thumb = picture.convert("L").resize((LOOK_SIDE, LOOK_SIDE), Image.Resampling.BICUBIC)
    return f"{exact} {thumb.tobytes().hex()}"


def _facts(picture: Picture, own: tuple[int, int]) -> dict[str, float]:
    import numpy as np

    grey = np.asarray(picture.convert("L"), dtype=np.float32) / 255
    return {
        "width": float(own[0]),
        "height": float(own[1]),
        "brightness": round(float(grey.mean()), 4),
        "contrast": round(float(grey.std()), 4),
    }


KIND = Image()
