"""Images: what is read and how it is kept, what is refused, what is alike, and what models are given."""

import io
import random
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_images import png, scene

from hfadapt.core import registry
from hfadapt.files import Unusable
from hfadapt.modalities import _image_changes, image
from hfadapt.modalities.image import KIND, Changed, opened


def saved(picture, kind, **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=np.float32)


# --- what is kept -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_plain_image_is_kept_to_the_byte(kind):
    data = saved(scene(1), kind)
    taken = KIND.take(data)
    assert taken.data == data
    assert taken.notes == ()
    assert (taken.facts["width"], taken.facts["height"]) == (64, 48)


def test_a_camera_that_was_turned():
    upright = scene(2)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    exif[0x8825] = {2: (52.0, 31.0, 0.0)}  # where it was taken
    taken = KIND.take(saved(upright.rotate(90, expand=True), "PNG", exif=exif))
    assert (taken.facts["width"], taken.facts["height"]) == upright.size
    assert np.array_equal(pixels(taken.data), np.asarray(upright))
    assert not Image.open(io.BytesIO(taken.data)).getexif()


def test_transparent_parts_are_white():
    picture = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    picture.paste((0, 0, 255, 255), (0, 0, 10, 20))
    taken = KIND.take(saved(picture, "PNG"))
    assert pixels(taken.data)[0, 0].tolist() == [0, 0, 255]
    assert pixels(taken.data)[0, 19].tolist() == [255, 255, 255]
    assert taken.notes == ("images in mode RGBA: made RGB",)


def test_a_palette_with_a_transparent_colour():
    picture = scene(3).quantize(8)
    assert pixels(KIND.take(saved(picture, "PNG", transparency=0)).data).shape == (48, 64, 3)


def test_sixteen_bits_keep_their_steps():
    steps = np.linspace(0, 65535, 64 * 48).astype(np.uint16).reshape(48, 64)
    found = pixels(KIND.take(saved(Image.fromarray(steps), "TIFF")).data)[..., 0]
    assert np.abs(found - steps / 257).max() <= 1
    assert np.array_equal(found, pixels(KIND.take(saved(Image.fromarray(steps), "PNG")).data)[..., 0])


def test_twelve_bits_in_sixteen_are_not_black():
    steps = np.linspace(0, 4095, 64 * 48).astype(np.uint16).reshape(48, 64)
    taken = KIND.take(saved(Image.fromarray(steps), "PNG"))
    assert np.abs(pixels(taken.data)[..., 0] - steps / 4095 * 255).max() <= 1
    assert "images of 16 bits whose values end below 4,096: read as of 12 bits" in taken.notes
    assert len(KIND.take(saved(Image.fromarray(steps * 2), "PNG")).notes) == 1


def test_print_colours_become_those_of_a_screen():
    picture = scene(4)
    found = pixels(KIND.take(saved(picture.convert("CMYK"), "TIFF")).data)
    assert np.abs(found - np.asarray(picture)).mean() < 3


def test_the_first_of_several_frames_is_used_and_said():
    first, second = scene(5).quantize(64), scene(6).quantize(64)
    taken = KIND.take(saved(first, "GIF", save_all=True, append_images=[second]))
    assert "the first is used" in taken.notes[0]
    assert np.array_equal(pixels(taken.data), np.asarray(first.convert("RGB"), dtype=np.float32))


def test_large_images_are_kept_smaller():
    taken = KIND.take(saved(scene(7).resize((3000, 2000)), "JPEG"))
    assert Image.open(io.BytesIO(taken.data)).size == (1152, 768)
    assert (taken.facts["width"], taken.facts["height"]) == (3000, 2000)


def test_what_is_kept_is_kept_as_it_is_again():
    for data in (saved(scene(8).convert("CMYK"), "JPEG"), saved(scene(9).convert("LA"), "PNG"), png(10)):
        once = KIND.take(data)
        again = KIND.take(once.data)
        assert (again.data, again.look, again.notes) == (once.data, once.look, ())


# --- what is refused --------------------------------------------------------------------------------------------------


