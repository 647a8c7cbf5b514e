"""Short sounds and models that hear them for tests."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from scipy.io import wavfile

CLIPS = Path(__file__).parent / "data_files" / "spoken_digits"
TONES = {"low": 400.0, "high": 2_500.0}


def wav(sound: np.ndarray, rate: int = 16_000) -> bytes:
    """A WAV file of samples as they are: integers, or numbers between -1 and 1."""
    file = io.BytesIO()
    wavfile.write(file, rate, sound)
    return file.getvalue()


def tone(label: str, seed: int, rate: int = 16_000, seconds: float = 0.4) -> np.ndarray:
    """Samples (N,) in float32 of a low or high tone with some noise, another one for each seed."""
    draw = np.random.default_rng(seed)
    at = np.arange(int(seconds * rate)) / rate
    swing = 1 + 0.3 * np.sin(2 * np.pi * draw.uniform(3, 12) * at + draw.uniform(0, 6))
    sound = 0.3 * swing * np.sin(2 * np.pi * TONES[label] * draw.uniform(0.8, 1.25) * at)
    return (sound + 0.02 * draw.standard_normal(len(at))).astype(np.float32)


def clip(name: str) -> bytes:
    """One of the spoken digits, such as `3_theo_10`."""
    return (CLIPS / f"{name}.wav").read_bytes()


def write_sounds(folder: Path, count: int, seed: int = 0, who: str = "s") -> Path:
    """Class folders of `count` sounds in all, whose names say one of four speakers: `s0` to `s3`."""
    for number in range(count):
        label = ("low", "high")[number % 2]
        (folder / label).mkdir(parents=True, exist_ok=True)
        path = folder / label / f"{label}_{who}{number // 2 % 4}_{number:03}.wav"
        path.write_bytes(wav(tone(label, 1000 * seed + number)))
    return folder


def run_of_sounds(folder: Path, hearing: Path, verb: str = "run") -> Path:
    """The run of a recipe with one domain, `one`."""
    from tiny import NO_CHECKS, command, recipe_fields, write_recipe

    write_sounds(folder / "one", 60)
    data = {"validation": 12, "test": 12, "dedupe": {"near": False, "similarity": 1.0}}
    checks = {**NO_CHECKS, "resamples": 100}
    domains = {"one": {"source": "one", "license": "mit"}}
    fields = recipe_fields(hearing / "whisper", "audio-classification", domains, evaluate=checks, name="sounds")
    fields |= {"data": data, "train": {"max_steps": 6, "batch_rows": 8, "learning_rate": 2e-2}}
    done = command(verb, write_recipe(folder / "sounds.yaml", fields), folder=folder)
    assert done.code == 0, done.out + done.err
    return folder / "runs" / "sounds"


def make_hearing_models(folder: Path) -> None:
    """`whisper` (clips of one second) and `wave`, which hears samples, with a mask where clips are padded."""
    import torch
    from transformers import (
        Wav2Vec2Config,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2Model,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperModel,
    )

    torch.manual_seed(0)
    sides = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in _LAYERS.items()}
    # As models are started, positions would drown what is heard.
    sizes = {"max_source_positions": 50, "max_target_positions": 16, "init_std": 0.2}
    whisper = WhisperConfig(d_model=32, vocab_size=64, **sizes, **sides, **_IDS)
    WhisperModel(whisper).save_pretrained(folder / "whisper")
    WhisperFeatureExtractor(chunk_length=1).save_pretrained(folder / "whisper")
    wave = Wav2Vec2Config(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        conv_dim=[16, 16, 16],
        conv_kernel=[10, 8, 4],
        conv_stride=[10, 8, 4],
        feat_extract_norm="layer",
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        classifier_proj_size=16,
        initializer_range=0.2,
        vocab_size=32,
    )
    Wav2Vec2Model(wave).save_pretrained(folder / "wave")
    Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder / "wave")


_LAYERS = {"layers": 2, "attention_heads": 2, "ffn_dim": 64}
_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
