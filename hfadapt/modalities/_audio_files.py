"""Files of sound: read by scipy (WAV) or soundfile (what libsndfile knows), written as 16-bit WAV."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Literal

from hfadapt.core.errors import RequestError
from hfadapt.files import Unusable, format_of, seeming
from hfadapt.modalities._audio_changes import RATE

if TYPE_CHECKING:
    import numpy as np

SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".caf", ".w64")
UNREAD = (".m4a", ".aac", ".wma", ".amr", ".mka", ".weba", ".m4b", ".3gp")
MOST_SECONDS = 3_600
"""Longer recordings are refused: their samples alone would fill the memory."""
MOST_SAMPLES = 2 * MOST_SECONDS * 48_000
"""Of all channels together, which are all read at once."""
LEAST_SECONDS = 0.01
RATES = (100, 2_000_000)
"""Fewest and most samples in a second that a recording of sound has; others are faults of a file's head."""
LEAST_KEPT = 0.98
"""Share of the samples that a file says it holds, below which it is cut off; of MP3 the number is an estimate."""
_HEADS = (b"RIFF", b"RF64", b"RIFX")
_UNKNOWN = (b"\xff\xff\xff\xff", b"\0\0\0\0")
"""A length that was not known when a head was written."""
_PACKED = {
    b"caff": "CAF",
    b"riff": "Wave64",
    b"fLaC": "FLAC",
    b"OggS": "OGG",
    b"ID3": "MP3",
    b"FORM": "AIFF",
    b".snd": "AU",
}


def decoded(data: bytes) -> tuple[np.ndarray, int]:
    """Samples (N, channels) in float64 on any scale, and how many there are in a second.

    Raises:
        Unusable: the file is broken, cut off, too long, or no sound.
        RequestError: it needs soundfile, which is not installed.
    """
    sound, rate = _wav(data) if data[:4] in _HEADS else _other(data)
    if not len(sound):
        raise Unusable("not-a-sound", " is a sound without samples: it has a head and no content")
    if _stated_end(data) > len(data):
        raise _cut_off()
    if len(sound) < LEAST_SECONDS * rate:
        raise Unusable("not-a-sound", f" lasts {1000 * len(sound) / rate:.2g} ms, in which nothing can be heard")
    return sound.reshape(len(sound), -1), rate


