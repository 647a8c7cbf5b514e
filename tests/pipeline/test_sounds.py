"""Sounds from a folder to a card: trained alone and with others, opened again, predicted; one speaker, one split."""

from __future__ import annotations

import contextlib
import io
import json
import re
import zipfile
from unittest import mock

import numpy as np
import pytest
import torch
from run_files import cell, record, weights
from safetensors.torch import load
from tiny import command, finish, recipe_fields, start, write_recipe
from tiny_sounds import tone, wav, write_sounds

from hfadapt.core import registry
from hfadapt.data.rows import SPLITS
from hfadapt.run_folder import read_rows, read_steps

TRAIN = {"batch_rows": 8, "max_steps": 30, "learning_rate": 0.003}
LABELS = ("low", "high")
SPEAKERS = {"group": "file", "group_pattern": "_([a-z][0-9])_"}


def fields(model, **more):
    made = recipe_fields(model, "audio-classification", {"one": {"source": "one"}}, **more)
    # Tones are more alike than words.
    made["data"] |= {"dedupe": {"near": False, "similarity": 1.0}}
    return made


@pytest.fixture(scope="module")
def both(hearing, tmp_path_factory):
    """Two domains on one Whisper, trained together, all the way to their cards, without soundfile."""
    folder = tmp_path_factory.mktemp("both")
    for number, name in enumerate(("one", "two")):
        write_sounds(folder / name, 120, seed=number)
    recipe = fields(hearing / "whisper", train=TRAIN)
    recipe["domains"]["two"] = {"source": "two"}
    recipe["train"]["together"] = True
    recipe["data"]["canaries"] = {"count": 3}
    write_recipe(folder / "tiny.yaml", recipe)
    done = command("run", "tiny.yaml", folder=folder)
    assert done.code == 0, done.err
    return folder


def test_what_is_learned_is_measured_and_told(both):
    evaluation, train = record(both, "evaluation.json"), record(both, "train.json")
    accuracy = evaluation["metrics"][0]
    assert (evaluation["baseline"], accuracy["name"], accuracy["rows"]) == ("linear probe", "accuracy", 24)
    assert accuracy["adapter"] > 0.8, "one tone is six times as high as the other, so it must be learned"
    assert train["together"] == ["one", "two"]
    assert train["head_start"] == "linear probe"
    security, drift = record(both, "security.json"), record(both, "drift.json")
    assert security["membership"]["blind"]["name"] == "coarse features"
    assert security["canaries"]["planted"] == 3
    assert {each["name"] for each in security["robustness"]} == {*registry.modality("audio").perturbations}
    assert {each["name"] for each in drift["variants"]} >= {"merged-bfloat16", "merged-float32", "merged-int8"}
    merged = next(each for each in drift["variants"] if each["name"] == "merged-float32")
    assert merged["kl_nats"] < 1e-6
    text = (cell(both) / "README.md").read_text()
    assert "AutoModelForAudioClassification" in text
    assert "The head started as the linear probe" in text
    assert "differs from its records" not in command("card", "check", cell(both)).err


def test_a_file_is_asked(both, tmp_path):
    paths = []
    for number, label in enumerate(LABELS * 4):
        paths.append(tmp_path / f"{number}.wav")
        # Another rate, loudness and silence than what was trained on.
        sound = np.pad(0.2 * tone(label, 500 + number, rate=22_050), (4_000, 9_000))
        paths[-1].write_bytes(wav(sound.astype(np.float32), 22_050))
    done = command("predict", cell(both), *paths, "--json", folder=tmp_path)
    assert done.code == 0, done.err
    answers = json.loads(done.out)
    assert sum(answer["label"] == label for answer, label in zip(answers, LABELS * 4, strict=True)) >= 7


