"""Kotlin for Android: its numbers of a picture are those of Python, where a compiler is here to show it."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import BitImageProcessorPil, ViTImageProcessorPil

from hfadapt.core import registry
from hfadapt.formats import _litert_android
from hfadapt.formats import _litert_file as litert_file
from hfadapt.formats._android import read_as

STAND_IN = """
import java.io.DataInputStream
import java.io.File

class Bitmap(val width: Int, val height: Int, private val values: IntArray) {
    fun getPixels(to: IntArray, offset: Int, stride: Int, x: Int, y: Int, wide: Int, high: Int) {
        for (row in 0 until high) for (column in 0 until wide) {
            to[offset + row * stride + column] = values[(y + row) * width + x + column]
        }
    }
}

fun main(given: Array<String>) {
    val from = DataInputStream(File(given[0]).inputStream().buffered())
    val width = from.readInt()
    val height = from.readInt()
    val picture = Bitmap(width, height, IntArray(width * height) { from.readInt() })
    File(given[1]).printWriter().use { to ->
        for (plane in pixels(picture)[0]) for (row in plane) for (value in row) to.println(value)
    }
}
"""
RUNTIME = (
    """
package android.content.res
import java.io.FileInputStream
class AssetFileDescriptor : java.io.Closeable {
    val startOffset = 0L
    val declaredLength = 0L
    fun createInputStream() = FileInputStream("")
    override fun close() {}
}
class AssetManager { fun openFd(name: String) = AssetFileDescriptor() }
""",
    """
package android.graphics
class Bitmap(val width: Int, val height: Int) {
    fun getPixels(to: IntArray, offset: Int, stride: Int, x: Int, y: Int, wide: Int, high: Int) {}
}
""",
    """
package org.tensorflow.lite
class Interpreter(file: java.nio.ByteBuffer, options: Options) {
    class Options { fun setNumThreads(number: Int) = this }
    fun runSignature(given: Map<String, Any>, into: Map<String, Any>, name: String) {}
    fun close() {}
}
""",
)
KOTLIN = shutil.which("kotlinc"), shutil.which("java")
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
SQUARE = {"size": {"height": 32, "width": 32}, "image_mean": MEAN, "image_std": STD}
MIDDLE = {
    "size": {"shortest_edge": 36},
    "crop_size": {"height": 32, "width": 32},
    "do_center_crop": True,
    "image_mean": MEAN,
    "image_std": STD,
}
PROCESSORS = {
    "squeezed": ViTImageProcessorPil(**SQUARE, resample=2),
    "cut from the middle": BitImageProcessorPil(**MIDDLE, resample=3),
    "lanczos": BitImageProcessorPil(**MIDDLE, resample=1),
    "not normalised": ViTImageProcessorPil(**SQUARE, resample=3, do_normalize=False),
    "not brought to one": ViTImageProcessorPil(**SQUARE, resample=2, do_rescale=False),
}


def read(processor, **changes):
    """The code and the note for a file whose preprocessing is a processor's, with changes."""
    settings = {**json.loads(processor.to_json_string()), **changes}
    about = {"hfadapt.preprocessing": json.dumps(settings)}
    return read_as({"pixel_values": (1, 3, 32, 32)}, about, "")


@pytest.mark.parametrize("name", PROCESSORS)
def test_what_a_processor_does_is_in_the_code(name):
    code, note = read(PROCESSORS[name])
    assert "FloatArray(32) { x ->" in code
    assert ("36 * picture.width / minOf" in code) == ("shortest_edge" in PROCESSORS[name].size)
    assert ("0.485f" in code) == PROCESSORS[name].do_normalize
    assert ("* 1f" in code) == (not PROCESSORS[name].do_rescale)
    assert "preprocessor_config.json" in note


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"do_flip_channel_order": True}, "(do_flip_channel_order)"),
        ({"crop_pct": 0.875}, "(crop_pct)"),
        ({"resample": 0}, "in Kotlin: port it"),
        ({"size": {"shortest_edge": 30}}, "in Kotlin: port it"),
        ({"do_center_crop": False}, "in Kotlin: port it"),
        ({"do_resize": False}, "in Kotlin: port it"),
    ],
)
def test_what_the_code_cannot_follow_is_said_in_its_place(changes, said):
    code, note = read(PROCESSORS["cut from the middle"], **changes)
    assert code == ""
    assert said in note