def _wav(data: bytes) -> tuple[np.ndarray, int]:
    import numpy as np
    from scipy.io import wavfile

    order: Literal["little", "big"] = "big" if data[:4] == b"RIFX" else "little"
    if (at := _chunk(data, order, b"fmt ")) and len(data) >= at + 16:
        _check_length(0, 1, int.from_bytes(data[at + 12 : at + 16], order))
    data = _with_length(data, order)
    end = min(_end_of_samples(data, order, b"data"), len(data))
    if int.from_bytes(data[4:8], order) + 8 < end:
        # The length in the head is wrong where the samples are there nevertheless.
        data = data[:4] + (end - 8).to_bytes(4, order) + data[8:]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            rate, values = wavfile.read(io.BytesIO(data))
        except Exception as error:
            if "multiple of element size" in str(error):
                raise _cut_off() from None
            # Compressed samples, as of telephones, and heads that other readers forgive. Of those that are cut off
            # scipy raises errors of every kind.
            return _other(data, str(error) if isinstance(error, ValueError) else "its head is broken")
    _check_length(len(values), values.size // max(1, len(values)), rate)
    if values.dtype == np.uint8:
        return (values.astype(np.float64) - 128) / 128, rate
    if np.issubdtype(values.dtype, np.integer):
        return values.astype(np.float64) / -float(np.iinfo(values.dtype).min), rate
    return values.astype(np.float64), rate


def _other(data: bytes, why: str = "") -> tuple[np.ndarray, int]:
    kind = next((name for head, name in _PACKED.items() if data.startswith(head)), "MP3" if _is_mp3(data) else "")
    if known := format_of(data):
        raise Unusable("not-a-sound", f" has {known}, which is not read: write it as WAV, as ffmpeg -i IN OUT.wav does")
    try:
        import soundfile
    except (ImportError, OSError):
        if not kind and "Unknown wave file format" not in why:
            raise Unusable("not-a-sound", f" has {seeming(data, 'sound', why[:120])}") from None
        raise RequestError(
            f"{kind or 'this kind of WAV'} is read by soundfile, which is not installed",
            got=why or kind,
            allowed="WAV with plain samples, without it",
            fix="pip install 'hfadapt[sound]'",
        ) from None
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            stated, rate = file.frames, file.samplerate
            _check_length(stated, file.channels, rate)
            # Of some packed samples, as GSM, it does not know by itself how many are left.
            sound = file.read(-1 if file.seekable() else stated, dtype="float64", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise Unusable("not-a-sound", f" has {seeming(data, 'sound', _line(error))}") from None
    if len(sound) and len(sound) < LEAST_KEPT * stated:
        raise _cut_off()
    return sound, rate


def _is_mp3(data: bytes) -> bool:
    return len(data) > 1 and data[0] == 0xFF and data[1] & 0xE0 == 0xE0


def _stated_end(data: bytes) -> int:
    """Where a file ends by what it says itself, so far as it says it and knew it when it was written; else 0."""
    if data[:4] in (b"RIFF", b"RIFX", b"FORM"):
        order: Literal["little", "big"] = "little" if data[:4] == b"RIFF" else "big"
        samples = _end_of_samples(data, order, b"SSND" if data[:4] == b"FORM" else b"data")
        # Written into a pipe, it has no length, and of two lengths one may be wrong.
        return 0 if data[4:8] in _UNKNOWN else min(int.from_bytes(data[4:8], order) + 8, samples)
    if data[:4] == b".snd":
        return 0 if data[8:12] in _UNKNOWN else sum(int.from_bytes(data[at : at + 4], "big") for at in (4, 8))
    page = data.rfind(b"OggS") if data[:4] == b"OggS" else -1
    if page >= 0:
        parts = data[page + 27 : page + 27 + data[page + 26]] if page + 26 < len(data) else b""
        return page + 27 + len(parts) + sum(parts)
    return 0


def _with_length(data: bytes, order: Literal["little", "big"]) -> bytes:
    """A file of chunks; one that was written into a pipe, with 0 for its lengths, with those that it has."""
    at = _chunk(data, order, b"data")
    if not at or data[4:8] != data[at + 4 : at + 8] or data[4:8] != bytes(4):
        return data
    whole, samples = (length.to_bytes(4, order) for length in (len(data) - 8, len(data) - at - 8))
    return data[:4] + whole + data[8 : at + 4] + samples + data[at + 8 :]


def _end_of_samples(data: bytes, order: Literal["little", "big"], name: bytes) -> int:
    """Where the samples of a file of chunks end, as it says; 0 where it has none."""
    at = _chunk(data, order, name)
    return at + 8 + int.from_bytes(data[at + 4 : at + 8], order) if at else 0


def _chunk(data: bytes, order: Literal["little", "big"], name: bytes) -> int:
    """Where a chunk begins; 0 where there is none."""
    at = 12
    while at + 8 <= len(data):
        if data[at : at + 4] == name:
            return at
        end = at + 8 + int.from_bytes(data[at + 4 : at + 8], order)
        at = end + end % 2
    return 0


def _check_length(samples: int, channels: int, rate: int) -> None:
    """Refuses rates that no recording has, and what is too long to be read at once: `samples` of each channel."""
    if not RATES[0] <= rate <= RATES[1]:
        raise Unusable("not-a-sound", f" says it has {rate:,} samples a second, which no recording has")
    if samples > MOST_SECONDS * rate:
        took = f"{samples / rate / 3600:,.1f} hours"
        raise Unusable("sound-too-long", f" is a recording of {took}, longer than one: cut it into clips first")
    if samples * channels > MOST_SAMPLES:
        raise Unusable("sound-too-long", f" has {samples:,} samples of {channels:,} channels: cut it into clips first")


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
