"""Changes of the input: what has to be produced stays, a row changes alike in any company, a drop has its sign."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import chats, labelled, make_lock

from hfadapt.core import registry
from hfadapt.evaluate.robustness import perturb, robustness
from hfadapt.modalities.text import KIND as TEXT
from hfadapt.modalities.text import spacing, text_example, token_ids
from hfadapt.tasks import Scores

texts = st.text(alphabet="abcXYZ é.,;:!?()12", min_size=1, max_size=60)


def rows_of(rows):
    return [{**row, "source": "s", "row": number} for number, row in enumerate(rows)]


@pytest.mark.parametrize("name", TEXT.perturbations)
@given(text=texts, seed=st.integers(0, 100))
def test_answers_and_places_stay(name, text, seed):
    rows = rows_of(
        [
            {"text": text, "label": "bad"},
            {"prompt": text, "completion": text},
            {"messages": [{"role": "system", "content": text}, {"role": "user", "content": text},
                          {"role": "assistant", "content": text}]},
            {"text": text},
        ]
    )  # fmt: skip
    forms = ("labelled", "completion", "messages", "text")
    labelled_row, pair, chat, plain = (
        perturb(registry.schema(form), [row], name, seed)[0] for form, row in zip(forms, rows, strict=True)
    )
    assert (labelled_row["label"], labelled_row["row"], pair["completion"]) == ("bad", 0, text)
    assert [turn["content"] for turn in chat["messages"] if turn["role"] != "user"] == [text, text]
    assert plain == rows[3]
    assert perturb(registry.schema("completion"), rows[1:2], name, seed) == [pair]
    assert rows[0]["text"] == text
    # The letters and figures are the same ones, however they are ordered or written; a typo changes some.
    if name != "typos":
        assert sorted(filter(str.isalnum, labelled_row["text"].casefold())) == sorted(
            filter(str.isalnum, text.casefold())
        )


@pytest.mark.parametrize("name", TEXT.perturbations)
def test_most_rows_of_usual_length_change(name):
    rows = rows_of(labelled(60, words=16))
    changed = perturb(registry.schema("labelled"), rows, name, 1)
    # Tiny rows are in lower case already, so only upper case changes them.
    assert sum(a != b for a, b in zip(rows, changed, strict=True)) >= (5 if name == "case" else 30)
    assert changed == perturb(registry.schema("labelled"), rows, name, 1)
    assert name == "case" or changed != perturb(registry.schema("labelled"), rows, name, 2)


def test_marks_that_say_something_stay():
    draw = random.Random(1)
    assert spacing("Well, so sad :( no! why? done.", 1.0, draw) == "Well  so  sad  :(  no!  why?  done"
    assert spacing("nothing. at all,", 0.0, draw) == "nothing. at all,"


class EvaluationContext(SimpleNamespace):
    """Right on every row whose text is as `rows` has it, wrong on half of the others."""

    schema = registry.schema("labelled")
    task = registry.task("text-classification")

    def encode(self, rows):
        return [text_example(tuple(str(row["text"]).encode()), (0,), length=1, row=n) for n, row in enumerate(rows)]

    def score(self, examples, *, adapter=True):
        self.scored += len(examples)
        known = np.array([bytes(token_ids(e)).decode() in self.texts for e in examples])
        wrong = ~known & (np.arange(len(examples)) % 2 == 0) & adapter
        return Scores(np.zeros(len(examples), int), wrong.astype(int), None, wrong * 1.0, np.ones(len(examples)))


@pytest.mark.parametrize(("metric", "drop"), [("accuracy", 0.5), ("loss", 0.5)])
def test_a_drop_is_positive_when_the_change_makes_it_worse(models, metric, drop):
    rows = rows_of(labelled(80, words=16))
    lock = make_lock(models / "encoder", "text-classification", evaluate__metrics=[metric])
    context = EvaluationContext(
        lock=lock, data=SimpleNamespace(form="labelled"), texts={row["text"] for row in rows}, scored=0
    )
    found = {each.name: each for each in robustness(context, rows)}
    assert set(found) == set(TEXT.perturbations)
    for each in found.values():
        assert each.metric == metric
        assert each.rows == each.drop.rows == 80
        assert each.drop.value == pytest.approx(drop * each.changed_rows / 80, abs=0.01)
        assert each.drop.low <= each.drop.value <= each.drop.high
        assert each.drop.low > 0 or each.changed_rows < 10
        assert (each.base_drop.value, str(each.base_drop.low)) == (0, "0.0")
    # Rows that did not change are not scored a second time.
    assert context.scored == 2 * 80 + 2 * sum(each.changed_rows for each in found.values())


def test_plain_text_has_no_part_that_could_be_changed_alone():
    context = SimpleNamespace(schema=registry.schema("text"))
    assert robustness(context, rows_of([{"text": "so it goes"}])) == ()
    assert robustness(SimpleNamespace(schema=registry.schema("labelled")), []) == ()


def test_only_the_users_turns_change():
    rows = rows_of(chats(20))
    for name in TEXT.perturbations:
        for old, new in zip(rows, perturb(registry.schema("messages"), rows, name, 3), strict=True):
            for before, after in zip(old["messages"], new["messages"], strict=True):
                assert before["role"] == after["role"]
                assert before == after or before["role"] == "user"
