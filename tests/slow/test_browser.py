"""From a recipe to a page in a real browser: MiniLM on tweets answers there as in Python, on 200 test rows."""

from __future__ import annotations

import json

import chromium
import pytest
from tiny import command

import hfadapt
from hfadapt import load_adapted
from hfadapt.core.errors import RunError
from hfadapt.export.write import export
from hfadapt.formats.web import runtime
from hfadapt.records.published import DeviceRecord
from hfadapt.run_folder import Cell

pytestmark = [pytest.mark.slow, pytest.mark.skipif(chromium.BROWSER is None, reason="no Chromium here")]
RECIPE = hfadapt.__file__.replace("hfadapt/__init__.py", "recipes/sentiment.yaml")
ROWS = 200


def test_minilm_answers_in_a_browser_as_in_python(tmp_path):
    try:
        runtime.source()
    except RunError as error:
        pytest.skip(str(error))
    settings = ["data.train_rows=800", f"data.test={ROWS}", "train.max_steps=60", "targets=[browser-4gb]"]
    settings += ["export.limits.points=50", "export.limits.kl_nats=9", "export.limits.agreement=0"]
    settings += ["evaluate.security=false", "evaluate.drift=false", "evaluate.transfer=false"]
    done = command("run", RECIPE, "--domain", "tweets", *settings, folder=tmp_path)
    assert done.code == 0, done.err
    cell = Cell(tmp_path / "runs/sentiment/tweets/browser-4gb")
    found = cell.read(DeviceRecord)
    assert (found.format, found.form) == ("web", "int8-dynamic")
    export(cell, "web", tmp_path / "float32", variant="float32")
    texts = [str(row["text"]) for row in cell.read_split("test")]
    assert len(texts) == ROWS
    # Rounding to 8 bits turns differences of the last bit of float32 into steps.
    for folder, tolerance, most in ((tmp_path / "float32", 1e-3, 0), (cell.folder / "exported", 0.05, 2)):
        model = load_adapted(folder)
        wanted = [model.predict([text])[0] for text in texts]
        with chromium.served(folder) as address, chromium.page(tmp_path / folder.name) as page:
            page.open(address)
            answers = page.run(f"hfadapt.classify({json.dumps(texts)})")
            assert page.faults == []
        differences = [
            abs(one["probabilities"][e.label] - e.probability) for one, e in zip(answers, wanted, strict=True)
        ]
        others = sum(one["label"] != each.label for one, each in zip(answers, wanted, strict=True))
        print(f"{folder.name}: {others} other labels, probabilities within {max(differences):.2g}")
        assert max(differences) < tolerance
        assert others <= most
