"""Small pictures and vision models for tests."""

from __future__ import annotations

import base64
import html.parser
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def scene(seed: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    """A picture of smooth patches of colour, another for each seed."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def png(seed: int) -> bytes:
    """The same as a file."""
    file = io.BytesIO()
    scene(seed).save(file, "PNG")
    return file.getvalue()


def marked(label: str, seed: int) -> Image.Image:
    """A scene with a bright bar that says its class: across for `bar`, upright for `pole`."""
    picture = scene(seed, (32, 32))
    at = 4 + seed % 20
    picture.paste((255, 255, 255), (0, at, 32, at + 6) if label == "bar" else (at, 0, at + 6, 32))
    return picture


def pictured(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of `marked` pictures."""
    rows = []
    for number in range(count):
        file, label = io.BytesIO(), ("bar", "pole")[number % 2]
        marked(label, 100 * seed + number).save(file, "PNG")
        rows.append({"image": file.getvalue(), "label": label, "file": "", "look": "", "width": 32, "height": 32})
    return rows


def write_folders(folder: Path, count: int, seed: int = 0) -> Path:
    """Class folders of `count` pictures in all."""
    for number in range(count):
        label = ("bar", "pole")[number % 2]
        (folder / label).mkdir(parents=True, exist_ok=True)
        marked(label, 1000 * seed + number).save(folder / label / f"{number:03}.png")
    return folder


def make_processor() -> Any:
    """For pictures of 32 pixels."""
    from transformers import BitImageProcessorPil

    return BitImageProcessorPil(
        size={"shortest_edge": 32},
        crop_size={"height": 32, "width": 32},
        image_mean=[0.5] * 3,
        image_std=[0.25] * 3,
        resample=3,
        do_convert_rgb=True,
    )


def make_vision_models(folder: Path) -> None:
    """`vit` (one size, with a class token), `dino` (any size) and `conv` (1x1 convolutions and batch norms), each for
    pictures of 32 pixels."""
    import torch
    from transformers import (
        Dinov2Config,
        Dinov2Model,
        EfficientNetConfig,
        EfficientNetModel,
        ViTConfig,
        ViTModel,
    )

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8, "image_size": 32}
    torch.manual_seed(0)
    ViTModel(ViTConfig(**sizes, intermediate_size=64)).save_pretrained(folder / "vit")
    Dinov2Model(Dinov2Config(**sizes, mlp_ratio=2, layerscale_value=0.5)).save_pretrained(folder / "dino")
    blocks = {"in_channels": [32, 16], "out_channels": [16, 24], "depthwise_padding": [], "strides": [1, 2]}
    blocks |= {"kernel_sizes": [3, 3], "num_block_repeats": [1, 1], "expand_ratios": [1, 2]}
    # Widths are multiplied and rounded to 8 at least; the last one, 1280, becomes 32.
    conv = EfficientNetModel(EfficientNetConfig(**blocks, image_size=32, hidden_dim=32, width_coefficient=0.025))
    for module in conv.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    conv.save_pretrained(folder / "conv")
    processor = make_processor()
    for name in ("vit", "dino", "conv"):
        processor.save_pretrained(folder / name)


def finished_run(folder: Path, vision: Path) -> Path:
    """The run of a recipe with two domains; of `one`, pictures are of two sizes."""
    from tiny import command, recipe_fields, write_recipe

    write_folders(folder / "one", 90)
    for path in sorted((folder / "one").glob("*/*5.png")):
        Image.open(path).resize((48, 40)).save(path)
    write_folders(folder / "two", 90, seed=1)
    domains = {name: {"source": name} for name in ("one", "two")}
    model, checks = vision / "dino", {"resamples": 100, "transfer": False}
    fields = recipe_fields(model, "image-classification", domains, evaluate=checks, name="pictures")
    write_recipe(folder / "pictures.yaml", fields)
    done = command("run", "pictures.yaml", folder=folder)
    assert done.code == 0, done.err
    return folder / "runs" / "pictures"


class _Pictures(html.parser.HTMLParser):
    """The pictures of a page, each with the words that follow it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[Image.Image, str]] = []
        self.inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            head, _, data = str(dict(attrs)["src"]).partition(",")
            opened = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
            opened.load()
            assert head == f"data:image/{opened.format.lower()};base64"
            self.found.append((opened.convert("RGB"), ""))
            self.inside = True

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag != "figcaption"

    def handle_data(self, data: str) -> None:
        if self.inside:
            last, said = self.found[-1]
            self.found[-1] = (last, said + data)


def pictures_of(page: str) -> list[tuple[Image.Image, str]]:
    """The pictures of an HTML page, decoded, each with its caption."""
    return _Pictures(page).found
