"""Broken images, recordings, archives and tables of them, each among good ones: named with a reason, the rest goes on.

`None` stands for what is odd and can be used all the same.
"""

import io
import json
import os
import struct
import tarfile
import zipfile
import zlib

import numpy as np
import pyarrow
import pytest
import soundfile
from PIL import Image
from pyarrow import parquet
from tiny_images import png, scene, write_folders
from tiny_sounds import tone, wav, write_sounds

from hfadapt.core.errors import HfadaptError
from hfadapt.data import prepare
from hfadapt.recipe.reading import load_recipe


def image(picture, kind="PNG", **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def raw_png(width, height, depth=8, colour=2, content=b"\0" * 100, extra=b""):
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)),
            extra,
            chunk(b"IDAT", zlib.compress(content)),
            chunk(b"IEND", b""),
        ]
    )


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return image(scene(21), "JPEG", exif=exif)


STEPS = np.arange(64 * 48).reshape(48, 64)
JPEG = image(scene(22).resize((300, 300)), "JPEG")
FRAMES = {"save_all": True, "append_images": [scene(24)]}

IMAGES = {
    "half.png": (png(1)[: len(png(1)) // 2], "no whole image"),
    "half.jpg": (JPEG[: len(JPEG) // 2], "no whole image"),
    "progressive.jpg": (image(scene(1).resize((300, 300)), "JPEG", progressive=True)[:3000], "no whole image"),
    "without-end.jpg": (JPEG[:-2], "no whole image"),
    "half.gif": (image(scene(1).quantize(64), "GIF")[:300], "no whole image"),
    "half.webp": (image(scene(1), "WEBP")[:200], "no whole image"),
    "half.tiff": (image(scene(1), "TIFF")[:4000], "no whole image"),
    "short.ppm": (b"P6\n64 48\n255\n" + bytes(50), "truncated"),
    "text.jpg": (b"this is a text, whatever it is called\n" * 9, "of no known kind"),
    "page.png": (b"<!DOCTYPE html><html>404 Not Found</html>", "a web page and no image"),
    "pointer.png": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "nothing.png": (b"", "an empty file"),
    "zeros.jpg": (bytes(2000), "of no known kind"),
    "bomb.png": (raw_png(30_000, 30_000), "huge image"),
    "bomb.gif": (b"GIF89a" + struct.pack("<HH", 65535, 65535) + bytes(7) + b"," + bytes(4) + b"\xff" * 4, "image"),
    "comment-bomb.png": (
        raw_png(8, 8, content=bytes(200), extra=chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(90_000_000)))),
        "too large",
    ),
    "no-width.png": (raw_png(0, 5), "no whole image"),
    "no-height.bmp": (b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 9, 0, 1, 24, *[0] * 6), "no whole"),
    "no-pixels.png": (raw_png(64, 64, content=b""), "truncated"),
    "checksum.png": (png(2).replace(b"IDAT", b"IDAX"), "no whole image"),
    "not-a-number.tiff": (image(Image.fromarray(np.full((48, 64), np.nan, np.float32)), "TIFF"), "is a number"),
    "loop.tiff": (b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIII", 256, 3, 1, 5, 8), "no whole image"),
    "a-program.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", "no known kind"),
    "a-sound.png": (wav(tone("low", 1)), "a recording (WAV) and no image"),
    "pixel.png": (image(Image.new("RGB", (1, 1), (3, 4, 5))), None),
    "line.png": (image(scene(11, (1, 3000))), None),
    "print.jpg": (image(scene(12).convert("CMYK"), "JPEG"), None),
    "palette.png": (image(scene(13).quantize(8), transparency=0), None),
    "half-clear.png": (image(scene(14).quantize(8), transparency=bytes([0, 255, 128, 9, 9, 9, 9, 1])), None),
    "turned.jpg": (turned(), None),
    "bad-exif.jpg": (image(scene(15), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff garbage"), None),
    "bad-exif.png": (image(scene(16), exif=b"garbage"), None),
    "sixteen.png": (image(Image.fromarray((20 * STEPS).astype(np.uint16))), None),
    "sixteen.tiff": (image(Image.fromarray((STEPS**2 % 65_521).astype(">u2")), "TIFF"), None),
    "floats.tiff": (
        image(Image.fromarray(np.where(STEPS % 7, np.sin(STEPS), np.inf).astype(np.float32)), "TIFF"),
        None,
    ),
    "animated.gif": (image(scene(17).quantize(64), "GIF", save_all=True, append_images=[scene(18).quantize(64)]), None),
    "animated.webp": (image(scene(19), "WEBP", **FRAMES), None),
    "animated.png": (image(scene(20), **FRAMES), None),
    "a-png.jpg": (png(23), None),
    "more-behind.jpg": (image(scene(25), "JPEG") + b"more" * 100, None),
}

LOW = tone("low", 5_000)
WHOLE = (32767 * LOW).astype(np.int16).tobytes()


def riff(data=WHOLE, channels=1, rate=16_000, bits=16, extra=b"", **lengths):
    """A WAV file whose head says what is asked for: `all` and `samples` are lengths."""
    step = max(1, channels * bits // 8)
    head = struct.pack("<HHIIHH", 1, channels, rate, rate * step & 0xFFFFFFFF, step & 0xFFFF, bits)
    body = b"WAVEfmt " + struct.pack("<I", len(head)) + head + extra
    body += b"data" + struct.pack("<I", lengths.get("samples", len(data))) + data
    return b"RIFF" + struct.pack("<I", lengths.get("all", len(body))) + body


def sound(number, kind, seconds=4.0, **options):
    file = io.BytesIO()
    soundfile.write(file, tone("low", 5_000 + number, seconds=seconds), 16_000, format=kind, **options)
    return file.getvalue()


def lying_flac():
    """Says that it has 2 to the power of 36 samples."""
    data = sound(58, "FLAC", 0.4)
    return data[:21] + bytes([data[21] | 0x0F]) + b"\xff" * 4 + data[26:]


SOUNDS = {
    "half.wav": (wav(LOW)[:9_000], "cut off"),
    "half.flac": (sound(51, "FLAC")[:20_000], "no whole sound"),
    "half.ogg": (sound(52, "OGG")[:9_000], "cut off"),
    "half.opus": (sound(53, "OGG", subtype="OPUS")[:9_000], "cut off"),
    "half.mp3": (sound(54, "MP3")[:9_000], "cut off"),
    "half.aiff": (sound(55, "AIFF")[:9_000], "cut off"),
    "half.au": (sound(56, "AU")[:9_000], "cut off"),
    "half-packed.wav": (sound(57, "WAV", subtype="IMA_ADPCM")[:9_000], "cut off"),
    "head.wav": (wav(LOW)[:30], "no whole sound"),
    "head.flac": (sound(51, "FLAC")[:60], "no whole sound"),
    "no-hertz.wav": (riff(rate=0), "0 samples a second"),
    "one-hertz.wav": (riff(rate=1), "1 samples a second"),
    "wrong-hertz.wav": (riff(rate=15_999_991), "15,999,991 samples a second"),
    "no-channels.wav": (riff(channels=0), "no whole sound"),
    "no-samples.wav": (wav(LOW[:0]), "without samples"),
    "some-samples.wav": (wav(LOW[:9]), "nothing can be heard"),
    "not-a-number.wav": (wav(np.where(LOW > 0.2, np.nan, LOW).astype(np.float32)), "NaN"),
    "huge.wav": (wav((1e30 * LOW).astype(np.float32)), "samples of up to"),
    "larger.wav": (wav(1e300 * LOW.astype(np.float64)), "samples of up to"),
    "silence.wav": (wav(np.zeros(8_000, dtype=np.float32)), "silent"),
    "standing.wav": (wav(np.full(8_000, 0.5, dtype=np.float32)), "silent"),
    "cancelled.wav": (wav(np.stack([LOW, -LOW], axis=1)), "cancel each other"),
    "long.flac": (lying_flac(), "hours"),
    "text.wav": (b"this is a text, whatever it is called\n" * 9, "no whole sound"),
    "page.mp3": (b"<html>404 Not Found</html>", "a web page and no sound"),
    "pointer.wav": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "nothing.wav": (b"", "an empty file"),
    "a-film.wav": (b"RIFF\x24\0\0\0AVI LIST" + bytes(40), "no whole sound"),
    "a-picture.wav": (png(1), "a PNG and no sound"),
    "no-length.wav": (riff(tone("low", 5059).astype("<i2").tobytes() + WHOLE[::-1], all=10), None),
    "too-long.wav": (riff((20_000 * tone("low", 5060)).astype("<i2").tobytes(), all=0x7FFFFFFF), None),
    "more-said.wav": (riff((20_000 * tone("low", 5061)).astype("<i2").tobytes(), samples=0x7FFFFFF0), None),
    "piped.wav": (riff((20_000 * tone("low", 5062)).astype("<i2").tobytes(), all=0xFFFFFFFF, samples=0xFFFFFFFF), None),
    "odd-rate.wav": (riff((20_000 * tone("low", 5063, 44_101)).astype("<i2").tobytes(), rate=44_101), None),
    "high-rate.wav": (riff((20_000 * tone("low", 5064, 384_001)).astype("<i2").tobytes(), rate=384_001), None),
    "eight.wav": (wav(np.stack([tone("low", number) for number in range(5_065, 5_073)], axis=1)), None),
    "wide.wav": (sound(73, "WAV", 0.4, subtype="PCM_24"), None),
    "loud.wav": (wav(32_768 * tone("low", 5074)), None),
    "an-mp3.wav": (sound(75, "MP3", 0.4), None),
    "telephone.wav": (sound(76, "WAV", 0.4, subtype="ULAW"), None),
}
CASES = [
    pytest.param(kind, name, words, id=f"{kind}: {name}")
    for kind, files in (("image", IMAGES), ("audio", SOUNDS))
    for name, (_, words) in files.items()
]


def prepared(folder, source, kind, **data):
    fields = {"name": "r", "model": "m", "task": f"{kind}-classification", "domains": {"d": source}, "data": data}
    (folder / "recipe.yaml").write_text(json.dumps(fields))
    return prepare(load_recipe(folder / "recipe.yaml"), recipe_folder=folder, cache=folder / "cache")["d"]


def outcome(domain):
    """The files that are left out, with what is said of each, and those that are kept."""
    lines = (domain.folder / "data" / "dropped.jsonl").read_text().splitlines()
    said = " ".join(json.loads(line).get("detail", "") or line for line in lines)
    return said, {row["file"] for split in ("train", "validation", "test") for row in domain.rows(split)}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    found = {}
    for kind, files, write in (("image", IMAGES, write_folders), ("audio", SOUNDS, write_sounds)):
        folder = tmp_path_factory.mktemp(kind)
        broken = sum(words is not None for _, words in files.values()) + 3
        top = write(folder / "files", 11 * broken)
        (own,) = sorted(top.iterdir())[:1]
        for name, (data, _) in files.items():
            (own / name).write_bytes(data)
        ending = ".png" if kind == "image" else ".wav"
        (own / f"folder{ending}").mkdir()
        (own / f"link{ending}").symlink_to("nowhere")
        found[kind] = (own.name, *outcome(prepared(folder, "files", kind, dedupe={"near": False})))
    return found


@pytest.mark.parametrize(("kind", "name", "words"), CASES)
def test_each_is_named_or_used(outcomes, kind, name, words):
    label, said, kept = outcomes[kind]
    place = f"{label}/{name}"
    assert (place in kept) == (words is None)
    if words is not None:
        about = said.partition(place)[2].partition(f"{label}/")[0]
        assert words in about
        assert not any(each in about for each in ("BytesIO", "local variable", "modulo", "object at 0x"))


@pytest.mark.parametrize(("kind", "ending"), [("image", ".png"), ("audio", ".wav")])
def test_what_is_no_file_is_named(outcomes, kind, ending):
    label, said, _ = outcomes[kind]
    assert f"{label}/link{ending}: No such file" in said
    assert f"{label}/folder{ending}: Is a directory" in said


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(tmp_path):
    top = write_folders(tmp_path / "files", 60)
    (top / "bar" / "000.png").chmod(0)
    said, kept = outcome(prepared(tmp_path, "files", "image"))
    assert "bar/000.png: Permission denied" in said
    assert len(kept) == 59


# --- archives and tables ----------------------------------------------------------------------------------------------


def shard(path, count, broken=()):
    with tarfile.open(path, "w") as archive:
        for number in range(count):
            content = png(number)[:60] if number in broken else png(number)
            for ending, data in (("png", content), ("cls", b"ab"[number % 2 :][:1])):
                member = tarfile.TarInfo(f"{number:04}.{ending}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return path


@pytest.mark.parametrize("streaming", [False, True])
def test_broken_images_in_an_archive_are_named(tmp_path, streaming):
    shard(tmp_path / "s.tar", 80, broken=(3, 50))
    said, kept = outcome(prepared(tmp_path, "s.tar", "image", streaming=streaming))
    assert "0003.png" in said
    assert "0050.png" in said
    assert len(kept) == 78


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("cut.tar", lambda data: data[: len(data) // 2 + 300]),
        ("head.tar", lambda data: data[:300]),
        ("noise.tar", lambda data: bytes(range(256)) * 40),
        ("empty.tar", lambda data: b""),
        ("text.tgz", lambda data: b"not found"),
        ("cut.zip", lambda data: data[: len(data) // 2]),
        ("empty.zip", lambda data: b""),
    ],
)
def test_a_broken_archive_is_named(tmp_path, name, spoil, streaming):
    whole = shard(tmp_path / "whole.tar", 80).read_bytes()
    if name.endswith("zip"):
        with zipfile.ZipFile(tmp_path / "whole.zip", "w") as archive:
            for number in range(80):
                archive.writestr(f"{'ab'[number % 2]}/{number}.png", png(number))
        whole = (tmp_path / "whole.zip").read_bytes()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(spoil(whole))
    with pytest.raises(HfadaptError, match="the archive is cut off or broken") as error:
        prepared(tmp_path, f"in/{name}", "image", streaming=streaming)
    assert name in str(error.value)


def table(path, count, spoil):
    rows = [{"image": {"bytes": png(number), "path": f"{number}.png"}, "label": number % 2} for number in range(count)]
    rows[7]["image"] = spoil
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=16)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ({"bytes": png(7)[:80], "path": "7.png"}, "7.png, has 80 bytes that are no whole image"),
        ({"bytes": b"", "path": "7.png"}, "an empty file"),
        ({"bytes": None, "path": "7.png"}, "7.png: No such file"),
        ({"bytes": None, "path": None}, "row 8"),
        (None, "row 8"),
    ],
)
def test_broken_images_in_a_table_are_named(tmp_path, spoil, words, streaming):
    table(tmp_path / "t.parquet", 80, spoil)
    domain = prepared(tmp_path, "t.parquet", "image", streaming=streaming)
    said, kept = outcome(domain)
    assert words in said or '"row": 7' in said
    assert len(kept) == 79


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("place", [slice(4, 34), slice(-200, -8), slice(-300, None)])
def test_a_damaged_table_is_named(tmp_path, place, streaming):
    table(tmp_path / "t.parquet", 80, None)
    data = bytearray((tmp_path / "t.parquet").read_bytes())
    data[place] = bytes(len(data[place]) if place.stop else 0)
    (tmp_path / "t.parquet").write_bytes(data)
    with pytest.raises(HfadaptError, match="no whole Parquet file") as error:
        prepared(tmp_path, "t.parquet", "image", streaming=streaming)
    assert "t.parquet" in str(error.value)
