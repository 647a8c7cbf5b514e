"""Rows of files and of standard input become texts to ask, by the recipe's columns and template."""

import io

import pytest
from tiny import run_of_chats

from hfadapt.core.errors import RequestError
from hfadapt.files import Doubt, Read, Unread
from hfadapt.schemas import Unusable
from hfadapt.serve.adapted import Adapted, load_adapted
from hfadapt.serve.asked import answered, file_rows, lines_of
from hfadapt.serve.rows import text_of
from hfadapt.tasks import Answer

CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]


def adapted(form, task="causal-lm", **columns):
    return Adapted(None, None, task, (), {}, 64, form, columns=columns)


@pytest.mark.parametrize(
    ("own", "values", "text"),
    [
        (adapted("labelled", text="body"), {"title": "t", "body": "b", "label": "x"}, "b"),
        (adapted("labelled", text="body"), {"text": "t", "id": 4}, "t"),
        (adapted("labelled"), {"Review": "r", "stars": 4}, "r"),
        (adapted("labelled"), {"text": 4.0}, "4"),
        (adapted("completion", prompt="question"), {"question": "q", "answer": "a"}, "q"),
        (adapted("completion", prompt="q", instruction_input="more"), {"q": "do", "more": "this"}, "do\n\nthis"),
        (adapted("completion", prompt="q", instruction_input="more"), {"q": "do"}, "do"),
        (adapted("completion"), {"text": "t"}, "t"),
        (adapted("messages"), {"messages": CHAT}, "hi"),
        (adapted("preferences", "preference", prompt="ask"), {"ask": "q", "chosen": "a", "rejected": "b"}, "q"),
        (adapted("preferences", "preference", prompt="ask"), {"ask": "q"}, "q"),
        (adapted("preferences", "preference"), {"text": "t"}, "t"),
        (adapted("preference-chats", "preference", prompt="ask"), {"ask": CHAT[:1]}, "hi"),
        (adapted("messages"), {"messages": CHAT[:1]}, "hi"),
        (adapted("messages"), {"text": "plain"}, "plain"),
        (adapted("tokens", "token-classification"), {"tokens": ["to", "be"], "tags": ["a", "b"]}, "to be"),
        (adapted("tokens", "token-classification"), {"text": "to be"}, "to be"),
    ],
)
def test_the_text_of_a_row(own, values, text):
    assert text_of(own, values) == text


@pytest.mark.parametrize(
    ("prompt", "values", "text"),
    [
        ("{title}: {text} ->", {"title": "A", "text": "b", "label": "c"}, "A: b ->"),
        ("{title}: {text} ->", {"title": "A {text}", "text": "{title}"}, "A {text}: {title} ->"),
        ("{review}?", {"text": "a line"}, "a line?"),
        ("{text}?", {"body": "b", "id": 3}, "b?"),
    ],
)
def test_a_template_is_filled(prompt, values, text):
    own = Adapted(None, None, "causal-lm", (), {}, 64, "completion", prompt, columns={"text": "body"})
    assert text_of(own, values) == text


@pytest.mark.parametrize(
    ("own", "values", "words"),
    [
        (adapted("labelled"), {"a": "1", "b": "2"}, "has no text, only a, b"),
        (adapted("labelled"), {"text": None}, "has no text, only nothing"),
        (adapted("labelled"), {"text": " \t"}, "has nothing in text"),
        (adapted("labelled"), {"text": {"a": 1}}, "an object where text is needed"),
        (adapted("messages"), {"messages": [{"role": "system", "content": "a"}]}, "without a turn of user or tool"),
        (Adapted(None, None, "causal-lm", (), {}, 64, "completion", "{title}: {text}"), {"text": "b"}, "has no title"),
    ],
)
def test_what_cannot_be_asked_is_said(own, values, words):
    with pytest.raises(Unusable) as caught:
        text_of(own, values)
    assert words in caught.value.detail


