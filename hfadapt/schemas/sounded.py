"""A sound with one class."""

from __future__ import annotations

from hfadapt.schemas import _media


class Sounded(_media.Labelled):
    """Rows of `audio` and `label`."""

    name = "sounded"
    rank = 41
    modality = "audio"
    parts = ("audio", "label")
    names = _media.names_of("audio", "sound", "recording", "speech", "clip", "wav")


KIND = Sounded()
