"""Sounds: what is read and how it is kept, what is refused, what is alike, and what models are given."""

import io
import random
import sys
from unittest import mock

import numpy as np
import pytest
from PIL import Image
from scipy.signal import resample_poly
from tiny_sounds import CLIPS, clip, tone, wav

from hfadapt.core import registry
from hfadapt.core.errors import RequestError
from hfadapt.files import Unusable
from hfadapt.modalities import _audio_changes, audio
from hfadapt.modalities._audio_files import decoded, samples_of
from hfadapt.modalities.audio import KIND, Changed, opened

DIGIT = "7_jackson_37"


def saved(sound, kind, rate=16_000, **options):
    soundfile = pytest.importorskip("soundfile")
    file = io.BytesIO()
    soundfile.write(file, sound, rate, format=kind, **options)
    return file.getvalue()


def loudness(data):
    return float(np.sqrt(np.mean(samples_of(data) ** 2)))


# --- what is given ----------------------------------------------------------------------------------------------------


def test_a_sound_is_given_as_a_file_as_bytes_or_as_samples(tmp_path):
    sound = tone("low", 1)
    path = tmp_path / "a.wav"
    path.write_bytes(wav(sound))
    whole = {"array": sound.astype(float), "sampling_rate": 16_000}
    integers = {"array": (sound * 32767).astype(np.int16), "sampling_rate": np.int64(16_000)}
    kept = [
        samples_of(KIND.take(KIND.given(value).read()).data)
        for value in (path, str(path), path.read_bytes(), {"bytes": path.read_bytes(), "path": None}, whole, integers)
    ]
    for other in kept[1:]:
        np.testing.assert_allclose(other, kept[0], atol=1e-3)
    for none in (7, None, [sound], {"array": sound.reshape(2, 2, -1), "sampling_rate": 16_000}):
        assert KIND.given(none) is None


# --- what is kept -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_every_width_of_a_sample_is_the_same_sound(kind):
    sound = tone("low", 1)
    data = saved(sound, "WAV", subtype=kind)
    with mock.patch.dict(sys.modules, {"soundfile": None}):
        taken = KIND.take(data)
    plain = KIND.take(wav(sound))
    np.testing.assert_allclose(samples_of(taken.data), samples_of(plain.data), atol=0.02 if kind == "PCM_U8" else 1e-3)
    assert taken.facts["loudness"] == pytest.approx(plain.facts["loudness"], abs=0.1)
    assert taken.facts["peak"] == pytest.approx(20 * np.log10(abs(sound).max()), abs=0.2)


@pytest.mark.parametrize("length", [bytes(4), b"\xff" * 4])
def test_a_length_that_was_not_known_when_the_head_was_written(length):
    data = wav(tone("low", 1))
    at = data.index(b"data") + 4
    streamed = data[:4] + length + data[8:at] + length + data[at + 4 :]
    assert KIND.take(streamed).data == KIND.take(data).data


@pytest.mark.parametrize("kind", ["GSM610", "MS_ADPCM"])
def test_packed_samples_of_telephones_are_read_to_their_end(kind):
    sound = tone("low", 2)
    assert KIND.take(saved(sound, "WAV", subtype=kind)).facts["seconds"] == pytest.approx(len(sound) / 16_000, abs=0.1)


@pytest.mark.parametrize("kind", ["FLAC", "OGG", "MP3", "AIFF", "CAF", "W64"])
def test_packed_files_are_the_same_sound(kind):
    sound = tone("low", 2)
    taken, plain = KIND.take(saved(sound, kind)), KIND.take(wav(sound))
    assert KIND.vector(taken.look) @ KIND.vector(plain.look) > KIND.nearness(0.8)
    assert taken.data[:4] == b"RIFF"


def test_one_channel_of_one_rate_at_one_loudness():
    sound = tone("low", 3, rate=44_100)
    taken = KIND.take(wav(np.stack([0.02 * sound, 0.06 * sound], axis=1), 44_100))
    rate_kept, channels = decoded(taken.data)[1], decoded(taken.data)[0].shape[1]
    assert (rate_kept, channels) == (16_000, 1)
    assert loudness(taken.data) == pytest.approx(0.1, rel=0.01)
    assert taken.facts["loudness"] == pytest.approx(20 * np.log10(0.04 * np.sqrt(np.mean(sound**2))), abs=0.05)
    assert taken.facts["rate"] == 44_100
    assert taken.facts["seconds"] == pytest.approx(0.4, abs=0.01)
    assert taken.notes == (
        "recordings of several channels: their mean is used",
        "recordings of 44,100 Hz: made 16,000 Hz",
    )


