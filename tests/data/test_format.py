"""Formats that are recognised, templates, labels, and columns that are refused."""

import pytest

from hfadapt.core.errors import DataError
from hfadapt.data import columns as format
from hfadapt.data import mistaken_columns
from hfadapt.data.rows import Dropped, Row
from hfadapt.data.values import label_fault, shown_fault
from hfadapt.files.places import Place
from hfadapt.recipe.schema import Columns
from hfadapt.recipe.template import Template, Turn

LM = frozenset({"completion", "messages", "text"})
CLASSIFY = frozenset({"labelled"})
CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]


def made(values, forms, asked=None, template=None, labels=None, label_names=()):
    asked = asked or Columns()
    shape = format.recognise(list(values), asked, forms, "source", template is not None)
    formatter = format.Formatter("s", shape, template, format.Labels(labels), label_names, list(values))
    return formatter.row(Place("s", 4), values)


@pytest.mark.parametrize(
    ("values", "forms", "columns"),
    [
        ({"text": "t", "label": "x", "id": 3}, CLASSIFY, {"text": "t", "label": "x"}),
        ({"Sentence": "t", "Sentiment": "x"}, CLASSIFY, {"text": "t", "label": "x"}),
        ({"text": "t", "label": 1}, CLASSIFY, {"text": "t", "label": "1"}),
        ({"text": "t", "label": 1.0}, CLASSIFY, {"text": "t", "label": "1"}),
        ({"text": "t", "label": True}, CLASSIFY, {"text": "t", "label": "true"}),
        ({"prompt": "p", "completion": "c"}, LM, {"prompt": "p", "completion": "c"}),
        ({"question": "p", "answer": "c"}, LM, {"prompt": "p", "completion": "c"}),
        ({"instruction": "i", "input": "n", "output": "o"}, LM, {"prompt": "i\n\nn", "completion": "o"}),
        ({"instruction": "i", "input": "", "output": "o"}, LM, {"prompt": "i", "completion": "o"}),
        ({"instruction": "i", "context": "n", "response": "o"}, LM, {"prompt": "i\n\nn", "completion": "o"}),
        ({"instruction": "i", "output": "o"}, LM, {"prompt": "i", "completion": "o"}),
        ({"messages": CHAT}, LM, {"messages": CHAT}),
        (
            {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]},
            LM,
            {"messages": CHAT},
        ),
        ({"text": "plain"}, LM, {"text": "plain"}),
        ({"text": "t", "label": "x"}, frozenset({"text"}), {"text": "t"}),
    ],
)
def test_recognised(values, forms, columns):
    row = made(values, forms)
    assert isinstance(row, Row)
    assert row.columns == columns
    assert row.place == ("s", 4)


def test_asked_columns_win():
    values = {"text": "no", "label": "no", "body": "yes", "kind": "b"}
    assert made(values, CLASSIFY, Columns(text="body", label="kind")).columns == {"text": "yes", "label": "b"}
    assert made(values, CLASSIFY, Columns(label="kind")).columns == {"text": "no", "label": "b"}
    assert made(values, LM, Columns(text="body")).columns == {"text": "yes"}


def test_unknown_column_names_the_nearest():
    with pytest.raises(DataError) as error:
        made({"tweet_text": "t", "label": 1}, CLASSIFY, Columns(text="tweet_txt"))
    assert "tweet_text" in str(error.value)
    assert "label" in str(error.value)


def test_nothing_fits_names_the_columns():
    with pytest.raises(DataError) as error:
        made({"a": 1, "b": 2}, CLASSIFY)
    assert "columns a, b" in str(error.value)
    with pytest.raises(DataError, match="do not fit the task") as error:
        made({"text": "t", "label": "x"}, LM)
    assert "template" in str(error.value)


