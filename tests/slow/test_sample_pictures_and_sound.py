"""The sample models and data for pictures and sound as they really are. They are fetched on first use."""

from __future__ import annotations

import io
import wave
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import sklearn
import torch
from PIL import Image
from pyarrow import parquet
from transformers import (
    AutoImageProcessor,
    AutoModelForAudioClassification,
    AutoModelForImageClassification,
    AutoProcessor,
    Dinov2Model,
    WhisperForConditionalGeneration,
)

from hfadapt.core import samples

pytestmark = pytest.mark.slow
CLIPS = Path(__file__).parents[1] / "data_files" / "spoken_digits"


@pytest.fixture(scope="module")
def photographs():
    """A flower, and a palace in China."""
    folder = Path(sklearn.__file__).parent / "datasets" / "images"
    return [Image.open(folder / name) for name in ("flower.jpg", "china.jpg")]


def loaded(model_class, folder, **options):
    """The model, and the keys that its files lack or have too many."""
    model, found = model_class.from_pretrained(folder, output_loading_info=True, **options)
    assert not found["mismatched_keys"]
    return model.eval(), set(found["missing_keys"]), set(found["unexpected_keys"])


def pixels(folder, photographs):
    return AutoImageProcessor.from_pretrained(folder, backend="pil")(photographs, return_tensors="pt")


def test_dinov2_sees_what_belongs_together(photographs):
    folder = samples.model_path("dinov2-small")
    classifier, missing, unexpected = loaded(AutoModelForImageClassification, folder, num_labels=3)
    assert (missing, unexpected) == ({"classifier.weight", "classifier.bias"}, set())
    model, missing, unexpected = loaded(Dinov2Model, folder)
    assert (missing, unexpected) == (set(), set())
    assert sum(each.numel() for each in model.parameters()) == 22_056_576
    mirrored = [each.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for each in photographs]
    shown = pixels(folder, [*photographs, *mirrored])
    assert shown["pixel_values"].shape == (4, 3, 224, 224)
    with torch.no_grad():
        flower, palace, mirrored_flower, mirrored_palace = model(**shown).pooler_output.numpy()
        assert classifier(**shown).logits.shape == (4, 3)

    def likeness(a, b):
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    assert min(likeness(flower, mirrored_flower), likeness(palace, mirrored_palace)) > 0.95
    assert likeness(flower, palace) < 0.7


def test_efficientnet_names_what_it_sees(photographs):
    folder = samples.model_path("efficientnet-lite0")
    model, missing, unexpected = loaded(AutoModelForImageClassification, folder)
    assert (missing, unexpected) == (set(), set())
    with torch.no_grad():
        shares, classes = model(**pixels(folder, photographs)).logits.softmax(-1).max(-1)
    # Of ImageNet: daisy and palace.
    assert classes.tolist() == [985, 698]
    assert min(shares.tolist()) > 0.25


def test_whisper_understands_digits():
    folder = samples.model_path("whisper-tiny.en-5s")
    model, missing, unexpected = loaded(WhisperForConditionalGeneration, folder)
    assert (missing, unexpected) == (set(), set())
    _, missing, unexpected = loaded(AutoModelForAudioClassification, folder, num_labels=10)
    assert {name.split(".")[0] for name in missing} == {"classifier", "projector"}
    assert all(name.startswith("model.decoder.") for name in unexpected)
    sounds, digits = [], []
    for path in sorted(CLIPS.glob("*_lucas_*.wav")):
        with wave.open(str(path)) as file:
            assert file.getframerate() == 8000
            heard = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768
        sounds.append(np.interp(np.arange(2 * len(heard)) / 2, np.arange(len(heard)), heard))
        digits.append(int(path.name[0]))
    processor = AutoProcessor.from_pretrained(folder)
    features = processor(sounds, sampling_rate=16000, return_tensors="pt")
    assert features["input_features"].shape == (20, 80, 500)
    texts = processor.batch_decode(model.generate(**features, max_new_tokens=3), skip_special_tokens=True)
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    right = [str(digit) in text or words[digit] in text.lower() for digit, text in zip(digits, texts, strict=True)]
    assert sum(right) >= 18, list(zip(digits, texts, strict=True))


DATA = {
    "digits/mnist": ("PNG", (28, 28), {str(digit): 500 for digit in range(10)}),
    "textile/defects": ("JPEG", (250, 250), {"nominal": 1000, "local": 500, "global": 500}),
    "solar/mono": ("PNG", (300, 300), {"intact": 588, "defective": 313}),
    "solar/poly": ("PNG", (300, 300), {"intact": 920, "defective": 402}),
}


@pytest.mark.parametrize("name", DATA)
def test_pictures_and_labels(name):
    form, size, labels = DATA[name]
    rows = parquet.read_table(samples.dataset(name).path).to_pylist()
    assert Counter(row["label"] for row in rows) == labels
    assert len({row["image"]["path"] for row in rows}) == len(rows)
    for row in rows[:: len(rows) // 10]:
        picture = Image.open(io.BytesIO(row["image"]["bytes"]))
        assert (picture.format, picture.size) == (form, size)
        assert np.asarray(picture).std() > 1