def test_a_click_does_not_make_what_is_kept_clipped():
    sound = 0.001 * tone("low", 4)
    sound[3000] = 1.0
    assert abs(samples_of(KIND.take(wav(sound)).data)).max() <= 0.991


def test_silence_is_cut_off_at_the_ends_and_stays_inside():
    part, pause = tone("low", 5, seconds=0.2), np.zeros(8_000, dtype=np.float32)
    taken = KIND.take(wav(np.concatenate([pause, part, pause, part, pause])))
    # 50 ms before and after
    assert taken.facts["seconds"] == pytest.approx(0.2 + 0.5 + 0.2 + 0.1, abs=0.01)
    assert "it is cut off" in taken.notes[0]


def test_a_long_recording_is_kept_in_part_and_a_very_long_one_refused():
    taken = KIND.take(wav(np.tile(tone("low", 6), 160)))
    assert taken.facts["seconds"] == 60
    assert "the first 60 are used" in taken.notes[0]
    with pytest.raises(Unusable) as caught:
        KIND.take(wav(np.full(100 * 36_000, 100, dtype=np.uint8), 100))
    assert caught.value.reason == "sound-too-long"
    assert "10.0 hours" in caught.value.detail


def test_what_is_kept_is_kept_as_it_is_again():
    for name in (DIGIT, "3_theo_10", "0_george_37"):
        once = KIND.take(clip(name))
        again = KIND.take(once.data)
        np.testing.assert_allclose(samples_of(again.data), samples_of(once.data), atol=1e-3)
        assert again.notes == ()


def test_a_file_that_was_written_into_a_pipe():
    data = bytearray(wav((32767 * tone("low", 7)).astype(np.int16)))
    data[4:8] = data[40:44] = b"\xff\xff\xff\xff"
    assert KIND.take(bytes(data)).facts["seconds"] == pytest.approx(0.4, abs=0.01)


# --- what is refused --------------------------------------------------------------------------------------------------


def without_rate(data):
    return data[:24] + bytes(4) + data[28:]


