"""Sound: read once, kept as one channel of 16 kHz at one loudness, and given to a model by transformers' processors."""

from __future__ import annotations

import hashlib
import io
import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from hfadapt.core.errors import RequestError
from hfadapt.files import Blob, Unusable
from hfadapt.files.stored import Stored
from hfadapt.modalities import Modality, Row, Taken
from hfadapt.modalities._audio_changes import CHANGES, RATE
from hfadapt.modalities._audio_files import SUFFIXES, UNREAD, decoded, samples_of, written
from hfadapt.modalities._later import Changed, later

if TYPE_CHECKING:
    import numpy as np

STORED_SECONDS = 60
"""As much of a recording is kept; models that are adapted here hear less."""
SILENCE = 0.01
"""What stays below this share of the peak, 40 dB under it, is silence."""
MOST_STEPS = 2_000
"""Of resampling: a rate such as 44,101 Hz is taken for one that is less than a millionth away."""
MARGIN = RATE // 20
"""Samples that are kept before the first and after the last that is not silence: 50 ms."""
LOUDNESS, PEAK = 0.1, 0.99
"""Root mean square of what is kept, -20 dBFS, or less where its peak would be higher than this."""
LOUDEST = 2.0**32
"""Samples in floating point may be as large as integers of 32 bits; larger ones are no sound."""
TIMES, BANDS, RANGE = 32, 32, 2.5
"""A sound is compared by the energy in so many parts of its time and bands, within so many powers of ten (25 dB)."""
LOOK_HZ = (100, 2_000)
LOOK_WINDOW, LOOK_HOP = 1024, 64
CORE = 0.1
"""The part that is compared begins and ends where the energy reaches this share of its highest."""
LIBRARY_BYTES, OPENING_BYTES = 32 << 20, 40
"""Of scipy's filters and the processors, and of each sample in a batch; measured with Whisper."""
CUT_SECONDS = 0.05
"""So little of a sound is not missed: positions are wider."""
CLIP = "clip_positions"
"""Of a config, set by `Audio.shaped`: positions of the clips that a model is to be given."""


def opened(value: bytes | Stored | Changed) -> np.ndarray:
    """The samples (N,) float32 behind a kept value, at 16 kHz."""
    changed = Changed.of(value)
    sound = samples_of(bytes(changed.kept))
    for name, share, seed in changed.steps:
        sound = CHANGES[name](sound, share, random.Random(seed))
    return sound


