"""The audit: planted faults are caught, clean data passes, figures and views are right."""

import ast
import json
from pathlib import Path

import pytest

from hfadapt import data
from hfadapt.core import registry
from hfadapt.core.errors import DataError
from hfadapt.data import DataReport
from hfadapt.data.audit import rows, supervision, tokens
from hfadapt.modalities.text import token_ids
from hfadapt.recipe.schema import Recipe
from hfadapt.records.gaps import gaps
from hfadapt.records.stages import FINDINGS, Audit, DataRecord, Finding

from . import faults


@pytest.fixture(scope="module")
def tokenizer():
    return faults.tokenizer()


@pytest.mark.parametrize("fault", faults.FAULTS, ids=lambda fault: fault.name)
def test_fault_is_caught_before_training(fault, tmp_path):
    said = faults.caught(fault, tmp_path)
    assert said, f"not caught, or said without rows and a fix: {fault.name}"


def cell(folder, rows, task, **asked):
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = Recipe(name="r", model="none", task=task, domains={"d": "rows.jsonl"}, **asked)
    return data.prepare(recipe, recipe_folder=folder, cache=folder / "cache")["d"].copy_into(folder / "cell")


CLEAN = [
    ("text-classification", faults.sentences(400), {}),
    ("causal-lm", faults.pairs(400), {}),
    ("causal-lm", faults.chats(400), {}),
    ("causal-lm", [{"text": row["text"]} for row in faults.sentences(400)], {}),
    ("causal-lm", faults.sentences(400), {"template": {"prompt": "Text: {text}\nMood:", "completion": " {label}"}}),
]


@pytest.mark.parametrize(("task", "rows", "asked"), CLEAN, ids=["labels", "pairs", "chats", "text", "template"])
def test_clean_data_has_no_findings(tmp_path, tokenizer, task, rows, asked):
    record = cell(tmp_path, rows, task, **asked)
    result = data.audit(tmp_path / "cell", registry.task(task), tokenizer, max_length=256, labels=record.labels)
    # These sentences tell good from bad by a handful of words, which is no leak.
    assert [each for each in result.findings if each.level == "hard"] == []
    assert [each.code for each in result.findings] == []
    data.require_clean(result, "d")
    assert result.rows == record.splits["train"]
    assert result.unlabelled_rows == 0
    assert result.learns_to_stop is (None if task == "text-classification" else True)
    assert any(trained for _, trained in result.sample)


def test_figures(tmp_path, tokenizer):
    record = cell(tmp_path, faults.pairs(100), "causal-lm")
    task = registry.task("causal-lm")
    rows = data.read_split(tmp_path / "cell", "train")
    result = data.audit(tmp_path / "cell", task, tokenizer, max_length=256)
    whole = task.encode(rows, tokenizer, max_length=256)
    assert result.tokens == sum(len(token_ids(each)) for each in whole)
    assert result.labelled_tokens == sum(label != -100 for each in whole for label in each.labels)
    lengths = data.lengths(rows, task, tokenizer)
    assert (lengths.rows, lengths.tokens) == (record.splits["train"], result.tokens)
    assert lengths.longest == max(each.length for each in whole) == result.longest[0].tokens
    assert lengths.median <= lengths.p95 <= lengths.longest
    with pytest.raises(DataError, match="no rows"):
        data.lengths([], task, tokenizer)


def test_drop_too_long_names_rows_and_keeps_the_account(tmp_path, tokenizer):
    rows = faults.pairs(100)
    for row in rows[:10]:
        row["completion"] *= 9
    before = cell(tmp_path, rows, "causal-lm")
    task = registry.task("causal-lm")
    after = data.drop_too_long(tmp_path / "cell", task, tokenizer, max_length=90)
    assert after.dropped["over-max-length"] == 10
    assert after.rows_in == after.rows_kept + sum(after.dropped.values()) == before.rows_in
    assert DataRecord.read(tmp_path / "cell" / "data.json") == after
    lines = [json.loads(line) for line in (tmp_path / "cell" / "data" / "dropped.jsonl").open()]
    assert {each["row"] for each in lines if each["reason"] == "over-max-length"} == set(range(10))
    assert data.drop_too_long(tmp_path / "cell", task, tokenizer, max_length=90) == after
    result = data.audit(tmp_path / "cell", task, tokenizer, max_length=90)
    assert result.truncated_rows == 0
    with pytest.raises(DataError, match="every row"):
        data.drop_too_long(tmp_path / "cell", task, tokenizer, max_length=8)


