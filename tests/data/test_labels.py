"""What classes are called, and what is said of merged, doubtful and impossible labels, in memory and on a stream."""

import json

import pytest

from hfadapt import data
from hfadapt.core.errors import DataError
from hfadapt.data.labels import Labels
from hfadapt.recipe.schema import Recipe
from hfadapt.schemas import Unusable

from .faults import sentences

TEXTS = [row["text"] for row in sentences(120)]
WAYS = pytest.mark.parametrize("streaming", [False, True])


@pytest.mark.parametrize(
    ("value", "names", "column_names", "expected"),
    [
        (1, None, ("neg", "pos"), "pos"),
        ("1", None, ("neg", "pos"), "pos"),
        ("pos", None, ("neg", "pos"), "pos"),
        ("1", None, ("1", "0"), "1"),
        (-1, None, ("neg", "pos"), None),
        (7, None, ("neg", "pos"), "7"),
        (1, ["bad", "good"], (), "good"),
        ("1", ["bad", "good"], (), "good"),
        ("1.0", ["bad", "good"], (), "good"),
        (True, ["bad", "good"], (), "good"),
        ("-1", ["bad", "good"], (), None),
        ("GOOD", ["bad", "good"], (), "good"),
        ("GOOD", ["GOOD", "good"], (), "GOOD"),
        ("Good", ["GOOD", "good"], (), "Good"),
        ("³", ["bad", "good"], (), "³"),
        ("1", ["0", "1"], (), "1"),
        ("0", ["1", "2"], (), "0"),
        (" x  y\t", None, (), "x y"),
        (1.0, None, (), "1"),
        ("1,0", None, (), "1"),
        ("1.5", None, (), "1.5"),
        ("01", None, (), "01"),
        (True, None, (), "true"),
        (2**70, None, (), str(2**70)),
        ("9" * 5000, ["bad", "good"], (), "9" * 5000),
        (["x"], None, (), "x"),
        ("['x']", None, (), "x"),
        ('["x"]', None, (), "x"),
        ("[PAD]", None, (), "[PAD]"),
        *((nothing, None, (), None) for nothing in (None, "", "  ", float("nan"), float("inf"), [], "[]")),
    ],
)
def test_names(value, names, column_names, expected):
    assert Labels(names).name(value, column_names) == expected


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (["a", "b"], "several-labels"),
        ("['a', 'b']", "several-labels"),
        ('["a", "b"]', "several-labels"),
        ({"a": 1}, "label-is-object"),
        ('{"a": 1}', "label-is-object"),
    ],
)
def test_what_is_no_class(value, reason):
    with pytest.raises(Unusable) as caught:
        Labels(None).name(value)
    assert caught.value.reason == reason


def test_tags_tell_case_apart():
    labels = Labels(None)
    assert [labels.name(tag, tags=True) for tag in ("B", "b")] == ["B", "b"]
    assert [labels.name(tag) for tag in ("X", "x")] == ["X", "X"]


def prepare(folder, values, streaming, task="text-classification", column="label", test=None, **domain):
    """A domain whose rows have these values as labels, again and again."""
    rows = [{"text": text, column: values[n % len(values)]} for n, text in enumerate(TEXTS)]
    return prepare_rows(folder, rows, streaming, task, test, **domain)


def prepare_rows(folder, rows, streaming, task="text-classification", test=None, **domain):
    for name, own in {"rows": rows, "test": test}.items():
        if own is not None:
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    given = {"test": "test.jsonl"} if test is not None else {}
    asked = {"name": "r", "model": "none", "task": task, "data": {"streaming": streaming, "dedupe": {"near": False}}}
    recipe = Recipe(**asked, domains={"d": {"source": "rows.jsonl", **given, **domain}})
    return data.prepare(recipe, recipe_folder=folder, cache=folder / "cache")["d"].record


@WAYS
@pytest.mark.parametrize(
    ("values", "labels", "code", "said"),
    [
        ([0, 1, 0.0, "1", "1.0"], ("0", "1"), "label-spelling", "'0' is spelled '0' (24), '0.0' (24)"),
        (["bad", "Good", " bad ", "good", "Bad"], ("Good", "bad"), "label-spelling", "'good' (24)"),
        ([True, False, "TRUE", "False"], ("false", "true"), "label-spelling", "'TRUE' (30)"),
        ([["a"], ["b"]], ("a", "b"), "label-list", "120 labels"),
        (["00", "01", "0", "1"], ("0", "00", "01", "1"), "label-alike", "'0' and '00'; '01' and '1'"),
        (["no_spam", "no spam", "x"], ("no spam", "no_spam", "x"), "label-alike", "'no spam' and 'no_spam'"),
        (["³", "3", "2"], ("2", "3", "³"), "label-alike", "'3' and '³'"),
        ([True, 1, 0], ("0", "1", "true"), "label-alike", "'1' and 'true'"),
        (["a", "nan"], ("a", "nan"), "label-missing", "'nan'"),
        ([0, 1, -1], ("-1", "0", "1"), "label-minus-one", "-1"),
        ([0.5, 1.5, 2], ("0.5", "1.5", "2"), "label-score", "0.5, 1.5"),
        (["0,5", "1,5"], ("0,5", "1,5"), "label-score", "0,5, 1,5"),
        ([*range(24)], tuple(sorted(map(str, range(24)))), "label-score", "24 numbers"),
        (["a,b", "a", "b", "b,a"], ("a", "a,b", "b", "b,a"), "label-several", "'a,b'"),
        (["a b", "a", "b", "c"], ("a", "a b", "b", "c"), "label-several", "'a b'"),
    ],
)
def test_merged_and_doubtful_labels_are_said(tmp_path, values, labels, code, said, streaming):
    record = prepare(tmp_path, values, streaming)
    assert record.labels == labels
    found = {each.code: each for each in record.noticed}
    assert [*found] == [code]
    assert said in found[code].message
    assert found[code].fix
    assert found[code].level == "soft"