def test_template_of_prompt_and_completion():
    template = Template(prompt="Is {review} good? {stars}", completion=" {label}")
    row = made({"review": "it", "stars": 4, "sentiment": 1}, LM, template=template, labels=["bad", "good"])
    assert row.columns == {"prompt": "Is it good? 4", "completion": " good", "label": "good"}
    assert row.text == "it\n4"
    assert row.label == "good"


def test_template_of_messages():
    turns = (Turn(role="system", content="S"), Turn(role="user", content="{q}"), Turn(role="assistant", content="{a}"))
    row = made({"q": "why {braces}?", "a": "so"}, LM, template=Template(messages=turns))
    assert [turn["content"] for turn in row.columns["messages"]] == ["S", "why {braces}?", "so"]
    assert row.label is None


def test_template_faults_name_the_columns():
    with pytest.raises(DataError) as error:
        made({"text": "t", "label": 1}, LM, template=Template(prompt="{txt}", completion="{label}"))
    assert "'text'" in str(error.value)
    with pytest.raises(DataError, match="shows the answer"):
        made({"text": "t", "label": 1}, LM, template=Template(prompt="{text} {label}", completion="{label}"))
    with pytest.raises(DataError, match="same completion"):
        made({"text": "t", "label": 1}, LM, template=Template(prompt="{text}", completion="yes"))


@pytest.mark.parametrize(
    ("values", "forms", "reason"),
    [
        ({"text": None, "label": "x"}, CLASSIFY, "missing-field"),
        ({"text": "t", "label": None}, CLASSIFY, "missing-field"),
        ({"text": "t", "label": float("nan")}, CLASSIFY, "missing-field"),
        ({"messages": "no list"}, LM, "wrong-messages"),
        ({"messages": [{"role": "elf", "content": "x"}]}, LM, "wrong-messages"),
        ({"messages": CHAT[:1]}, LM, "no-assistant-turn"),
        ({"messages": [CHAT[0], {"role": "assistant", "content": " "}]}, LM, "empty-completion"),
    ],
)
def test_rows_that_cannot_be_used(values, forms, reason):
    item = made(values, forms)
    assert isinstance(item, Dropped)
    assert (item.where.row, item.reason) == (4, reason)


def row(number, **columns):
    text = columns.get("text") or columns.get("prompt") or ""
    return Row("s", number, columns, text, columns.get("label"), text, form=format.form_of(columns))


def test_prompts_and_completions_of_turns_are_chats_of_which_the_completion_is_learned():
    shape = format.recognise(["prompt", "completion", "tools"], Columns(), LM, "d", False)
    formatter = format.Formatter("d", shape, None, format.Labels(None), (), ("prompt", "completion", "tools"))
    prompt = [*CHAT, {"role": "user", "content": "and"}]
    made = formatter.row(Place("s", 0), {"prompt": prompt, "completion": [CHAT[1]], "tools": '[{"name": "look"}]'})
    assert made.form == "messages"
    assert [(each["role"], each.get("trained")) for each in made.columns["messages"]] == [
        *(("user", None), ("assistant", False), ("user", None), ("assistant", None)),
    ]
    assert '"look"' in made.columns["tools"]


def test_a_prompt_of_turns_is_answered_by_text():
    shape = format.recognise(["prompt", "completion"], Columns(), LM, "d", False)
    formatter = format.Formatter("d", shape, None, format.Labels(None), (), ("prompt", "completion"))
    made = formatter.row(Place("s", 0), {"prompt": [*CHAT, {"role": "user", "content": "and"}], "completion": "bye"})
    assert [(each["content"], each.get("trained")) for each in made.columns["messages"]] == [
        *(("hi", None), ("hello", False), ("and", None), ("bye", None)),
    ]


@pytest.mark.parametrize("columns", [["prompt", "chosen", "rejected"], ["chosen", "rejected"], ["Chosen", "Rejected"]])
def test_pairs_of_preference_are_called_what_they_are(columns):
    with pytest.raises(DataError) as error:
        format.recognise(columns, Columns(), LM, "d", False)
    assert "preference optimisation (DPO)" in str(error.value)
    assert f"columns: {{messages: {columns[-2]}}}" in str(error.value)