def bomb():
    """A PNG of some hundred bytes that says it has 30,000 x 30,000 pixels."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


BROKEN = {
    "empty": (b"", "an empty file"),
    "zeros": (b"\0" * 500, "of no known kind"),
    "text": (b"this is not an image at all, whatever its name is\n", "of no known kind"),
    "web page": (b"<!DOCTYPE html><html>404</html>", "a web page"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "bomb": (bomb(), "huge image"),
    "head of a png": (png(1)[:40], "no whole image"),
    "half a png": (png(1)[: len(png(1)) // 2], "no whole image"),
    "half a jpeg": (saved(scene(1), "JPEG")[:900], "no whole image"),
    "half a gif": (saved(scene(1).quantize(64), "GIF")[:300], "no whole image"),
    "half a tiff": (saved(scene(1), "TIFF")[:4000], "no whole image"),
    "half a webp": (saved(scene(1), "WEBP")[:200], "no whole image"),
    "wrong checksum": (png(1).replace(b"IDAT", b"IDAX"), "no whole image"),
    "no pixels": (b"P6\n0 0\n255\n", "no"),
    "a sound": (b"RIFF\x24\0\0\0WAVEfmt " + b"\0" * 40, " has a recording (WAV) and no image"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"></svg>', " has a drawing (SVG) and no image"),
    "pdf": (b"%PDF-1.7\n" + b"0" * 100, " has a PDF and no image"),
    "zip": (b"PK\x03\x04" + b"\0" * 60, " has an archive (ZIP) and no image"),
    "a form": (
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n' + png(1),
        "a form and no image: send the file alone",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_images_are_refused_in_words(name):
    data, words = BROKEN[name]
    with pytest.raises(Unusable) as caught:
        KIND.take(data)
    assert words in caught.value.detail
    assert "BytesIO" not in caught.value.detail


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"\0\0\0\x1cftypheic", "HEIC: pip install pillow-heif"),
        (b"8BPS\0\1", "has PSD"),
        (b"\0\0\0\x1cftypcrx ", "a camera"),
    ],
)
def test_formats_that_are_not_read_are_named(head, words):
    with pytest.raises(Unusable) as caught:
        KIND.take(head + bytes(200))
    assert words in caught.value.detail


def test_an_image_under_a_wrong_name_is_still_an_image():
    assert KIND.take(saved(scene(1), "BMP")).facts["width"] == 64


# --- what is alike ----------------------------------------------------------------------------------------------------


def likeness(one, other):
    return float(KIND.vector(KIND.take(one).look) @ KIND.vector(KIND.take(other).look))


def test_copies_are_near_and_other_pictures_are_not():
    picture, nearly = scene(11), KIND.nearness(0.8)
    for copy in (
        saved(picture, "JPEG", quality=60),
        saved(picture.resize((200, 150)), "PNG"),
        saved(picture.convert("L"), "PNG"),
        saved(Image.eval(picture, lambda value: int(0.7 * value) + 20), "PNG"),
    ):
        assert likeness(saved(picture, "PNG"), copy) >= nearly
    others = [likeness(png(11), png(seed)) for seed in range(12, 40)]
    assert max(others) < nearly


def test_equal_pixels_are_equal_whatever_the_file():
    picture = scene(12)
    assert KIND.take(saved(picture, "PNG")).look == KIND.take(saved(picture, "BMP")).look
    assert KIND.take(saved(picture, "PNG")).look != KIND.take(saved(scene(13), "PNG")).look


def test_even_surfaces_are_not_all_alike():
    one, other = (saved(Image.new("L", (30, 30), shade), "PNG") for shade in (10, 200))
    assert likeness(one, other) < KIND.nearness(1.0)


# --- changes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(_image_changes.CHANGES))
def test_changes_keep_the_size_and_repeat_themselves(name):
    picture = scene(14)
    change = _image_changes.CHANGES[name]
    one, again = (change(picture, 0.9, random.Random(3)) for _ in range(2))
    assert (one.size, one.mode) == (picture.size, "RGB")
    assert np.array_equal(np.asarray(one), np.asarray(again))
    assert any(
        not np.array_equal(np.asarray(change(picture, 0.9, random.Random(seed))), np.asarray(picture))
        for seed in range(8)
    )


@pytest.mark.parametrize("name", sorted(_image_changes.TRIVIAL))
@pytest.mark.parametrize("strength", [-1.0, 0.0, 0.5, 1.0])
def test_operations_of_trivialaugment_at_any_strength(name, strength):
    changed = _image_changes.TRIVIAL[name](scene(15), strength)
    assert (changed.size, changed.mode) == ((64, 48), "RGB")


def test_no_strength_changes_nothing_where_there_is_a_strength():
    free = {"posterize", "solarize", "autocontrast", "equalize"}
    for name in _image_changes.TRIVIAL.keys() - free:
        assert np.array_equal(np.asarray(_image_changes.TRIVIAL[name](scene(16), 0.0)), np.asarray(scene(16))), name


@pytest.mark.parametrize("share", [0.0, 0.25, 0.6, 1.0])
@pytest.mark.parametrize("name", sorted(_image_changes.BLENDS))
def test_a_blend_holds_as_much_of_each_picture_as_it_says(name, share):
    black, white = Image.new("RGB", (64, 48)), Image.new("RGB", (30, 30), "white")
    blend, drawn = _image_changes.BLENDS[name]
    changed = np.asarray(blend(black, white, share, random.Random(2)))
    assert changed.shape == (48, 64, 3)
    assert changed.mean() / 255 == pytest.approx(1 - share, abs=0.02)
    shares = [drawn(random.Random(seed)) for seed in range(200)]
    assert 0 <= min(shares) < 0.1 < 0.4 < np.mean(shares) < 0.6 < 0.9 < max(shares) <= 1


def test_rows_that_are_blended_are_learned_with_both_classes_in_their_shares(vision):
    task = registry.task("image-classification")
    processor = KIND.load_processor(str(vision / "dino"), None)
    facts = {"width": 32, "height": 32}
    rows = [{"image": png(1), "label": {"b": 0.75, "c": 0.25}, **facts}, {"image": png(2), "label": "a", **facts}]
    batch = task.collate(task.encode(rows, processor, max_length=16, labels=("a", "b", "c")), 0)
    assert batch["labels"].tolist() == [[0.0, 0.75, 0.25], [1.0, 0.0, 0.0]]
    logits = torch.randn(2, 3)
    _, targets, _ = task.targets(batch)
    logs = logits.log_softmax(-1)
    wanted = torch.stack([-(0.75 * logs[0, 1] + 0.25 * logs[0, 2]), -logs[1, 0]])
    torch.testing.assert_close(task.criterion(logits, targets), wanted)


@pytest.mark.parametrize(
    ("labels", "fits"),
    [
        (("0", "1", "2", "10"), False),
        (("a", "b", "other"), False),
        (("One", "two", "three"), False),
        (("turn left", "stop"), False),
        (("arrow_right", "none"), False),
        (("cat", "dog"), True),
        (("x-ray", "bright", "leftover"), True),
        (("grade 1", "grade 2"), True),
    ],
)
def test_classes_that_must_not_be_mirrored_are_known_by_their_names(labels, fits):
    assert (KIND.mislabels("flip", labels) == "") is fits
    assert KIND.mislabels("crop", labels) == ""


def test_changes_are_worked_out_when_they_are_looked_at():
    operation, share = KIND.perturbations["noise"]
    value = operation(png(17), share, random.Random(1))
    assert isinstance(value, Changed)
    assert value == operation(png(17), share, random.Random(1))
    assert value != operation(png(17), share, random.Random(2))
    twice = KIND.operations["flip"](value, 1.0, random.Random(5))
    assert [step[0] for step in twice.steps] == ["noise", "flip"]
    assert not np.array_equal(np.asarray(opened(value)), np.asarray(opened(png(17))))


# --- what a model is given --------------------------------------------------------------------------------------------


def test_pixels_are_those_of_transformers_at_its_own_size(vision):
    from transformers import AutoImageProcessor

    inner = AutoImageProcessor.from_pretrained(vision / "vit", backend="pil")
    processor = KIND.load_processor(str(vision / "vit"), None)
    expected = inner([scene(18)], return_tensors="np")["pixel_values"]
    assert np.array_equal(processor.inputs([png(18)])["pixel_values"], expected)


@pytest.mark.parametrize(("positions", "side"), [(9, 24), (16, 32), (17, 32), (99, 32), (3, 8)])
def test_the_size_follows_from_the_positions(vision, positions, side):
    processor = KIND.sized(KIND.load_processor(str(vision / "dino"), None), positions)
    assert processor.inputs([png(19)])["pixel_values"].shape == (1, 3, side, side)
    assert processor.positions == (side // 8) ** 2


@pytest.mark.parametrize(("kind", "asked"), [("vit", True), ("dino", False), ("conv", False)])
def test_places_are_interpolated_by_the_models_that_have_to_be_asked(vision, kind, asked):
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(vision / kind)
    assert KIND.arguments(config, 16) == ({"interpolate_pos_encoding": True} if asked else {})


def test_a_saved_processor_makes_the_same_pixels(vision, tmp_path):
    from transformers import AutoImageProcessor

    processor = KIND.sized(KIND.load_processor(str(vision / "dino"), None), 9)
    processor.save_pretrained(tmp_path)
    again = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    assert np.array_equal(
        again([scene(20)], return_tensors="np")["pixel_values"], processor.inputs([png(20)])["pixel_values"]
    )


def test_code_for_other_programs_reads_files_as_training_did(vision, tmp_path, monkeypatch):
    """Transparent parts would be black there, and what a camera turned would lie on its side."""
    ghost = Image.new("RGBA", (40, 24), (0, 0, 0, 0))
    ghost.paste((200, 30, 30, 255), (5, 5, 20, 20))
    turned = Image.Exif()
    turned[0x0112] = 6
    processor = KIND.load_processor(str(vision / "dino"), None)
    monkeypatch.chdir(vision / "dino")
    for name, picture, more in (("ghost.png", ghost, {}), ("turned.jpg", scene(3), {"exif": turned, "quality": 95})):
        picture.save(tmp_path / name, **more)
        made = {"example": str(tmp_path / name)}
        exec(f"{KIND.imports}\n{KIND.reading}", made)
        taken = KIND.take((tmp_path / name).read_bytes())
        np.testing.assert_allclose(
            made["inputs"]["pixel_values"], processor.inputs([taken.data])["pixel_values"], atol=0.2
        )


def test_small_pictures_are_not_blown_up(vision, monkeypatch):
    monkeypatch.setattr(image, "SMALLEST_SIDE", 16)
    processor = KIND.load_processor(str(vision / "dino"), None)
    assert processor.natural({"width": 5, "height": 4}) == 9  # 20 pixels, up to 24
    assert processor.natural({"width": 500, "height": 4}) == 16


def test_canaries_are_images():
    one, other = (KIND.random(random.Random(seed)) for seed in (1, 2))
    assert KIND.take(one).look != KIND.take(other).look
    assert one == KIND.random(random.Random(1))


def test_previews_are_small_pictures():
    data, kind = KIND.preview(saved(scene(21).resize((640, 480)), "PNG"), 48)
    assert kind.startswith("image/")
    assert Image.open(io.BytesIO(data)).size == (64, 48)


def test_how_pictures_come_to_the_size_of_the_model_is_counted(vision):
    processor = KIND.load_processor(str(vision / "dino"), None)
    rows = [{"width": width, "height": height} for width, height in ((32, 32), (20, 90), (64, 48), (640, 480))]
    changed = "(1 of 4 enlarged, 2 of 4 scaled down), and the middle 32 x 32 pixels taken"
    assert KIND.brought(processor, rows) == f"the shorter side brought to 32 pixels {changed}"
    assert "(all have it)" in KIND.brought(processor, rows[:1])
    whole = type(processor.inner)(size={"height": 48, "width": 48}, do_center_crop=False)
    assert KIND.brought(image.replace(processor, inner=whole, side=48), rows) == (
        "brought to 48 x 48 pixels (1 of 4 enlarged, 3 of 4 scaled down)"
    )