@pytest.mark.parametrize("kind", ["adapter", "merged"])
def test_what_leaves_answers_as_before(both, hearing, tmp_path, kind):
    path = tmp_path / "sound.wav"
    path.write_bytes(wav(tone("high", 700)))
    done = command("export", cell(both), "--format", kind, "--to", tmp_path / kind, folder=both)
    assert done.code == 0, done.err
    words = ["--base", hearing / "whisper"] if kind == "adapter" else []
    exported = command("predict", tmp_path / kind, path, *words, "--json", folder=tmp_path)
    assert exported.code == 0, exported.err
    own = command("predict", cell(both), path, "--json", folder=tmp_path)
    (before,), (after,) = json.loads(own.out), json.loads(exported.out)
    assert before["label"] == after["label"] == "high"
    assert after["probability"] == pytest.approx(before["probability"], abs=0.02)


def test_what_is_published_opens_as_its_card_says(both, hearing, tmp_path, monkeypatch):
    out = tmp_path / "out"
    done = command("publish", cell(both), "--to", out, "--license", "mit", folder=both)
    assert done.code == 0, done.err
    assert not list(out.rglob("media.bin")), "recordings of others are not published"
    (code,) = re.findall(r"^```python\n(.*?)^```", (out / "README.md").read_text(), re.M | re.S)
    base = re.search(r"^base = \"([^\"]+)\"", code, re.M)[1]
    (out / base).symlink_to(hearing / "whisper")
    monkeypatch.chdir(out)
    for number, label in enumerate(LABELS * 2):
        (out / "example.wav").write_bytes(wav(tone(label, 800 + number)))
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
        assert printed.getvalue().startswith(f"{label} (")
    (out / "example.wav").write_bytes(wav(np.zeros(8000)))
    with pytest.raises(SystemExit, match="silent from end to end"):
        exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})


@pytest.mark.slow
def test_two_processes_are_one(hearing, tmp_path):
    write_sounds(tmp_path / "one", 60)
    for path in sorted((tmp_path / "one").rglob("*.wav"))[::3]:
        # Half as long, so that there is something to mask.
        path.write_bytes(wav(tone(path.parent.name, int(path.stem[-3:]), seconds=0.2)))
    plain = {"train__fast": {"bfloat16": False}, "dtype": "float32"}
    write_recipe(tmp_path / "tiny.yaml", fields(hearing / "wave", train={**TRAIN, "max_steps": 6}, **plain))
    launcher = ["torch.distributed.run", "--nproc_per_node", "2", "--standalone", "-m", "hfadapt"]
    process = start("train", "tiny.yaml", "--runs", "two", folder=tmp_path, launcher=launcher)
    assert command("train", "tiny.yaml", folder=tmp_path).code == 0
    done = finish(process)
    assert done.code == 0, done.err
    one, two = (read_steps(tmp_path / runs / "tiny/one/this-machine/metrics.jsonl") for runs in ("runs", "two"))
    assert len(one) == len(two) > 6
    for alone, together in zip(one, two, strict=True):
        for key in ("loss", "validation_loss", "grad_norm"):
            assert together.get(key, 0.0) == pytest.approx(alone.get(key, 0.0), rel=1e-5)


@pytest.mark.slow
def test_trained_together_is_trained_alone(both, hearing, tmp_path):
    write_sounds(tmp_path / "one", 120, seed=0)
    write_sounds(tmp_path / "two", 120, seed=1)
    recipe = fields(hearing / "whisper", train=TRAIN)
    recipe["domains"]["two"] = {"source": "two"}
    recipe["train"]["together"] = False
    recipe["data"]["canaries"] = {"count": 3}
    write_recipe(tmp_path / "tiny.yaml", recipe)
    done = command("train", "tiny.yaml", folder=tmp_path)
    assert done.code == 0, done.err
    for domain in ("one", "two"):
        together, alone = load(weights(both, domain)), load(weights(tmp_path, domain))
        assert together.keys() == alone.keys()
        for name, tensor in together.items():
            torch.testing.assert_close(tensor, alone[name], atol=2e-3, rtol=2e-2)