def test_tools_and_system_are_found_beside_a_chat_that_the_recipe_names():
    shape = format.recognise(["talk", "tools", "system", "images"], Columns(messages="talk"), LM, "d", False)
    assert shape.parts == {"messages": "talk", "tools": "tools", "system": "system", "media": "images"}


def test_completion_joins_messages():
    rows = [row(0, messages=CHAT), row(1, prompt="hi", completion="hello")]
    assert format.one_form(rows, "d") == "messages"
    assert rows[1].columns == {"messages": CHAT}
    with pytest.raises(DataError, match="mixes forms"):
        format.one_form([row(0, text="x"), row(1, prompt="hi", completion="hello")], "d")


def test_few_completions_become_labels():
    rows = [row(n, prompt=f"p{n}", completion=f" {'yes' if n % 2 else 'no'}") for n in range(40)]
    assert format.settle_labels(rows, "completion", format.Labels(None), "d") == ("no", "yes")
    assert rows[1].label == "yes"
    free = [row(n, prompt=f"p{n}", completion=f"answer {n}") for n in range(40)]
    assert format.settle_labels(free, "completion", format.Labels(None), "d") == ()


def test_labels_outside_the_list_name_their_rows():
    rows = [row(0, text="a", label="good"), row(7, text="b", label="goood")]
    with pytest.raises(DataError) as error:
        format.settle_labels(rows, "labelled", format.Labels(["good", "bad"]), "d")
    assert "row 8 of s" in str(error.value)
    assert "did you mean 'good'" in str(error.value)
    assert format.settle_labels(rows[:1], "labelled", format.Labels(["good", "bad"]), "d") == ("good", "bad")


def test_boilerplate_is_not_compared():
    rows = [row(n, prompt=f"Say what this is : {word} . Answer:", completion="x") for n, word in enumerate("abc")]
    for each in rows:
        each.text = f"{each.prompt}\nx{each.row}"
    format.strip_boilerplate(rows, "completion")
    assert [each.text for each in rows] == ["a\nx0", "b\nx1", "c\nx2"]


@pytest.mark.parametrize(
    ("part", "values", "fault"),
    [
        ("text", ["same"] * 10, "same value"),
        ("text", [f"doc-{n}" for n in range(60)], "identifiers"),
        ("text", [f"{n}.5" for n in range(60)], "identifiers"),
        ("text", [["yes", "no"][n % 2] for n in range(200)], "only 2 different"),
        ("text", [["web", "app", "phone"][n % 3] for n in range(120)], "only 3 different"),
        ("prompt", ["same"] * 10, "same value"),
        ("label", [f"l{n}" for n in range(120)], "identifies rows"),
        ("label", [f"l{n}" for n in range(9)], "identifies rows"),
        ("label", [f"l{n % 80}" for n in range(100)], "identifies rows"),
    ],
)
def test_mistaken_columns(part, values, fault):
    found = label_fault(values) if part == "label" else shown_fault(values, repeats=part == "prompt")
    assert fault in found


URLS = [f"https://site{n}.example.org/page/{n}?q=a" for n in range(60)]
BARE = [f"shop{n}.example.org/item{n}" for n in range(60)]
SMILES = [f"CC(=O)OC{n % 9 + 1}=CC=CC=C{n % 9 + 1}C(=O)O{'C' * (n // 9)}" for n in range(60)]
JAPANESE = [f"この商品は{n}日で壊れた" for n in range(60)]
SUMS = [f"{a}{sign}{a + 3}=" for a in range(20) for sign in "+-*"]
SPACED = [f"{a} {sign} {a + 3}" for a in range(20) for sign in "+-/"]
CODES = [f"SKU-{n * 7919 % 9973}" for n in range(60)]
COUNTER = [f"doc-{n:05d}" for n in range(60)]
FORMULAS = [f"x^2+{n}x={n}" for n in range(60)]
SEQUENCES = [" ".join(str((n * k) % 17) for k in range(1, 8)) for n in range(60)]