def long_chats(count):
    """Chats, of which the first two have a question, and the next two a second question, that fills all the room."""
    rows = faults.chats(count)
    for number, row in enumerate(rows[:4]):
        row["messages"][0 if number < 2 else 2]["content"] *= 60
    return rows


@pytest.mark.parametrize(("count", "level"), [(100, "soft"), (30, "hard")])
def test_rows_whose_whole_answer_is_cut_off_are_left_out_and_counted(tmp_path, tokenizer, count, level):
    before = cell(tmp_path, long_chats(count), "causal-lm", data={"dedupe": {"near": False}})
    task = registry.task("causal-lm")
    after = data.drop_cut_off(tmp_path / "cell", task, tokenizer, max_length=250)
    assert after.dropped == {data.CUT_OFF: 2}
    assert after.rows_in == after.rows_kept + 2 == before.rows_in
    assert data.drop_cut_off(tmp_path / "cell", task, tokenizer, max_length=250) == after
    lines = [json.loads(line) for line in (tmp_path / "cell" / "data" / "dropped.jsonl").open()]
    assert {each["row"] for each in lines} == {0, 1}
    result = data.audit(tmp_path / "cell", task, tokenizer, max_length=250)
    said = {each.code: each for each in result.findings}
    assert said["rows-without-labels"].level == level
    assert (
        f"the whole answer is cut off in 2 of {count} rows, which are left out" in said["rows-without-labels"].message
    )
    assert result.unlabelled_rows == 0
    trained = {row["row"] for row in data.read_split(tmp_path / "cell", "train")}
    assert set(said["answer-cut"].rows) == {2, 3} & trained, "a chat's second answer that is all beyond is cut off too"


def test_where_nothing_would_be_left_the_rows_stay_for_the_audit(tmp_path, tokenizer):
    before = cell(tmp_path, faults.chats(60), "causal-lm")
    task = registry.task("causal-lm")
    assert data.drop_cut_off(tmp_path / "cell", task, tokenizer, max_length=8) == before
    result = data.audit(tmp_path / "cell", task, tokenizer, max_length=8)
    assert "all-masked" in {each.code for each in result.findings}


def test_a_class_that_was_left_out_is_said_once(tmp_path, tokenizer):
    rows = [*faults.ROWS, *({"text": row["text"], "label": "a (b"} for row in faults.ROWS[:3])]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    domain = {"source": "rows.jsonl", "labels": ["good", "bad", "a (b", "a"]}
    recipe = Recipe(name="r", model="none", task="text-classification", domains={"d": domain}, data={"streaming": True})
    record = data.prepare(recipe, recipe_folder=tmp_path, cache=tmp_path / "cache")["d"].copy_into(tmp_path / "cell")
    task = registry.task("text-classification")
    result = data.audit(tmp_path / "cell", task, tokenizer, max_length=256, labels=record.labels)
    said = {each.code: each for each in result.findings}
    assert said["class-lost"].classes == ("a (b",)
    assert said["class-without-rows"].message == "no row of 'a'"


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ({"a": 500, "b": 20}, "few training rows of 'b'"),
        ({"a": 9_000, "b": 150}, None),
        ({f"class {n}": 25 for n in range(60)}, None),
        ({**{f"class {n}": 25 for n in range(60)}, "x": 4, "y": 2}, "few training rows of 2 classes: 'y' (2), 'x' (4)"),
    ],
)
def test_a_class_is_rare_by_an_even_share_of_the_rows(counts, said):
    kept = [{"text": f"{name} {n}", "label": name} for name, count in counts.items() for n in range(count)]
    splits = {"train": kept, "validation": kept, "test": kept}
    view = rows.View(registry.schema("labelled"), splits, {}, {}, None, None, [*counts], 64)
    found = [each.message for each in rows.classes(view) if each.code == "rare-class"]
    assert [each.startswith(said) for each in found] == ([True] if said else [])