@WAYS
@pytest.mark.parametrize(
    ("values", "none"),
    [
        (["a", "b", "???"], ["???"]),
        (["a", "b", "N/A"], ["n/a"]),
        ([0, 1, -1], ["-1"]),
        # More than a tenth may be empty, where the recipe says that these are not labelled.
        (["a", "b", ""], [""]),
        (["a", "b", None], [""]),
        (["a", "b", "  ", "tbd"], ["", "tbd"]),
    ],
)
def test_what_stands_for_no_label_is_left_out(tmp_path, values, none, streaming):
    record = prepare(tmp_path, values, streaming, no_label=none)
    assert record.labels == tuple(map(str, values[:2]))
    assert record.dropped == {"no-label": sum(1 for n in range(len(TEXTS)) if n % len(values) > 1)}
    assert record.noticed == ()


def test_the_name_of_a_class_by_number_can_stand_for_none():
    labels = Labels(None, ["Unknown"])
    assert labels.says_none(1, ("spam", "unknown"))
    assert labels.says_none("unknown", ("spam", "unknown"))
    assert not labels.says_none(0, ("spam", "unknown"))
    assert not Labels(None).says_none("")


@WAYS
def test_white_space_around_names_of_the_list_is_none(tmp_path, streaming):
    record = prepare(tmp_path, ["very good", "bad"], streaming, labels=["very  good ", "bad"])
    assert record.labels == ("very good", "bad")
    assert record.noticed == ()


@WAYS
@pytest.mark.parametrize("task", ["text-classification", "multi-label-classification"])
@pytest.mark.parametrize("value", [[0.9, 0.05, 0.05], "[0.9, 0.05, 0.05]", {"joy": 0.9, "anger": 0.1}])
def test_probabilities_are_no_classes(tmp_path, value, task, streaming):
    if isinstance(value, dict) and task == "text-classification":
        return
    with pytest.raises(DataError, match="have numbers with decimals for the classes"):
        prepare(tmp_path, [value, value], streaming, task=task)


@WAYS
@pytest.mark.parametrize(
    "values", [["a", "b"], [0, 1], [-1, 1], ["C", "C++", "C#"], ["not a, b", "c"], ["1.1.0", "1.10"], ["B-PER", "O"]]
)
def test_plain_labels_are_not_doubted(tmp_path, values, streaming):
    record = prepare(tmp_path, values, streaming)
    assert (record.noticed, set(record.labels)) == ((), set(map(str, values)))


@WAYS
@pytest.mark.parametrize(
    ("values", "labels", "said"),
    [
        ([n / 10 for n in range(10, 51)], None, ("41 numbers with decimals", "text-regression")),
        ([f"{n},5" for n in range(12)], None, ("12 numbers with decimals", "text-regression")),
        ([["a", "b"], ["a"]], None, ("60 of 120 rows have several labels", "multi-label-classification")),
        ([{"name": "a", "of": "c"}, {"name": "b", "of": "c"}], None, ("label.name, label.of", "label: NAME")),
        (["1", "2"], ["bad", "good"], ("count from 1", "number 0 is 'bad'")),
        (["²", "³"], ["bad", "good"], ("'²'", "allowed: bad, good")),
        ([None, "a", "b"], None, ("40 of 120 rows lack", "line 1 of rows.jsonl has no label")),
        ([[0, 1, 1], [1, 0, 0]], None, ("0, 1, 2 hold 0 and 1", "multi-label-classification")),
    ],
)
def test_labels_that_cannot_be_meant(tmp_path, values, labels, said, streaming):
    with pytest.raises(DataError) as caught:
        prepare(tmp_path, values, streaming, labels=labels)
    for part in said:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("values", "task"),
    [
        ([n / 10 for n in range(10, 51)], "text-regression"),
        ([f"{n},5" for n in range(12)], "text-regression"),
        ([["a", "b"], ["a"]], "multi-label-classification"),
        ([[0, 1, 1], [1, 0, 0]], "multi-label-classification"),
        (["a,b", "a", "b", "b,a"], "multi-label-classification"),
    ],
)
def test_the_task_that_a_message_names_takes_the_labels(tmp_path, values, task):
    record = prepare(tmp_path, values, False, task)
    assert record.rows_kept == 120


