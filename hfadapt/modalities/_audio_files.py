"""Files of sound: read by scipy (WAV) or soundfile (what libsndfile knows), written as 16-bit WAV."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING

from hfadapt.core.errors import RequestError
from hfadapt.files import Unusable, seeming
from hfadapt.modalities._audio_changes import RATE

if TYPE_CHECKING:
    import numpy as np

SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au")
MOST_SECONDS = 3_600
"""Longer recordings are refused: their samples alone would fill the memory."""
LEAST_KEPT = 0.98
"""Share of the samples that a file says it holds, below which it is cut off; of MP3 the number is an estimate."""
_HEADS = (b"RIFF", b"RF64", b"RIFX")
_PACKED = {b"fLaC": "FLAC", b"OggS": "OGG", b"ID3": "MP3", b"FORM": "AIFF", b".snd": "AU"}


def decoded(data: bytes) -> tuple[np.ndarray, int]:
    """Samples (N, channels) in float64 on any scale, and how many there are in a second.

    Raises:
        Unusable: the file is broken, cut off, too long, or no sound.
        RequestError: it needs soundfile, which is not installed.
    """
    sound, rate = _wav(data) if data[:4] in _HEADS else _other(data)
    if rate <= 0:
        raise Unusable("not-a-sound", f" has {rate} samples a second")
    if not len(sound):
        raise Unusable("not-a-sound", " is a sound without samples: it has a head and no content")
    return sound.reshape(len(sound), -1), rate


def _wav(data: bytes) -> tuple[np.ndarray, int]:
    import numpy as np
    from scipy.io import wavfile

    with warnings.catch_warnings(record=True) as noticed:
        warnings.simplefilter("always")
        try:
            rate, values = wavfile.read(io.BytesIO(data))
        except ValueError as error:
            if "multiple of element size" in str(error):
                raise _cut_off() from None
            # Compressed samples, as of telephones, and heads that other readers forgive.
            return _other(data, str(error))
        except Exception as error:
            # Heads that are cut off raise errors of every kind.
            raise Unusable("not-a-sound", f" has {seeming(data, 'sound')}: {_line(error)}") from None
    # A program that writes into a pipe does not know the length that it has to write first.
    piped = data[4:8] in (b"\xff\xff\xff\xff", b"\0\0\0\0")
    if len(values) and not piped and any("prematurely" in str(each.message) for each in noticed):
        raise _cut_off()
    _check_length(len(values), rate)
    if values.dtype == np.uint8:
        return (values.astype(np.float64) - 128) / 128, rate
    if np.issubdtype(values.dtype, np.integer):
        return values.astype(np.float64) / -float(np.iinfo(values.dtype).min), rate
    return values.astype(np.float64), rate


def _other(data: bytes, why: str = "") -> tuple[np.ndarray, int]:
    kind = next((name for head, name in _PACKED.items() if data.startswith(head)), "MP3" if _is_mp3(data) else "")
    try:
        import soundfile
    except (ImportError, OSError):
        if not kind and "Unknown wave file format" not in why:
            raise Unusable("not-a-sound", f" has {seeming(data, 'sound')}{': ' if why else ''}{why[:120]}") from None
        raise RequestError(
            f"{kind or 'this kind of WAV'} is read by soundfile, which is not installed",
            got=why or kind,
            allowed="WAV with plain samples, without it",
            fix="pip install 'hfadapt[sound]'",
        ) from None
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            stated, rate = file.frames, file.samplerate
            _check_length(stated, rate)
            sound = file.read(dtype="float64", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise Unusable("not-a-sound", f" has {seeming(data, 'sound')}: {_line(error)}") from None
    if len(sound) and len(sound) < LEAST_KEPT * stated:
        raise _cut_off()
    return sound, rate


def _is_mp3(data: bytes) -> bool:
    return len(data) > 1 and data[0] == 0xFF and data[1] & 0xE0 == 0xE0


def _check_length(samples: int, rate: int) -> None:
    if rate > 0 and samples > MOST_SECONDS * rate:
        took = f"{samples / rate / 3600:.1f} hours"
        raise Unusable("sound-too-long", f" is a recording of {took}, longer than one: cut it into clips first")


def _cut_off() -> Unusable:
    return Unusable("not-a-sound", " is cut off: it holds fewer samples than it says; fetch it again")


def _line(error: Exception) -> str:
    """What a library says, without the object that it was given."""
    lines = str(error).strip().rpartition(">: ")[2].splitlines()
    return (lines[0] if lines else type(error).__name__)[:120]


def written(sound: np.ndarray) -> bytes:
    """Samples (N,) between -1 and 1 as 16-bit WAV: the same bytes whatever is installed."""
    import numpy as np
    from scipy.io import wavfile

    file = io.BytesIO()
    wavfile.write(file, RATE, (sound * 32767).round().clip(-32768, 32767).astype(np.int16))
    return file.getvalue()


def samples_of(data: bytes) -> np.ndarray:
    """(N,) float32 of a WAV file as `written` makes it."""
    import numpy as np
    from scipy.io import wavfile

    _, values = wavfile.read(io.BytesIO(data))
    return np.asarray(values, dtype=np.float32) / np.float32(32768)