class Shouting(Adapted):
    """Says what it was asked, and counts how often."""

    def predict(self, texts, **settings):
        Shouting.asked.append(len(texts))
        return [Answer(text=text, generated=text.upper()) for text in texts]


def test_answers_come_in_order_and_faults_take_their_place(monkeypatch):
    monkeypatch.setattr("hfadapt.serve.asked.AT_ONCE", 3)
    Shouting.asked = []
    own = Shouting(None, None, "causal-lm", (), {}, 64, "completion", None)
    rows = [Read(0, {"text": "a"}, 1), Unread(1, "not-json", ": broken", 2)]
    rows += [Read(2, {"x": "1", "y": "2"}), Read(3, {"text": "b"})]
    found = list(answered(own, iter([*rows, Doubt("code", "what", "fix")]), source="a.jsonl"))
    assert [(each.row, str(each)) for each in found] == [(0, "A"), (1, ""), (2, ""), (3, "B")]
    assert [each.fault for each in found] == [
        None,
        "line 2 of a.jsonl: broken",
        "row 3 of a.jsonl has no prompt, only x, y",
        None,
    ]
    assert Shouting.asked == [1, 1]


class Comparing(Shouting):
    """Counts the words that each text shares with the first."""

    def predict(self, texts, **settings):
        first = {*texts[0].split()}
        return [Answer(text=text, number=len(first & {*text.split()})) for text in texts]


@pytest.mark.parametrize(("form", "task"), [("pairs", "reranking"), ("scored-pairs", "embedding")])
def test_rows_of_two_texts_are_asked_about_both(form, task):
    own = Comparing(None, None, task, (), {}, 64, form, columns={"anchor": "ask", "positive": "found"})
    rows = [
        {"ask": "a b", "found": "a b"},
        {"ask": "a b", "found": "b"},
        {"ask": "c", "document": "a"},
        {"ask": "d", "found": ["a", "d"]},
    ]
    found = list(answered(own, iter(Read(at, row) for at, row in enumerate(rows)), source="x"))
    assert [each.answer.number for each in found[:3]] == [2, 1, 0]
    assert "has 2 texts as its positive" in found[3].fault


def test_texts_to_embed_are_asked_as_they_are():
    own = Comparing(None, None, "embedding", (), {}, 64, "pairs", columns={"anchor": "ask", "positive": "found"})
    rows = [Read(0, {"ask": "a b", "found": "a"}), Read(1, {"ask": "b"})]
    assert [str(each.answer.text) for each in answered(own, iter(rows))] == ["a b", "b"]


def test_files_are_asked_from_where_they_lie_and_what_cannot_be_read_is_said(tmp_path):
    from PIL import Image

    class Looking(Shouting):
        def predict(self, files, **settings):
            return [Answer(text=file.name, label="x") for file in files]

    (tmp_path / "in").mkdir()
    Image.new("L", (9, 9)).save(tmp_path / "in/a.png")
    (tmp_path / "in/b.png").write_bytes(b"text")
    (tmp_path / "list.csv").write_text("image,n\nin/a.png,1\nin/b.png,2\nin/c.png,3\nhttps://x.y/d.png,4\n,5\n")
    own = Looking(None, None, "image-classification", (), {}, 64, "pictured")
    found = list(answered(own, file_rows(tmp_path / "list.csv"), source="list.csv", folder=tmp_path))
    assert [str(each) for each in found] == ["x", "", "", "", ""]
    said = [
        "line 3 of list.csv: this image cannot be read, in/b.png, 4 bytes that are no whole image",
        "line 4 of list.csv: this image cannot be read, in/c.png, No such file",
        "line 5 of list.csv has an address of the web",
        "line 6 of list.csv has nothing in image",
    ]
    for each, words in zip(found[1:], said, strict=True):
        assert each.fault.startswith(words)
    folder = list(answered(own, file_rows(tmp_path / "in"), source="in"))
    assert [bool(each.fault) for each in folder] == [False, True]