@pytest.mark.slow
@pytest.mark.skipif(None in KOTLIN, reason="no kotlinc and java here")
@pytest.mark.parametrize("name", PROCESSORS)
def test_its_numbers_are_those_of_python(name, tmp_path):
    code, _ = read(PROCESSORS[name])
    (tmp_path / "a.kt").write_text(STAND_IN + code)
    subprocess.run(
        [KOTLIN[0], "a.kt", "-include-runtime", "-d", "a.jar"], cwd=tmp_path, check=True, capture_output=True
    )
    generator = np.random.default_rng(0)
    settings = PROCESSORS[name].to_dict()
    step = (1 / 255 if settings["do_rescale"] else 1) / (min(STD) if settings["do_normalize"] else 1)
    # Pillow begins with the columns of a high picture: what is rounded between may be other whole numbers.
    for size, steps in (((97, 61), 0), ((61, 97), 2), ((32, 32), 0)):
        colours = generator.integers(0, 256, (*size[::-1], 4), dtype=np.uint8)
        colours[: size[1] // 2, :, 3] = 255
        argb = (colours[..., [3, 0, 1, 2]].astype(">u4") << [24, 16, 8, 0]).sum(-1).astype(">u4")
        (tmp_path / "a.bin").write_bytes(np.array(size, dtype=">u4").tobytes() + argb.tobytes())
        subprocess.run([KOTLIN[1], "-cp", "a.jar", "AKt", "a.bin", "a.txt"], cwd=tmp_path, check=True)
        found = np.loadtxt(tmp_path / "a.txt").reshape(3, 32, 32)
        picture = Image.fromarray(colours, "RGBA")
        plain = Image.alpha_composite(Image.new("RGBA", size, "white"), picture).convert("RGB")
        expected = PROCESSORS[name](plain, return_tensors="np")["pixel_values"][0]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 + steps * step)


@pytest.mark.parametrize("name", [name for name in registry.names("tasks") if not registry.task(name).writes])
def test_what_the_numbers_say_is_told_for_every_task(name):
    assert registry.task(name).meaning


@pytest.fixture
def opened(monkeypatch):
    """Says what a file takes and gives, which need not be there."""

    def says(shapes, answers):
        kinds = {name: "int32" if "i" in name[:2] else "float32" for name in shapes}
        monkeypatch.setattr(
            litert_file, "opened", lambda path, threads: litert_file.Opened(None, kinds, shapes, answers)
        )

    return says


PAGES = {
    "text-classification": ({"input_ids": (1, 8)}, {"logits": (1, 2)}, ["a", '$"b']),
    "token-classification": ({"input_ids": (1, 8)}, {"logits": (1, 8, 2)}, ["a", "b"]),
    "text-regression": ({"input_ids": (1, 8)}, {"logits": (1, 1)}, []),
    "image-multi-label": ({"pixel_values": (1, 3, 32, 32)}, {"logits": (1, 2)}, ["a", "b"]),
    "audio-classification": ({"input_features": (1, 80, 100)}, {"logits": (1, 2)}, ["a", "b"]),
}


def page(task, opened):
    shapes, answers, labels = PAGES[task]
    opened(shapes, answers)
    settings = {**json.loads(PROCESSORS["squeezed"].to_json_string()), "sampling_rate": 16000}
    if not task.startswith("audio"):
        del settings["sampling_rate"]
    about = {} if "text" in task or "token" in task else {"hfadapt.preprocessing": json.dumps(settings)}
    return _litert_android.android(Path("model.tflite"), registry.task(task), labels, about, 0)


@pytest.mark.parametrize("task", PAGES)
def test_only_classes_are_named_and_what_the_numbers_say_is_told(task, opened):
    text = page(task, opened)
    assert registry.task(task).meaning in text
    assert ("LABELS" in text) == bool(PAGES[task][2])


@pytest.mark.slow
@pytest.mark.skipif(None in KOTLIN, reason="no kotlinc and java here")
def test_it_compiles(opened, tmp_path):
    for number, text in enumerate(RUNTIME):
        (tmp_path / f"stand_in_{number}.kt").write_text(text)
    for task in PAGES:
        code = page(task, opened).split("```kotlin\n")[1].split("```")[0]
        (tmp_path / f"{task}.kt").write_text(f"package {task.replace('-', '_')}\n{code}")
    files = [path.name for path in tmp_path.glob("*.kt")]
    done = subprocess.run([KOTLIN[0], *files, "-d", "out"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