def test_require_clean_lists_every_hard_finding():
    hard = [Finding(code=code, level="hard", message=f"{code} in rows 1, 2", rows=(1, 2), fix="mend") for code in "ab"]
    soft = Finding(code="c", level="soft", message="c")
    counts = {"rows": 1, "tokens": 1, "labelled_tokens": 1, "truncated_rows": 0, "unlabelled_rows": 0}
    data.require_clean(Audit(**counts, findings=(soft,)), "cell")
    with pytest.raises(DataError) as error:
        data.require_clean(Audit(**counts, findings=(*hard, soft)), "cell")
    assert [problem.what for problem in error.value.problems] == ["a in rows 1, 2 [a]", "b in rows 1, 2 [b]"]
    assert "fix:     mend" in str(error.value)


def test_report_in_three_views(tmp_path, tokenizer):
    record = cell(tmp_path, faults.pairs(60), "causal-lm")
    result = data.audit(tmp_path / "cell", registry.task("causal-lm"), tokenizer, max_length=256)
    report = DataReport([record.model_copy(update={"audit": result})], "recipe")
    text, html, coloured = str(report), report._repr_html_(), report.coloured()
    assert "\u00bb" in text
    assert "<mark>" in html
    assert "&lt;|im_end|&gt;" in html
    assert "\x1b[30;42m" in coloured
    assert "\x1b" not in text
    assert "nothing stops the run" in text
    assert report.hard == 0
    assert "| domain |" in report._repr_markdown_()


def test_a_hard_finding_has_a_way_round_and_is_a_warning_where_the_recipe_goes_it(tmp_path, tokenizer):
    cell(tmp_path, [{**row, "completion": "Yes."} for row in faults.pairs(60)], "causal-lm")

    def found(asked):
        looked = data.audit(tmp_path / "cell", registry.task("causal-lm"), tokenizer, max_length=256, asked=asked)
        return {each.code: each for each in looked.findings}

    hard = found(data.Asked())
    soft = found(data.Asked(allow=("same-completion",)))
    assert {code for code, each in hard.items() if each.level == "hard"} == {"same-completion"}
    assert hard["same-completion"].fix.endswith("or set data.allow: [same-completion] to go on all the same")
    assert soft["same-completion"].level == "soft"
    assert soft["same-completion"].message.startswith("allowed by data.allow: all 48 completions are 'Yes.'")


def test_every_hard_finding_is_one_that_can_be_allowed_or_leaves_nothing_to_train():
    """Codes are looked up in the source: `finding("code", …)` and its levels."""
    seen = set()
    for module in (rows, tokens, supervision):
        for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "finding":
                code, level = node.args[:2]
                if isinstance(code, ast.Constant) and ast.unparse(level) != "'soft'":
                    seen.add(code.value)
    fatal = {"mixed-forms", "label-outside-set", "no-chat-template"}
    assert seen - set(FINDINGS) == fatal
    by_variable = {
        *("identifiers", "wrong-column", "no-response", "only-last-turn", "wrong-role"),
        *("prompt-trained", "turns-missing", "round-trip", "class-lost"),
    }
    assert set(FINDINGS) - seen == by_variable


@pytest.mark.parametrize("grouped", [False, True])
def test_classes_that_no_test_row_has_are_said(tmp_path, tokenizer, grouped):
    """As where all rows of a class are of one or two speakers, who stay in training."""
    found = faults.sentences(400)
    for n, row in enumerate(found):
        row["label"] = "odd" if n % 20 == 0 else row["label"]
        row["who"] = "ann" if row["label"] == "odd" else f"speaker {n}"
    tested = [] if grouped else [row for row in found[300:] if row["label"] != "odd"]
    for name, own in (("rows", [row for row in found if row not in tested]), ("test", tested)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    source = {"source": "rows.jsonl", "columns": {"group": "who"} if grouped else {}}
    domain = source if grouped else {**source, "test": "test.jsonl"}
    asked = {"data": {"dedupe": {"near": False}}}
    recipe = Recipe(name="r", model="none", task="text-classification", domains={"d": domain}, **asked)
    record = data.prepare(recipe, recipe_folder=tmp_path, cache=tmp_path / "cache")["d"].copy_into(tmp_path / "cell")
    assert "odd" not in record.label_counts["test"]
    task = registry.task("text-classification")
    result = data.audit(tmp_path / "cell", task, tokenizer, max_length=256, labels=record.labels)
    (said,) = (each for each in result.findings if each.code == "class-not-in-test")
    assert (said.level, said.message) == ("soft", "no test row of 'odd': how well they are told is not measured")
    assert ("from other groups" in said.fix) == grouped
    assert said.message in gaps(record)
