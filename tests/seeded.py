"""Faults that are put into exports on purpose: what is exported, how it is broken, and what is said of it.

Tests of single formats import it; `cells` and `written` are fixtures.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from cells import trained
from tiny import labelled, questions
from tiny_images import make_vision_models, marked, write_folders

from hfadapt.core import registry
from hfadapt.core.errors import RunError
from hfadapt.export.write import export
from hfadapt.models import merge

READ, OTHER, NAMED = "reads rows in another way", "is none of the model's", "names its classes in another way"
SCORES = "does not score as the one that was written"


@dataclass(frozen=True)
class Fault:
    """A fault and what is said of it.

    Args:
        said: Part of the refusal.
        after: Changes the folder that was written.
        before: Breaks what writes it.
        cell, format, form: What is exported.
        slow: Takes longer, and is found by what another fault tells, too.
    """

    said: str
    after: Callable[[Path], None] | None = None
    before: Callable[[pytest.MonkeyPatch, Callable], None] | None = None
    cell: str = "texts"
    format: str = "onnx"
    form: str = "float32"
    slow: bool = False


# --- what is exported ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cells(models, classifier, tmp_path_factory):
    """Trained cells by name, each made when it is asked for."""
    place = tmp_path_factory.mktemp("faults")
    pictures = {"domains": {"one": {"source": "pictures"}}, "dtype": "float32"}

    @functools.cache
    def cell(name):
        folder = place / name
        if name == "texts":
            return classifier
        if name == "other texts":
            swap = {"good": "bad", "bad": "good"}
            rows = [{**row, "label": swap[row["label"]]} for row in labelled(100, seed=1)]
            folder.mkdir()
            return trained(folder, models / "encoder", "text-classification", rows, dtype="float32")
        if name == "sentences":
            folder.mkdir()
            return trained(folder, models / "encoder", "embedding", questions(100), dtype="float32")
        write_folders(folder / "pictures", 80)
        make_vision_models(folder)
        if name == "conv":
            _lively(folder / name)
        return trained(folder, folder / name, "image-classification", [], **pictures)

    return cell


def _lively(folder):
    """A net as it is started answers the same whatever it sees, and no range is wrong for that."""
    from transformers import AutoModel

    torch.manual_seed(0)
    model = AutoModel.from_pretrained(folder)
    pictures = np.stack([np.asarray(marked(("bar", "pole")[each % 2], each)) for each in range(32)])
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight)
            elif isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0
                module.weight.fill_(1.0)
        model.train()(pixel_values=torch.from_numpy(pictures.copy()).permute(0, 3, 1, 2) / 64 - 2)
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def written(cells, tmp_path_factory):
    """What a format writes of a cell, and the model that it returns, made once for all faults."""

    @functools.cache
    def write(cell, format, form):
        kind, folder = registry.format(format), tmp_path_factory.mktemp("written")
        (found,) = [each for each in kind.forms(cells(cell).lock) if each.name == form]
        return kind.write(cells(cell), found, folder, torch.device("cpu")), folder

    return write


def refusal(fault, cells, written, monkeypatch, folder):
    """What is said of an export with a fault in it, or "" where it is let through."""
    kind = registry.format(fault.format)
    if fault.before is not None:
        fault.before(monkeypatch, cells)
    else:
        model, whole = written(fault.cell, fault.format, fault.form)

        def write(self, cell, form, folder, device):
            shutil.copytree(whole, folder, dirs_exist_ok=True)
            if fault.after is not None:
                fault.after(folder)
            return model

        monkeypatch.setattr(type(kind), "write", write)
    try:
        export(cells(fault.cell), fault.format, folder / "out", variant=fault.form)
    except RunError as error:
        assert list(folder.iterdir()) == [], "nothing is left"
        return str(error)
    return ""


# --- in the files ----------------------------------------------------------------------------------------------------


def in_json(name, change):
    def after(folder):
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        change(content)
        (folder / name).write_text(json.dumps(content), encoding="utf-8")

    return after


def swapped_ids(config):
    config["id2label"] = {"0": "good", "1": "bad"}


def swapped_words(tokenizer):
    vocab = tokenizer["model"]["vocab"]
    vocab["Ġlovely"], vocab["Ġfilm"] = vocab["Ġfilm"], vocab["Ġlovely"]


def lowercase(tokenizer):
    tokenizer["normalizer"] = {"type": "Lowercase"}


def cut_off(name):
    def after(folder):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: 2 * len(content) // 3])

    return after


def prepared(**changes):
    """Another setting of what makes pixels of a picture."""
    return in_json("preprocessor_config.json", lambda content: content.update(changes))


def other_pooling(content):
    content.update(pooling_mode_mean_tokens=False, pooling_mode_cls_token=True)


# --- in what writes --------------------------------------------------------------------------------------------------


def unmerged(monkeypatch, cells):
    from peft.tuners.tuners_utils import BaseTuner

    monkeypatch.setattr(BaseTuner, "merge_and_unload", lambda self, *_, **__: self.unload())


def other_adapter(monkeypatch, cells):
    plain, other = merge.open_merged, cells("other texts").adapter
    for place in ("_single_file", "merged"):
        name = f"hfadapt.formats.{place}.open_merged"
        monkeypatch.setattr(name, lambda lock, labels, _, *more, **named: plain(lock, labels, other, *more, **named))


def of_texts(cell, *values, slow=False):
    """A case; what needs a model of its own takes longer."""
    return pytest.param(*values, marks=pytest.mark.slow if slow or cell != "texts" else [])


def with_first(value):
    """A change of numbers: another one in the first place."""

    def change(numbers):
        numbers.flat[0] = value
        return numbers

    return change