def test_rows_that_all_lack_what_is_asked_about_are_refused_at_once():
    own = Shouting(None, None, "causal-lm", (), {}, 64, "completion", None, columns={"prompt": "question"})
    rows = [Read(n, {"id": n, "words": "x", "more": "y"}) for n in range(3)]
    with pytest.raises(RequestError) as caught:
        next(answered(own, iter(rows), source="a.csv"))
    for words in ("a.csv: no row has what is asked about", "columns id, words, more", "rename the column to question"):
        assert words in str(caught.value)


def test_lines_of_standard_input():
    found = list(lines_of(io.BytesIO(b"one\r\n\n\xff\ntwo")))
    assert [each[:3] if isinstance(each, tuple) else each.reason for each in found] == [
        *((0, {"text": "one"}, 1), (1, {"text": ""}, 2), "not-utf8"),
        (3, {"text": "two"}, 4),
    ]


def test_a_file_of_texts_has_a_row_a_line(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    assert [item.values for item in file_rows(tmp_path / "a.txt")] == [{"text": "one"}, {"text": ""}, {"text": "two"}]


def test_chats_are_answered_after_all_their_turns(models, tmp_path, monkeypatch):
    own, seen = load_adapted(run_of_chats(tmp_path, models, "train")), []
    monkeypatch.setattr(Adapted, "generate", lambda _, prompts, *__: seen.extend(prompts) or [[9]] * len(prompts))
    turns = [*CHAT, {"role": "user", "content": "good film"}]
    rows = [{"messages": [*turns, {"role": "assistant", "content": "not shown"}]}, {"messages": turns[-1:]}]
    assert [each.text for each in own.predict(rows)] == ["good film", "good film"]
    own.reply(turns)
    own.reply(turns[-1:])
    assert seen[:2] == seen[2:]
    assert seen[0] != seen[1]


LAID_OUT = {
    "choices": ("causal-lm", "completion", lambda n: {"question": f"q{n}", "choices": ["a", "b"], "answer": n % 2},
                ["q0\nA. a\nB. b\nAnswer:", "q1\nA. a\nB. b\nAnswer:"]),
    "choices, unanswered": ("causal-lm", "completion", lambda n: {"question": f"q{n}", "choices": ["a", "b"]},
                            ["q0\nA. a\nB. b\nAnswer:", "q1\nA. a\nB. b\nAnswer:"]),
    "options to rank": ("reranking", "pairs", lambda n: {"question": f"q{n}", "choices": ["a", "b"], "answer": n % 2},
                        ["a", "b", "a", "b"]),
    "documents": ("reranking", "pairs", lambda n: {"query": f"q{n}", "documents": ["a", "b"], "labels": [0, n % 2]},
                  ["a", "b", "a", "b"]),
    "words": ("token-classification", "tokens",
              lambda n: {"Word": f"w{n}", "Tag": "xy"[n % 2], "Sentence #": "" if n % 3 else f"S {n}"},
              ["w0 w1 w2", "w3 w4 w5"]),
    "ties": ("preference", "preferences",
             lambda n: {"prompt": f"q{n}", "response_a": "x", "response_b": "y", "winner": ["tie", "a"][n % 2]},
             ["q0", "q1"]),
    "numbers of winners": ("preference", "preferences",
                           lambda n: {"prompt": f"q{n}", "response_a": "x", "response_b": "y", "winner": n % 2},
                           ["q0", "q1"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", LAID_OUT)
def test_a_file_is_asked_as_it_was_given_to_training(kind):
    task, form, row, asked = LAID_OUT[kind]
    own = Comparing(None, None, task, (), {}, 64, form)
    count = 6 if kind == "words" else 2
    rows = [Unread(0, "not-json", ": broken", 1), *(Read(n + 1, row(n), n + 2) for n in range(count))]
    broken, *found = answered(own, iter(rows), source="a.jsonl")
    assert broken.fault == "line 1 of a.jsonl: broken"
    assert [each.answer.text for each in found] == asked
    assert found[0].line == 2