@dataclass(frozen=True)
class Hearing:
    """What a model hears, from its config.

    Args:
        shape: Of one clip, without the batch: (samples,), (bands, frames) or (frames, bands).
        name: Of that input.
        positions: Places in time, or of a spectrogram, that the clip takes in the model.
        step, first: Samples of each further position, and of the first.
        unit: Samples that its processor counts as one.
        fixed: Whether the model takes clips of one length alone.
    """

    name: str
    shape: tuple[int, ...]
    positions: int
    step: int
    first: int
    unit: int = 1
    fixed: bool = False

    @classmethod
    def of(cls, config: Any, positions: int) -> Hearing:
        """Of clips of so many positions, where the model is free to choose."""
        hop = RATE // 100
        if bands := getattr(config, "feature_projection_input_dim", None):
            # Two frames of 10 ms side by side.
            return cls("input_features", (positions, bands), positions, 2 * hop, 2 * hop, hop)
        if kernels := getattr(config, "conv_kernel", None):
            step, first = 1, 1
            for kernel, stride in zip(kernels, config.conv_stride, strict=True):
                first, step = first + (kernel - 1) * step, step * stride
            return cls("input_values", (first + (positions - 1) * step,), positions, step, first)
        if most := getattr(config, "max_source_positions", None):
            return cls("input_features", (config.num_mel_bins, 2 * most), most, 2 * hop, 2 * hop, fixed=True)
        frames, bands, patch = config.max_length, config.num_mel_bins, config.patch_size
        places = ((bands - patch) // config.frequency_stride + 1) * ((frames - patch) // config.time_stride + 1) + 2
        return cls("input_values", (frames, bands), places, frames * hop // places, 0, fixed=True)

    @property
    def samples(self) -> int:
        """Of a clip."""
        return self.first + (self.positions - 1) * self.step

    @property
    def arguments(self) -> dict[str, Any]:
        """What the processor is given so that it makes such clips; models of one length have it in their settings."""
        clip = {"padding": "max_length", "truncation": True, "max_length": self.samples // self.unit}
        return {} if self.fixed else clip


@dataclass(frozen=True)
class Processor:
    """Makes a model's inputs of sounds: transformers' own processor of the model, for clips of one length.

    Args:
        inner: The processor of transformers.
        config: Of the model.
        hearing: What the model hears of a clip.
    """

    inner: Any
    config: Any
    hearing: Hearing
    name_or_path: str
    pad_token_id: int | None = None
    eos_token_id: int | None = None
    chat_template: str | None = None

    def at(self, positions: int) -> Processor:
        """For clips of at most so many positions."""
        return replace(self, hearing=Hearing.of(self.config, min(positions, self._most)))

    @property
    def _most(self) -> int:
        return max(1, (STORED_SECONDS * RATE - self.hearing.first) // self.hearing.step + 1)

    @property
    def positions(self) -> int:
        """Positions of a clip."""
        return self.hearing.positions

    def natural(self, row: Row) -> int:
        """Positions that a prepared row's sound takes."""
        if self.hearing.fixed:
            return self.positions
        samples = math.ceil(float(row["seconds"]) * RATE)
        return min(self._most, max(1, math.ceil((samples - self.hearing.first) / self.hearing.step) + 1))

    def inputs(self, values: Sequence[bytes | Stored | Changed]) -> dict[str, np.ndarray]:
        """What the model is given (B, …) in float32, and `attention_mask` where the processor makes one.

        Sounds are cut at the length of the clip, and padded to it.
        """
        from scipy.signal import resample_poly

        rate = int(self.inner.sampling_rate)
        sounds = [opened(value) for value in values]
        if rate != RATE:
            sounds = [resample_poly(sound, rate, RATE) for sound in sounds]
        made = self.inner(sounds, sampling_rate=rate, return_tensors="np", **self.hearing.arguments)
        return {name: made[name] for name in (self.hearing.name, "attention_mask") if name in made}

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes preprocessor_config.json."""
        self.inner.save_pretrained(folder)


class Audio(Modality):
    """Sounds, read by scipy and soundfile."""

    name = "audio"
    noun, nouns = "recording", "recordings"
    unit = "positions"
    imports = "import soundfile\nfrom transformers import AutoFeatureExtractor"
    reading = (
        'processor = AutoFeatureExtractor.from_pretrained(".")\n'
        "# One channel at the processor's rate, without silence at its ends, with a root mean square of 0.1.\n"
        "sound, rate = soundfile.read(example)\n"
        'inputs = dict(processor(sound, sampling_rate=rate, return_tensors="np", **{arguments}))'
    )
    one_size = True
    suffixes, unread = SUFFIXES, UNREAD
    # A silent one is left out and counted, as it can be read.
    refusals = ("not-a-sound", "sound-too-long")
    component = 'gr.Audio(label="LABEL", type="filepath", format="wav")'
    played_as = "audio/wav"
    accepted = "a path, bytes of a file, samples as {'array': …, 'sampling_rate': 16000}, or a list of these"
    facts = {"seconds": "s", "loudness": "dBFS", "peak": "dBFS", "rate": "Hz"}
    operations = {name: partial(later, name) for name in ("speed", "shift", "noise", "gain", "spec_augment")}
    # As recordings differ; and what is hidden from features.
    trials = ({"noise": 0.5, "gain": 0.5, "shift": 0.5, "speed": 0.5}, {"spec_augment": 1.0})
    perturbations = {
        "noise": (partial(later, "hiss"), 0.1),
        "quieter": (partial(later, "quieter"), 0.75),
        "speed": (partial(later, "pace"), 0.1),
        "telephone": (partial(later, "telephone"), 1.0),
        "reverb": (partial(later, "reverb"), 0.5),
    }

    def load_processor(self, path: str, revision: str | None) -> Processor:
        """The model's feature extractor.

        Raises:
            RequestError: there is none, or it cannot be read.
        """
        from transformers import AutoConfig, AutoFeatureExtractor

        try:
            config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False)
            inner = AutoFeatureExtractor.from_pretrained(path, revision=revision, trust_remote_code=False)
            return Processor(inner, config, Hearing.of(config, 1), path).at(1 << 30)
        except Exception as error:
            raise RequestError(
                "the base has no feature extractor for sounds that can be read",
                place=path,
                got=f"{type(error).__name__}: {' '.join(str(error).split())}"[:300],
                allowed="a preprocessor_config.json beside its weights",
                fix="put it there: AutoFeatureExtractor.from_pretrained(MODEL).save_pretrained(FOLDER)",
            ) from None

    def sized(self, processor: Processor, max_length: int) -> Processor:
        """The processor for clips of at most `max_length` positions."""
        return processor.at(max_length)

    def clipped(self, processor: Processor, row: Row) -> tuple[float, float, str] | None:
        """Seconds of a sound, and those of a clip, where this is shorter."""
        length, clip = float(row["seconds"]), processor.hearing.samples / RATE
        return (length, clip, "seconds") if length > clip + CUT_SECONDS else None

    def given(self, value: Any) -> Blob | None:
        """A path, bytes, or samples (N,) or (N, channels) with their rate, as the datasets library decodes sounds."""
        import numpy as np
        from scipy.io import wavfile

        if isinstance(value, Mapping) and {"array", "sampling_rate"} <= value.keys():
            samples, file = np.asarray(value["array"]), io.BytesIO()
            samples = samples.astype(np.float32) if samples.dtype.kind == "f" else samples
            known = samples.dtype in (np.float32, np.int16, np.int32)
            if not known or samples.ndim not in (1, 2) or int(value["sampling_rate"]) < 1:
                return None
            wavfile.write(file, int(value["sampling_rate"]), samples)
            return Blob("", file.getvalue())
        return super().given(value)

    def arguments(self, config: Any, max_length: int) -> Mapping[str, Any]:
        """The length of a clip, for models that are free to choose it."""
        return Hearing.of(config, max_length).arguments

    def identity(self, processor: Processor) -> Any:
        """The settings of transformers' processor."""
        return json.loads(processor.inner.to_json_string())

    def shaped(self, config: Mapping[str, Any], length: int) -> Mapping[str, Any]:
        """With the positions of a clip; nothing is hidden at random, as no base is loaded so."""
        return {**config, CLIP: length, "apply_spec_augment": False}

    def traced(self, config: Any, rows: int, length: int) -> dict[str, Any]:
        """What the model hears of a clip (rows, …)."""
        import torch

        hearing = Hearing.of(config, int(getattr(config, CLIP, length)))
        return {hearing.name: torch.zeros(rows, *hearing.shape)}

    def opening_bytes(self, config: Mapping[str, Any], rows: int, length: int) -> int:
        """The libraries, and of each sample what a spectrogram is made of: windows and their spectrum."""
        return LIBRARY_BYTES + rows * Hearing.of(SimpleNamespace(**config), length).samples * OPENING_BYTES

    def take(self, data: bytes) -> Taken:
        """Reads a sound: the mean of its channels at 16 kHz, silence at its ends cut off, brought to -20 dBFS.

        It is kept as 16-bit WAV, at most its first minute. Raises RequestError where only soundfile reads it, and that
        is not installed.
        """
        import numpy as np
        from scipy.signal import resample_poly

        sound, rate = decoded(data)
        if not np.isfinite(sound).all():
            raise Unusable("not-a-sound", " has samples that are no numbers (NaN or infinite)")
        if (most := float(abs(sound).max())) > LOUDEST:
            raise Unusable("not-a-sound", f" has samples of up to {most:.0e}, where 1 is the loudest")
        notes, channels = [], sound.shape[1]
        if channels > 1:
            notes.append("recordings of several channels: their mean is used")
        sound = sound.mean(axis=1)
        if rate != RATE:
            notes.append(f"recordings of {rate:,} Hz: made {RATE:,} Hz")
        loudness, peak = math.sqrt(float(np.mean(sound**2))), float(abs(sound).max())
        # A step that 16 bits do not have; what stands still cannot be heard either.
        if float(np.ptp(sound)) < 2.0**-15:
            mixed = " once its channels are mixed, which cancel each other" if channels > 1 and most > 2.0**-10 else ""
            raise Unusable("silent", f" is silent from end to end{mixed}")
        if rate != RATE:
            ratio = Fraction(RATE, rate).limit_denominator(MOST_STEPS)
            sound = resample_poly(sound, ratio.numerator, ratio.denominator)
        whole = len(sound)
        sound = _trimmed(sound)
        if whole - len(sound) > 2 * MARGIN:
            notes.append("recordings that begin or end with silence: it is cut off")
        if len(sound) > STORED_SECONDS * RATE:
            notes.append(f"recordings longer than {STORED_SECONDS} s: the first {STORED_SECONDS} are used")
            sound = sound[: STORED_SECONDS * RATE]
        sound = sound * min(LOUDNESS / math.sqrt(float(np.mean(sound**2))), PEAK / float(abs(sound).max()))
        kept = written(sound)
        had = {"loudness": _decibels(loudness), "peak": _decibels(peak), "rate": float(rate)}
        facts = {"seconds": round(len(sound) / RATE, 3), **had}
        return Taken(kept, _look(samples_of(kept)), facts, tuple(notes))

    def vector(self, look: str) -> np.ndarray:
        """The energies with mean 0 and length 1: loudness does not count."""
        import numpy as np

        levels = np.frombuffer(bytes.fromhex(look.split()[1]), dtype=np.uint8).astype(np.float32)
        levels -= levels.mean()
        length = float(np.linalg.norm(levels))
        return levels / length if length > len(levels) ** 0.5 else np.zeros_like(levels)

    def nearness(self, similarity: float) -> float:
        """0.995 for the usual 0.8: copies in another file, loudness or with a little noise, and not two takes.

        Of 3,000 spoken digits no two different takes reach 0.995 (benchmarks/spoken_digits.py).
        """
        return 1 - (1 - similarity) / 40

    def random(self, chance: random.Random) -> bytes:
        """Half a second of noise whose loudness changes at random."""
        import numpy as np

        draw = np.random.default_rng(chance.getrandbits(64))
        levels = np.repeat(draw.uniform(0.05, 1.0, 16), RATE // 32)
        colour = np.convolve(draw.standard_normal(len(levels)), draw.standard_normal(64), "same")
        return written(0.5 * levels * colour / abs(colour).max())

    def preview(self, data: bytes | Stored, side: int) -> tuple[bytes, str]:
        """Its spectrogram: time from left to right, up to 8 kHz upwards, dark where it is loud."""
        import numpy as np
        from PIL import Image

        _, _, power = _spectrogram(opened(data))
        levels = np.log10(np.maximum(power / max(float(power.max()), 1e-12), 1e-6)) / 6
        grey = (-255 * levels.T[::-1]).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(grey, "L").resize((2 * side, side)).save(file, "PNG")
        return file.getvalue(), "image/png"


def _decibels(amplitude: float) -> float:
    return round(20 * math.log10(max(amplitude, 1e-6)), 2)


def _trimmed(sound: np.ndarray) -> np.ndarray:
    """Without silence at its ends; what is silent between sounds stays."""
    import numpy as np

    loud = np.flatnonzero(abs(sound) > SILENCE * abs(sound).max())
    return sound[max(0, int(loud[0]) - MARGIN) : int(loud[-1]) + MARGIN + 1]


def _spectrogram(sound: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frequencies (F,), times (T,) in samples and power (T, F)."""
    import numpy as np

    hop = max(LOOK_HOP, len(sound) // 2048)
    padded = np.pad(sound, LOOK_WINDOW // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, LOOK_WINDOW)[::hop]
    power = np.abs(np.fft.rfft(frames * np.hanning(LOOK_WINDOW).astype(np.float32))) ** 2
    return np.fft.rfftfreq(LOOK_WINDOW, 1 / RATE), hop * np.arange(len(frames)), power


def _look(sound: np.ndarray) -> str:
    """A hash of the samples, and levels of energy (TIMES, BANDS) of its louder part in hexadecimal."""
    import numpy as np

    frequencies, _, power = _spectrogram(sound)
    inside = power[:, (frequencies >= LOOK_HZ[0]) & (frequencies < LOOK_HZ[1])]
    bands = np.add.reduceat(inside, np.arange(BANDS) * inside.shape[1] // BANDS, axis=1)
    loud = np.flatnonzero(bands.sum(axis=1) >= CORE * bands.sum(axis=1).max())
    bands = bands[loud[0] : loud[-1] + 1]
    # Energy up to each time, and so between any two.
    until = np.concatenate([np.zeros((1, BANDS)), np.cumsum(bands, axis=0)])
    places = np.linspace(0, len(bands), TIMES + 1)
    parts = np.diff([np.interp(places, np.arange(len(until)), each) for each in until.T], axis=1).T
    levels = np.log10(np.maximum(parts / max(float(parts.max()), 1e-12), 10**-RANGE)) / RANGE + 1
    exact = hashlib.sha256(sound.tobytes()).hexdigest()[:32]
    return f"{exact} {(255 * levels).round().astype(np.uint8).tobytes().hex()}"


KIND = Audio()
