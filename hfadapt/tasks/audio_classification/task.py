"""One class per sound: encoders of speech and of spectrograms with a classification head."""

from __future__ import annotations

from pathlib import Path

from hfadapt.tasks._media import MediaClassification


class AudioClassification(MediaClassification):
    """Rows of `audio` and `label`; cross-entropy over C classes; compared with a linear probe."""

    name = "audio-classification"
    title = "audio classification"
    pipeline_tag = "audio-classification"
    peft_task_type = None
    auto_class = "AutoModelForAudioClassification"
    modality = "audio"
    schemas = frozenset({"sounded"})
    assumed_tokens = 250
    folder = Path(__file__).parent

    def head_start(self, rows: int, labels: int) -> float:
        """Less sure than the probe (benchmarks/NOTES.md)."""
        return 0.3


KIND = AudioClassification()