SOUND = tone("low", 8)
BROKEN = {
    "empty": (b"", "an empty file"),
    "text": (b"this is not a sound, whatever its name is\n", "no whole sound"),
    "web page": (b"<!DOCTYPE html><html>404</html>", "a web page"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(100), " has a PNG and no sound"),
    "head of a wav": (wav(SOUND)[:30], "no whole sound"),
    "head alone": (wav(SOUND)[:58], "without samples"),
    "half a wav": (wav(SOUND)[: len(wav(SOUND)) // 2], "cut off"),
    "half a wav, odd": (wav((SOUND * 32767).astype(np.int16))[:5001], "cut off"),
    "no samples": (wav(SOUND[:0]), "without samples"),
    "0 Hz": (without_rate(wav((SOUND * 32767).astype(np.int16))), "says it has 0 samples a second"),
    "no numbers": (wav(np.where(SOUND > 0.2, np.nan, SOUND).astype(np.float32)), "NaN"),
    "infinite": (wav(np.where(SOUND > 0.2, np.inf, SOUND).astype(np.float32)), "NaN or infinite"),
    "a phone's": (b"\0\0\0\x20ftypM4A " + bytes(200), "M4A, which is not read: write it as WAV"),
    "aac": (b"\xff\xf1\x50\x80" + bytes(200), "AAC, which is not read"),
    "silent": (wav(np.zeros(8_000, dtype=np.float32)), "silent"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_sounds_are_refused_in_words(name):
    data, words = BROKEN[name]
    with pytest.raises(Unusable) as caught:
        KIND.take(data)
    assert words in caught.value.detail
    assert "BytesIO" not in caught.value.detail


@pytest.mark.parametrize(("kind", "words"), [("FLAC", "no whole sound"), ("MP3", "cut off")])
def test_half_a_packed_file(kind, words):
    with pytest.raises(Unusable) as caught:
        KIND.take(saved(tone("low", 8, seconds=5), kind)[:9000])
    assert words in caught.value.detail


@pytest.mark.parametrize("kind", ["FLAC", "OGG", "MP3"])
def test_what_only_soundfile_reads_names_the_extra(kind):
    data, telephone = saved(SOUND, kind), saved(SOUND, "WAV", subtype="ULAW")
    with mock.patch.dict(sys.modules, {"soundfile": None}):
        with pytest.raises(RequestError, match=f"{kind} is read by soundfile") as caught:
            KIND.take(data)
        with pytest.raises(RequestError, match="this kind of WAV is read by soundfile"):
            KIND.take(telephone)
        assert "hfadapt[sound]" in str(caught.value)
        for name in ("text", "empty", "web page", "half a wav"):
            with pytest.raises(Unusable):
                KIND.take(BROKEN[name][0])


# --- what is alike ----------------------------------------------------------------------------------------------------


def likeness(one, other):
    return float(KIND.vector(KIND.take(one).look) @ KIND.vector(KIND.take(other).look))


def noisy(sound):
    white = np.random.default_rng(0).standard_normal(len(sound), dtype=np.float32)
    return sound + 0.03 * np.sqrt(np.mean(sound**2)) * white


@pytest.mark.parametrize(
    "copied",
    [
        lambda sound: wav(0.2 * sound, 8_000),
        lambda sound: wav(resample_poly(sound, 2, 1).astype(np.float32), 16_000),
        lambda sound: wav(np.pad(sound, (3_000, 2_000)), 8_000),
        lambda sound: wav(noisy(sound), 8_000),
        lambda sound: saved(sound, "OGG", 8_000),
        lambda sound: saved(resample_poly(sound, 2, 1), "MP3", 16_000),
        lambda sound: saved(np.stack([sound, sound], axis=1), "FLAC", 8_000),
    ],
    ids=["quieter", "other rate", "silence round it", "noise", "OGG", "MP3", "two channels"],
)
def test_a_copy_is_nearly_the_same(copied):
    for name in (DIGIT, "6_lucas_20", "1_george_30"):
        sound, rate = decoded(clip(name))
        assert rate == 8_000
        assert likeness(clip(name), copied(sound[:, 0].astype(np.float32))) >= KIND.nearness(0.8)


def test_two_takes_of_one_word_by_one_speaker_are_not():
    paths = sorted(CLIPS.glob("*.wav"))
    assert len(paths) == 120
    vectors = np.stack([KIND.vector(KIND.take(path.read_bytes()).look) for path in paths])
    products = vectors @ vectors.T - 2 * np.eye(len(paths))
    assert products.max() < KIND.nearness(0.8)
    # They are the most alike of all, though.
    word = np.array([path.name.rpartition("_")[0] for path in paths])
    assert np.mean(word[products.argmax(axis=1)] == word) > 0.3


def test_the_exact_hash_is_of_the_samples():
    looks = {KIND.take(clip(name)).look.split()[0] for name in (DIGIT, "3_theo_10")}
    sound, rate = decoded(clip(DIGIT))
    looks.add(KIND.take(wav(sound[:, 0], rate)).look.split()[0])
    assert len(looks) == 2


# --- what models are given --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(_audio_changes.CHANGES))
def test_changes_are_drawn_from_their_seed_and_change(name):
    data = KIND.take(clip(DIGIT)).data
    one, again, other = (opened(Changed(data, ((name, 0.5 if name in PLAIN else 1.0, seed),))) for seed in (3, 3, 4))
    assert np.array_equal(one, again)
    assert one.dtype == np.float32
    assert len(one) != len(opened(data)) or not np.array_equal(one, opened(data))
    if name not in ("telephone", "quieter", "pace"):
        assert len(one) != len(other) or not np.array_equal(one, other)
    assert abs(one).max() < 2


PLAIN = ("hiss", "quieter", "pace", "reverb")


def test_no_share_no_change():
    data = KIND.take(clip(DIGIT)).data
    for name in KIND.operations:
        assert np.array_equal(opened(Changed(data, ((name, 0.0, 1),))), opened(data))


def test_noise_is_as_loud_as_it_says():
    sound = opened(KIND.take(clip(DIGIT)).data)
    added = _audio_changes.hiss(sound, 0.1, random.Random(1)) - sound
    assert np.mean(added**2) / np.mean(sound**2) == pytest.approx(0.1, rel=0.1)


def test_spec_augment_silences_a_band_and_a_span_and_leaves_the_rest():
    spec_augment = _audio_changes.spec_augment
    sound = np.random.default_rng(0).standard_normal(_audio_changes.RATE).astype(np.float32)
    bands, spans = [], []
    for seed in range(40):
        changed = spec_augment(sound, 1.0, random.Random(seed))
        assert (changed.dtype, changed.shape) == (sound.dtype, sound.shape)
        silent = np.flatnonzero(changed == 0)
        spans.append(len(silent) / len(sound))
        assert len(silent) == 0 or silent[-1] - silent[0] + 1 == len(silent), "one span"
        start, end = (silent[0], silent[-1]) if len(silent) else (len(sound), 0)
        whole = changed[:start] if start > len(sound) - end else changed[end + 1 :]
        power = np.abs(np.fft.rfft(whole)) ** 2
        bands.append(np.mean(power < 0.01 * np.mean(power)))
    assert max(spans) <= 0.2
    assert np.mean(spans) == pytest.approx(0.1, abs=0.03)
    assert max(bands) > 0.2
    assert np.array_equal(spec_augment(sound, 0.0, random.Random(1)), sound)


def test_a_telephone_takes_low_and_high_out():
    sound = opened(KIND.take(wav(tone("low", 1))).data)
    kept = _audio_changes.telephone(sound, 1.0, random.Random(1))
    assert np.mean(kept**2) > 0.7 * np.mean(sound**2)
    hum = np.sin(2 * np.pi * 60 * np.arange(16_000) / 16_000).astype(np.float32)
    assert np.mean(_audio_changes.telephone(hum, 1.0, random.Random(1)) ** 2) < 0.01


def test_whisper_hears_clips_of_one_length(hearing):
    processor = KIND.load_processor(str(hearing / "whisper"), None)
    assert processor.positions == KIND.sized(processor, 8).positions == 50
    made = processor.inputs([KIND.take(clip(DIGIT)).data] * 2)
    assert {name: values.shape for name, values in made.items()} == {"input_features": (2, 80, 100)}
    assert processor.natural({"seconds": 0.1}) == 50


def test_others_hear_clips_as_long_as_planned(hearing):
    processor = KIND.load_processor(str(hearing / "wave"), None)
    data = KIND.take(clip(DIGIT)).data
    seconds = len(opened(data)) / 16_000
    needed = processor.natural({"seconds": seconds})
    whole, half = KIND.sized(processor, needed), KIND.sized(processor, needed // 2)
    assert len(opened(data)) <= whole.inputs([data])["input_values"].shape[1] < len(opened(data)) + 320
    made = half.inputs([data])
    assert made["input_values"].shape[1] == half.hearing.samples < len(opened(data))
    short = whole.inputs([data, KIND.take(wav(tone("low", 1, seconds=0.1))).data])
    assert short["attention_mask"].sum(axis=1)[1] < short["attention_mask"].sum(axis=1)[0]


@pytest.mark.parametrize("name", ["whisper", "wave"])
@pytest.mark.parametrize("length", [50, 20])
def test_what_is_traced_is_what_is_given(hearing, name, length):
    from types import SimpleNamespace

    processor = KIND.sized(KIND.load_processor(str(hearing / name), None), length)
    given = processor.inputs([KIND.take(clip(DIGIT)).data] * 3)
    config = SimpleNamespace(**KIND.shaped(processor.config.to_dict(), length))
    traced = KIND.traced(config, 3, 1)
    assert {name: tuple(value.shape) for name, value in traced.items()} == {
        name: values.shape for name, values in given.items() if name != "attention_mask"
    }


def test_a_base_without_a_feature_extractor_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "whisper"}')
    with pytest.raises(RequestError, match="no feature extractor"):
        KIND.load_processor(str(tmp_path), None)


def test_a_canary_is_a_sound_and_a_preview_is_a_picture():
    data = KIND.random(random.Random(3))
    assert KIND.random(random.Random(3)) == data != KIND.random(random.Random(4))
    assert KIND.take(data).facts["seconds"] == pytest.approx(0.5, abs=0.05)
    picture, kind = KIND.preview(KIND.take(wav(tone("high", 1))).data, 48)
    found = np.asarray(Image.open(io.BytesIO(picture)))
    assert kind == "image/png"
    assert found.shape == (48, 96)
    # A tone of about 2.5 of 8 kHz is a line in the lower half.
    assert audio.RATE == 16_000
    assert 0.5 < found.mean(axis=1).argmin() / 48 < 0.8


def test_no_two_modalities_call_their_values_alike():
    kinds = [registry.modality(name) for name in registry.names("modalities")]
    assert len({kind.noun for kind in kinds}) == len({kind.nouns for kind in kinds}) == len(kinds)
