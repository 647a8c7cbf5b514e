"""Chats are brought to what the model's template can show, and what was done is said."""

from __future__ import annotations

import json

import pytest

from hfadapt import data
from hfadapt.core import registry
from hfadapt.core.errors import DataError
from hfadapt.recipe.schema import Recipe

from . import faults

LM = registry.task("causal-lm")
THINKING = faults.CHATML.replace("{{ m['content'] }}", "{{ '<think></think>' if loop.last }}{{ m['content'] }}")
ALTERNATING = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}" + faults.CHATML
)


def fitted(folder, rows, template=faults.CHATML, **options):
    """The record, and the findings of the audit, after preparing, fitting and looking."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"dedupe": {"near": False}}
    recipe = Recipe(name="chats", model="none", task="causal-lm", domains={"d": "rows.jsonl"}, data=settings)
    data.prepare(recipe, recipe_folder=folder, cache=folder / "cache")["d"].copy_into(folder / "cell")
    tokenizer = faults.tokenizer(template)
    record = data.fit(folder / "cell", LM, tokenizer, **options)
    return record, data.audit(folder / "cell", LM, tokenizer, max_length=256).findings


def with_calls(rows):
    """Every second chat calls a tool before it answers."""
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "look", "arguments": "{}"}}]}
    result = {"role": "tool", "content": "nothing"}
    for row in rows[::2]:
        row["messages"][1:1] = [call, result]
    return rows


def test_a_template_that_changes_earlier_turns_makes_a_row_of_each_answer(tmp_path):
    record, findings = fitted(tmp_path, faults.chats(60), THINKING)
    assert record.splits["train"] == 2 * 48
    assert sum(record.splits.values()) == 120
    assert record.rows_in == record.rows_kept == 60
    assert [each.code for each in findings if each.level == "hard"] == []
    [said] = [each.message for each in findings if each.code == "chats-parted"]
    assert said.startswith("60 chats are 120 rows, one for each answer")
    rows = data.read_split(tmp_path / "cell", "train")
    assert len({(row["source"], row["row"], len(row["messages"])) for row in rows}) == len(rows)
    assert data.fit(tmp_path / "cell", LM, faults.tokenizer(THINKING)) == record
    parts = [{(row["source"], row["row"]) for row in data.read_split(tmp_path / "cell", s)} for s in ("train", "test")]
    assert not parts[0] & parts[1]


def test_a_template_that_keeps_them_changes_nothing(tmp_path):
    record, findings = fitted(tmp_path, faults.chats(60))
    assert record.splits["train"] == 48
    assert "chats-parted" not in {each.code for each in findings}


def test_calls_that_cannot_be_shown_are_left_out_and_named(tmp_path):
    record, findings = fitted(tmp_path, with_calls(faults.chats(60)))
    assert record.dropped == {"tool-calls-not-shown": 30}
    assert record.rows_in == record.rows_kept + 30
    [said] = [each for each in findings if each.code == "many-dropped"]
    assert "does not write tool_calls (turn 2 calls look)" in said.message
    assert "line 1 of rows.jsonl" in said.message
    lines = [json.loads(line) for line in (tmp_path / "cell" / "data" / "dropped.jsonl").open()]
    assert {each["reason"] for each in lines} == {"tool-calls-not-shown"}


def test_rows_that_the_template_refuses_are_all_named(tmp_path):
    rows = faults.chats(60)
    for row in rows[:6]:
        row["messages"].insert(0, {"role": "user", "content": "hello"})
    record, findings = fitted(tmp_path, rows, ALTERNATING)
    [hard] = [each for each in findings if each.level == "hard"]
    assert "the chat template refuses the chat: roles must alternate in 6 of 60 rows" in hard.message
    assert set(hard.rows) == set(range(6))
    assert record.rows_kept == 60


def test_refused_rows_are_left_out_where_that_is_allowed(tmp_path):
    rows = faults.chats(60)
    rows[3]["messages"].insert(0, {"role": "user", "content": "hello"})
    record, findings = fitted(tmp_path, rows, ALTERNATING, drop_refused=True)
    assert record.dropped == {"refused": 1}
    assert [each.code for each in findings if each.level == "hard"] == []


def test_no_row_that_can_be_learned_is_an_error(tmp_path):
    rows = [{"messages": [*row["messages"][:1], *row["messages"]]} for row in faults.chats(60)]
    with pytest.raises(DataError) as error:
        fitted(tmp_path, rows, ALTERNATING, drop_refused=True)
    assert "no row of the train split can be learned by this model" in str(error.value)
    assert "roles must alternate" in str(error.value)
    with pytest.raises(DataError, match=r"roles must alternate in 48 of 48 rows: lines .* of rows\.jsonl"):
        data.lengths(data.read_split(tmp_path / "cell", "train"), LM, faults.tokenizer(ALTERNATING))


def test_mostly_images_stop_the_run(tmp_path):
    rows = faults.chats(60)
    for row in rows[:40]:
        row["messages"][0]["content"] = [{"type": "image_url", "image_url": {"url": "a.png"}}]
    _, findings = fitted(tmp_path, rows)
    [hard] = [each for each in findings if each.level == "hard"]
    assert hard.code == "many-dropped"
    assert "40 of 60 rows were dropped as not-text, such as line 1 of rows.jsonl: turn 1 (user)" in hard.message
