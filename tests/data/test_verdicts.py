"""Answers that the data calls bad are not learned without a word."""

import json

import pytest

from hfadapt import data
from hfadapt.core.errors import DataError
from hfadapt.recipe.schema import Recipe

from .faults import pairs

PAIRS = pairs(60)
WAYS = pytest.mark.parametrize("streaming", [False, True])


def prepare(folder, rows, streaming=False, **domain):
    if isinstance(rows, str):
        source = "a.csv"
        (folder / source).write_text(rows)
    else:
        source = "a.jsonl"
        (folder / source).write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"streaming": streaming, "dedupe": {"near": False}}
    recipe = Recipe(
        name="r", model="none", task="causal-lm", domains={"d": {"source": source, **domain}}, data=settings
    )
    return data.prepare(recipe, recipe_folder=folder, cache=folder / "cache")["d"]


def learned(made):
    return {row["row"] for split in made.record.splits for row in made.rows(split)}


def turns(prompt, completion):
    return [{"role": "user", "content": prompt}], [{"role": "assistant", "content": completion}]


SHAPES = {
    "texts": lambda row, good: {**row, "label": good},
    "turns": lambda row, good: {
        **dict(zip(("prompt", "completion"), turns(**row), strict=True)),
        "label": good,
    },
    "chats": lambda row, good: {"messages": [*turns(**row)[0], *turns(**row)[1]], "kto_tag": good},
    "words": lambda row, good: {**row, "Label": "True" if good else "False"},
}


@WAYS
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_marked_as_bad_are_left_out_and_said(tmp_path, shape, streaming):
    made = prepare(tmp_path, [SHAPES[shape](row, n % 3 != 0) for n, row in enumerate(PAIRS)], streaming)
    assert learned(made) == {n for n in range(60) if n % 3}
    assert made.record.dropped == {"marked-bad": 20}
    (found,) = made.record.noticed
    assert (found.code, found.level) == ("marked-bad", "soft")
    assert "20 rows are left out" in found.message


def test_a_template_that_does_not_show_the_verdict_learns_good_rows(tmp_path):
    rows = [{"q": row["prompt"], "a": row["completion"], "label": n % 3 != 0} for n, row in enumerate(PAIRS)]
    template = {"prompt": "{q}", "completion": " {a}"}
    assert len(learned(prepare(tmp_path, rows, template=template))) == 40
    shown = {"prompt": "{q} {a}", "completion": " {label}"}
    assert len(learned(prepare(tmp_path, rows, template=shown))) == 60


def test_nothing_is_left_where_all_are_bad(tmp_path):
    with pytest.raises(DataError, match="no rows are left") as caught:
        prepare(tmp_path, [{**row, "label": False} for row in PAIRS])
    assert "60 marked-bad" in str(caught.value)


def test_numbers_that_may_be_verdicts_are_said(tmp_path):
    lines = [f"{row['prompt']},{row['completion']},{n % 2}" for n, row in enumerate(PAIRS)]
    made = prepare(tmp_path, "prompt,completion,label\n" + "\n".join(lines))
    assert len(learned(made)) == 60
    assert [found.code for found in made.record.noticed] == ["verdict-not-read"]
    kinds = [{**row, "label": f"kind {n % 3}"} for n, row in enumerate(PAIRS)]
    assert prepare(tmp_path, kinds).record.noticed == ()


def test_pairs_are_not_read_unasked(tmp_path):
    def chat(*said):
        return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(said)]

    rows = [{"prompt": row["prompt"], "chosen": row["completion"], "rejected": "no"} for row in PAIRS]
    for more in ({}, {"completion": "yes"}, {"text": "whole"}, {"messages": chat("a", "b", "c")}):
        with pytest.raises(DataError, match="pairs of a better and a worse answer") as caught:
            prepare(tmp_path, [{**row, **more} for row in rows])
        assert "columns: {prompt: prompt, completion: chosen}" in str(caught.value)
    made = prepare(tmp_path, rows, columns={"prompt": "prompt", "completion": "chosen"})
    assert made.record.noticed == ()
    assert made.rows("train")[0]["completion"] != "no"
    worse = prepare(tmp_path, rows, columns={"prompt": "prompt", "completion": "rejected"}).record.noticed
    assert [found.code for found in worse] == ["worse-answers"]
