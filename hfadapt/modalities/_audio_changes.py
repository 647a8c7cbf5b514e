"""Changes of sounds by numpy and scipy: augmentation, and careless input as microphones, rooms and networks give it.

Each takes samples (N,) in float32 at `RATE`, how much of the change, and a random generator of its own.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

Change = Callable[["np.ndarray", float, random.Random], "np.ndarray"]
RATE = 16_000
"""Samples per second of every sound that is kept."""
TELEPHONE_HZ = (300.0, 3_400.0)


# --- augmentation: `share` is the share of the rows that is changed ---------------------------------------------------


def noise(sound: np.ndarray, share: float, draw: random.Random) -> np.ndarray:
    """White noise, 5 to 20 dB below the sound."""
    return hiss(sound, 10 ** -draw.uniform(0.5, 2.0), draw) if draw.random() < share else sound


def gain(sound: np.ndarray, share: float, draw: random.Random) -> np.ndarray:
    """Louder or quieter by up to 12 dB, never so loud that it would be clipped."""
    if draw.random() >= share:
        return sound
    times = 10 ** draw.uniform(-0.6, 0.6)
    return sound * min(times, 1.0 / max(float(abs(sound).max()), 1e-9))


def shift(sound: np.ndarray, share: float, draw: random.Random) -> np.ndarray:
    """Begins up to 0.3 s later, after silence."""
    import numpy as np

    late = int(RATE * draw.uniform(0, 0.3)) if draw.random() < share else 0
    return np.concatenate([np.zeros(late, dtype=sound.dtype), sound]) if late else sound


def speed(sound: np.ndarray, share: float, draw: random.Random) -> np.ndarray:
    """0.9 to 1.1 times as fast, its pitch with it (Ko et al. 2015)."""
    return _faster(sound, draw.uniform(0.9, 1.1)) if draw.random() < share else sound


def spec_augment(sound: np.ndarray, share: float, draw: random.Random) -> np.ndarray:
    """A band of up to 27 of 80 mel bands, and a span of up to a fifth of the time, are silent (SpecAugment, Park et al.
    2019). Done to the sound, so that every model hears it so, whatever its features are."""
    import numpy as np

    if draw.random() >= share:
        return sound
    width = draw.uniform(0, 27 / 80)
    low = draw.uniform(0, 1 - width)
    spectrum = np.fft.rfft(sound)
    mels = 2595 * np.log10(1 + np.fft.rfftfreq(len(sound), 1 / RATE) / 700)
    spectrum[(mels >= low * mels[-1]) & (mels < (low + width) * mels[-1])] = 0
    masked: np.ndarray = np.fft.irfft(spectrum, len(sound)).astype(sound.dtype)
    count = int(len(sound) * draw.uniform(0, 0.2))
    start = draw.randint(0, len(sound) - count)
    masked[start : start + count] = 0
    return masked


# --- careless input: `share` is how much of each sound is changed -----------------------------------------------------


def hiss(sound: np.ndarray, share: float, draw: random.Random) -> np.ndarray:
    """White noise with `share` of the sound's power."""
    import numpy as np

    white = np.random.default_rng(draw.getrandbits(64)).standard_normal(len(sound), dtype=np.float32)
    return sound + white * math.sqrt(share * float(np.mean(sound**2)))


def quieter(sound: np.ndarray, share: float, draw: random.Random) -> np.ndarray:
    """As from far away: `share` of the amplitude is missing."""
    return sound * (1 - share)


def pace(sound: np.ndarray, share: float, draw: random.Random) -> np.ndarray:
    """Faster or slower by `share`, its pitch with it."""
    return _faster(sound, 1 + draw.choice((-1, 1)) * share)


def telephone(sound: np.ndarray, share: float, draw: random.Random) -> np.ndarray:
    """`share` of what a telephone leaves out, below 300 and above 3,400 Hz, is missing."""
    from scipy import signal

    band = signal.butter(4, TELEPHONE_HZ, "bandpass", fs=RATE, output="sos")
    return ((1 - share) * sound + share * signal.sosfilt(band, sound)).astype(sound.dtype)


def reverb(sound: np.ndarray, share: float, draw: random.Random) -> np.ndarray:
    """A room whose echoes are `share` of the power: noise that falls by 60 dB in half a second."""
    import numpy as np
    from scipy import signal

    count = RATE // 2
    white = np.random.default_rng(draw.getrandbits(64)).standard_normal(count).astype(np.float32)
    echoes = white * np.float32(10) ** (-3 * np.arange(count, dtype=np.float32) / count)
    echoes *= math.sqrt(share / max(1 - share, 1e-9) / float(np.sum(echoes**2)))
    echoes[0] = 1.0
    found: np.ndarray = signal.fftconvolve(sound, echoes)[: len(sound)].astype(sound.dtype)
    return found


def _faster(sound: np.ndarray, times: float) -> np.ndarray:
    from scipy import signal

    found: np.ndarray = signal.resample_poly(sound, 100, max(1, round(100 * times)))
    return found


CHANGES: dict[str, Change] = {
    change.__name__: change
    for change in (noise, gain, shift, speed, spec_augment, hiss, quieter, pace, telephone, reverb)
}