@pytest.mark.parametrize("values", [URLS, BARE, SMILES, JAPANESE, SUMS, SPACED, FORMULAS, SEQUENCES])
@pytest.mark.parametrize("repeats", [True, False])
def test_what_only_looks_like_identifiers_passes(values, repeats):
    assert shown_fault(values, repeats=repeats) is None


@pytest.mark.parametrize(
    "values",
    [
        *(CODES, COUNTER, [str(n) for n in range(60)], [f"2024-03-{n:02d}T10:00" for n in range(60)]),
        *([f"+49 170 {n:07d}" for n in range(60)], [f"img{n}.jpg" for n in range(60)]),
        [f"{n:08x}-{n * 3:04x}-4a{n:02d}" for n in range(60)],
    ],
)
def test_identifiers_are_refused_with_a_way_round(values):
    rows = [row(n, text=value, label="ab"[n % 2]) for n, value in enumerate(values)]
    parts = {"text": "code", "label": "label"}
    with pytest.raises(DataError) as error:
        mistaken_columns.check_columns(rows, parts, ["code", "label"], "d")
    assert "column 'code' cannot be the text: it holds numbers or identifiers" in str(error.value)
    assert "data.allow: [identifiers]" in str(error.value)
    mistaken_columns.check_columns(rows, parts, ["code", "label"], "d", allow=["identifiers"])


def test_a_column_that_the_recipe_names_is_taken_unless_it_counts_rows():
    codes, counter = ([row(n, text=each, label="ab"[n % 2]) for n, each in enumerate(v)] for v in (CODES, COUNTER))
    mistaken_columns.check_columns(codes, {"text": "code"}, ["code"], "d", named={"text"})
    with pytest.raises(DataError, match="identifiers"):
        mistaken_columns.check_columns(counter, {"text": "code"}, ["code"], "d", named={"text"})


def test_good_columns_pass():
    assert shown_fault([f"the number {n} bus" for n in range(60)], repeats=False) is None
    assert label_fault([str(n % 77) for n in range(2000)]) is None
    assert label_fault([str(n % 140) for n in range(224)]) is None
    assert shown_fault(["Tell me a joke.", "Sing."] * 50, repeats=True) is None


TAGS, SCORE = frozenset({"tokens"}), frozenset({"scored"})


@pytest.mark.parametrize(
    ("columns", "forms", "fix"),
    [
        (["text", "stars"], CLASSIFY, "such as columns: {text: text, label: stars}"),
        (["premise", "hypothesis", "label"], CLASSIFY, "{text: NAME, label: label}; where a row has several texts"),
        (["sentence1", "sentence2", "score"], SCORE, "{text: NAME, label: score}; where a row has several texts"),
        (["text"], CLASSIFY, "a column for each of text and label"),
        (["messages"], CLASSIFY, "set task: causal-lm"),
        (["text", "entities"], TAGS, "columns: {tokens: NAME, tags: NAME}"),
        (["text", "label"], TAGS, "set task: text-classification"),
        (["input", "output"], LM, "columns: {prompt: input, completion: output}"),
        (["article", "highlights"], LM, "columns: {prompt: NAME, completion: NAME}, or give the recipe a template"),
        (["contents"], LM, "columns: {messages: contents}"),
        (["Sentence #", "label"], CLASSIFY, 'columns: {text: "Sentence #", label: label}'),
    ],
)
def test_the_fix_for_columns_that_do_not_fit_is_one_for_the_task(columns, forms, fix):
    with pytest.raises(DataError) as error:
        format.recognise(columns, Columns(), forms, "source", False)
    assert fix in error.value.problems[0].fix
    assert "template" not in fix or forms is LM