def test_a_model_that_hears_samples_with_a_mask_and_changed_rows(hearing, tmp_path):
    write_sounds(tmp_path / "one", 80)
    for number, path in enumerate(sorted((tmp_path / "one").rglob("*.wav"))):
        # Some are half as long, so that there is something to mask.
        if number % 3 == 0:
            path.write_bytes(wav(tone(path.parent.name, number, seconds=0.2)))
    changes = {"noise": 0.5, "gain": 0.5, "shift": 0.5, "speed": 0.5}
    recipe = fields(hearing / "wave", train={**TRAIN, "max_steps": 12})
    recipe["data"]["augment"] = changes
    recipe["domains"]["one"]["columns"] = SPEAKERS
    recipe["data"] |= {"validation": 0.25, "test": 0.25}
    write_recipe(tmp_path / "tiny.yaml", recipe)
    done = command("run", "tiny.yaml", folder=tmp_path)
    assert done.code == 0, done.err
    assert len(record(tmp_path, "train.json")["augmented_rows"]) > 0
    drift = record(tmp_path, "drift.json")
    assert all(each["kl_nats"] < 0.02 for each in drift["variants"] if each["storage"] == "float32")
    kinds = {each["by"] for each in record(tmp_path, "evaluation.json")["slices"]}
    assert kinds <= {"class", "seconds", "loudness", "peak", "rate", "group"}
    snippet = (cell(tmp_path) / "README.md").read_text()
    assert 'padding="max_length"' in snippet
    assert "differs from its records" not in command("card", "check", cell(tmp_path)).err


def test_a_class_of_one_speaker_alone_is_noticed(hearing, tmp_path):
    for number, (name, who) in enumerate({"one": "s", "held": "h", "tested": "t"}.items()):
        write_sounds(tmp_path / name, 64, seed=number, who=who)
    for path in (tmp_path / "one" / "high").glob("*.wav"):
        if "_s2_" not in path.name:
            path.unlink()
    recipe = fields(hearing / "whisper")
    recipe["domains"]["one"] |= {"validation": "held", "test": "tested"}
    for columns, noticed in (({}, False), (SPEAKERS, True)):
        recipe["domains"]["one"]["columns"] = columns
        write_recipe(tmp_path / "tiny.yaml", recipe)
        done = command("check", "tiny.yaml", folder=tmp_path)
        assert done.code == 0, done.err
        assert ("one-group" in done.out) is ("'high' (s2)" in done.out) is noticed


def test_archives_and_files_that_are_none(hearing, tmp_path):
    write_sounds(tmp_path / "files", 80)
    with zipfile.ZipFile(tmp_path / "one.zip", "w") as packed:
        for path in sorted((tmp_path / "files").rglob("*.wav")):
            packed.write(path, f"{path.parent.name}/{path.name}")
        packed.writestr("low/broken.wav", b"this is text")
    recipe = fields(hearing / "whisper")
    recipe["domains"]["one"] = {"source": "one.zip"}
    write_recipe(tmp_path / "tiny.yaml", recipe)
    done = command("check", "tiny.yaml", folder=tmp_path)
    assert done.code == 0, done.err
    assert "not-a-sound" in done.out


def test_the_audio_feature_of_a_data_set(hearing, tmp_path):
    import datasets

    rows = [(LABELS[number % 2], number) for number in range(80)]
    made = datasets.Dataset.from_dict(
        {
            "audio": [{"bytes": wav(tone(label, number)), "path": f"{number}.wav"} for label, number in rows],
            "label": [LABELS.index(label) for label, _ in rows],
            "speaker": [f"s{number % 8}" for _, number in rows],
        }
    )
    made = made.cast_column("audio", datasets.Audio()).cast_column("label", datasets.ClassLabel(names=list(LABELS)))
    recipe = fields(hearing / "whisper")
    recipe["domains"]["one"] = {"source": "someone/tones", "columns": {"group": "speaker"}}
    write_recipe(tmp_path / "tiny.yaml", recipe)
    with mock.patch.object(datasets, "load_dataset", return_value=made):
        done = command("prepare", "tiny.yaml", folder=tmp_path)
    assert done.code == 0, done.err
    assert {*record(tmp_path, "data.json")["labels"]} == {*LABELS}
    splits = [{row["group"] for row in read_rows(cell(tmp_path) / f"data/{split}.parquet")} for split in SPLITS]
    assert sum(map(len, splits)) == len(set.union(*splits)) == 8