@WAYS
def test_listed_labels_are_meant(tmp_path, streaming):
    names = [f"{n / 10}" for n in range(11, 36, 2)]
    assert not prepare(tmp_path, names, streaming, labels=names).noticed


@WAYS
def test_numbers_without_0_are_doubted(tmp_path, streaming):
    record = prepare(tmp_path, [1, 2], streaming, labels=["bad", "good", "best"])
    assert [each.code for each in record.noticed] == ["label-from-one"]
    assert "'bad'" in record.noticed[0].fix


FLAGS = [{"text": text, "sad": n % 3 == 0, "glad": int(n % 3 > 0)} for n, text in enumerate(TEXTS)]
SEVERAL = [{"text": text, "sad": str(n % 2), "glad": 1.0, "calm": int(n > 110)} for n, text in enumerate(TEXTS)]


@WAYS
def test_a_column_for_each_class(tmp_path, streaming):
    record = prepare_rows(tmp_path, FLAGS, streaming)
    assert record.labels == ("glad", "sad")
    assert "0 and 1 in sad, glad" in record.noticed[0].message
    with pytest.raises(DataError, match="several columns") as caught:
        prepare_rows(tmp_path, SEVERAL, streaming)
    assert "multi-label-classification" in str(caught.value)
    assert "columns: {label: sad}" in str(caught.value)
    assert prepare_rows(tmp_path, SEVERAL, streaming, "multi-label-classification").labels == ("calm", "glad", "sad")
    assert prepare_rows(tmp_path, SEVERAL, streaming, columns={"text": "text", "label": "sad"}).labels == ("0", "1")


@WAYS
def test_hidden_test_sets(tmp_path, streaming):
    hidden = [{"text": f"{text} again", "label": -1} for text in TEXTS[:40]]
    with pytest.raises(DataError) as caught:
        prepare(tmp_path, [0, 1], streaming, test=hidden)
    assert "leave test out" in str(caught.value)
    with pytest.raises(DataError) as caught:
        prepare(tmp_path, [0, 1], streaming, test=hidden, labels=["bad", "good"])
    assert "leave test out" in str(caught.value)
    with pytest.raises(DataError) as caught:
        prepare(tmp_path, ["bad", "good"], streaming, test=[{**row, "label": n % 2} for n, row in enumerate(hidden)])
    assert "list the names in the domain's labels" in str(caught.value)


@WAYS
def test_all_training_rows_are_held_out(tmp_path, streaming):
    rows = [{"text": text, "label": n % 2} for n, text in enumerate(TEXTS)]
    with pytest.raises(DataError, match="no training rows are left") as caught:
        prepare_rows(tmp_path, rows, streaming, test=rows)
    assert "120 duplicates: all training rows are also in test.jsonl" in str(caught.value)


@WAYS
def test_numbers_of_a_test_file_are_named_by_the_training_file(tmp_path, streaming):
    import datasets

    rows = [{"text": text, "label": n % 2} for n, text in enumerate(TEXTS)]
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    datasets.Dataset.from_list(rows[:80], features=features).to_parquet(tmp_path / "train.parquet")
    record = prepare_rows(tmp_path, [], streaming, test=rows[80:], source="train.parquet")
    assert record.label_counts["test"] == {"neg": 20, "pos": 20}
    assert "test.jsonl by those of train.parquet" in record.noticed[0].message


@pytest.mark.parametrize("values", [[float("nan"), "x"], [None, "x"]])
def test_nan_is_a_missing_text(tmp_path, values):
    rows = [{"text": text, "label": n % 2} for n, text in enumerate(TEXTS)]
    rows += [{"text": values[0], "label": 1}]
    assert prepare_rows(tmp_path, rows, False).dropped == {"missing-field": 1}


@pytest.mark.parametrize(
    ("text", "said"),
    [({"en": "a", "fr": "b"}, "text.en, text.fr, label"), ({"count": 3}, "object"), ([{"en": "a"}], "object")],
)
def test_objects_are_no_text(tmp_path, text, said):
    with pytest.raises(DataError, match=said):
        prepare_rows(tmp_path, [{"text": text, "label": n % 2} for n in range(20)], False)


def test_the_one_field_of_an_object_is_what_the_object_is_called(tmp_path):
    rows = [{"text": {"en": text}, "label": {"name": "ab"[n % 2]}} for n, text in enumerate(TEXTS)]
    assert prepare_rows(tmp_path, rows, False).labels == ("a", "b")


@pytest.mark.parametrize(
    ("names", "tasks"),
    [
        (["a", "b", "a, b"], ["multi-label-classification", "image-multi-label", "audio-multi-label"]),
        (["0.5", "1.5"], ["text-regression", "image-regression", "audio-regression"]),
    ],
)
def test_the_task_that_is_advised_learns_of_the_same(names, tasks):
    forms = ("labelled", "pictured", "sounded")
    found = [each for form in forms for each in Labels(None).findings(names, form, "d") if "task: " in each.fix]
    assert [each.fix.partition("task: ")[2].split()[0].rstrip(",") for each in found] == tasks
    assert len({each.message for each in found}) == 1
