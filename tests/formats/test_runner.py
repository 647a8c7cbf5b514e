"""A runtime of its own, called as a model of transformers is: any batch, or the one size that a file takes."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hfadapt.core.errors import RequestError, RunError
from hfadapt.core.registry import format as format_of
from hfadapt.formats import Form, Runner, Shape, install, missing, require_packages

CONFIG = SimpleNamespace(num_labels=2)
INTS = {"input_ids": "int64", "attention_mask": "int64"}


def counting(seen):
    """Logits of a row: the sum of its tokens that count, and their number; for each token its double."""

    def run(arrays):
        ids, mask = arrays["input_ids"], arrays["attention_mask"]
        seen.append(ids.shape)
        sums = np.stack([(ids * mask).sum(1), mask.sum(1)], axis=1).astype(np.float32)
        return {"logits": sums, "doubled": np.repeat(2.0 * ids[:, :, None], 3, axis=2)}

    return run


def batch(rows, length):
    ids = torch.arange(1, rows * length + 1).reshape(rows, length)
    mask = torch.ones_like(ids)
    mask[0, length // 2 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("shape", [Shape(), Shape(rows=1), Shape(rows=2), Shape(length=9), Shape(rows=3, length=16)])
def test_rows_and_tokens_are_added_and_taken_away_again(shape):
    seen = []
    runner = Runner(counting(seen), INTS, CONFIG, shape, {"input_ids": 99})
    given = batch(5, 7)
    found = runner(**given, output_attentions=True, not_read=torch.zeros(5))
    expected = (given["input_ids"] * given["attention_mask"]).sum(1)
    assert found.logits[:, 0].tolist() == expected.tolist()
    assert found.doubled.shape == (5, 7, 3)
    assert torch.equal(found.doubled[..., 1], 2.0 * given["input_ids"])
    assert {size[0] for size in seen} == {shape.rows or 5}
    assert {size[1] for size in seen} == {shape.length or 7}
    assert len(seen) == -(-5 // (shape.rows or 5))


def test_short_rows_are_filled_with_the_pad_token():
    seen = []

    def run(arrays):
        seen.append(arrays["input_ids"])
        return {"logits": arrays["input_ids"].astype(np.float32)}

    Runner(run, {"input_ids": "int64"}, CONFIG, Shape(2, 4), {"input_ids": 7})(input_ids=torch.ones(1, 3).long())
    assert seen[0].tolist() == [[1, 1, 1, 7], [7, 7, 7, 7]]


def test_a_row_that_is_too_long_is_refused_and_not_cut():
    with pytest.raises(RunError, match="longer than the file takes") as caught:
        Runner(counting([]), INTS, CONFIG, Shape(length=6))(**batch(2, 7))
    assert "7 tokens" in str(caught.value)
    assert "at most 6" in str(caught.value)


def test_a_missing_input_is_named():
    with pytest.raises(RunError, match="not given") as caught:
        Runner(counting([]), INTS, CONFIG)(input_ids=torch.ones(1, 2).long())
    assert "attention_mask" in str(caught.value)


def test_numbers_come_in_the_type_that_the_file_takes():
    kinds = []

    def run(arrays):
        kinds.append(arrays["input_ids"].dtype)
        return {"logits": np.zeros((1, 2), np.float32)}

    Runner(run, {"input_ids": "int32"}, CONFIG)(input_ids=torch.ones(1, 2).long())
    assert kinds == [np.dtype("int32")]


def test_packages_that_are_missing_are_named_with_the_extra():
    kind = format_of("merged")

    class Lacking(type(kind)):
        name = "lacking"
        packages = ("json", "no_such_package", "another_one")
        extra = "lacking"

    with pytest.raises(RequestError, match="packages that are not installed") as caught:
        require_packages(Lacking())
    assert missing(Lacking()) == ("no_such_package", "another_one")
    assert 'pip install "hfadapt[lacking]"' in str(caught.value)
    assert str(caught.value).count("pip install") == 1
    Lacking.extra = ""
    assert install(Lacking(), "no_such_package") == "pip install no_such_package"
    require_packages(kind)


def test_a_form_of_a_runtime_has_its_own_name():
    assert Form("int8-dynamic", True, own="int8-dynamic").name == "int8-dynamic"
    assert Form("bfloat16", True).name == "merged-bfloat16"
