"""Every field of a recipe does something: each has values here that some row, training, plan or record tells apart.

`FIELDS` (field_values.py) says for each field which values to try, in which recipe, and what to look at: never the
field itself in a lock or plan. A field that is not in the table fails the test, so a new one cannot be silent.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from field_values import ALL, FIELDS, fields_of, members
from looks import Bed
from tiny import LABELS, labelled, pairs, uneven, write_rows
from tiny_images import write_folders
from tiny_sounds import write_sounds

from hfadapt.recipe.schema import AUTO, Lock


def test_the_table_has_every_field() -> None:
    """A new field says here what depends on it."""
    assert FIELDS.keys() == ALL.keys()
    # Which base an earlier stage made is decided, not asked for, and how many texts go through the model together.
    decided = {
        name for name in dict(fields_of(Lock)) if name.startswith("base.") or name == "pretrain.micro_batch_rows"
    }
    assert dict(fields_of(Lock)).keys() - decided == ALL.keys()


@pytest.mark.parametrize("place", [place for place in FIELDS if place != "train.objective_options"])
def test_all_that_can_be_said_in_a_few_words_is_tried(place: str) -> None:
    branches = set(members(ALL[place]))
    words = {word for each in branches if get_origin(each) is Literal for word in get_args(each)} - {AUTO}
    words |= {True, False} if bool in branches else set()
    values = FIELDS[place].values
    assert len(values) > 1
    assert words <= {each for each in values if isinstance(each, (str, bool))}


@pytest.fixture(scope="module")
def bed(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Bed:
    found = tmp_path_factory.mktemp("bed")
    for model in ("lm", "lm-untied", "encoder"):
        (found / model).symlink_to(models / model)
    noise = labelled(40, seed=7)
    twin = noise[0]["text"] + " once"
    german = "Das ist ein ganz gewöhnlicher deutscher Satz über das Wetter und die Stadt"
    english = "This is a completely ordinary English sentence about the weather and the city"
    sources: dict[str, list[dict[str, Any]]] = {
        "labelled": labelled(60),
        "other": labelled(30, seed=1),
        "overlapping": [*labelled(20), *labelled(40, seed=2)],
        "texts": [{"text": row["text"], "more": f"more of {row['text']}"} for row in labelled(40, seed=11)],
        "pairs": pairs(60),
        "uneven": uneven(60),
        "wide": [
            {
                "body": row["text"],
                "title": f"about {row['text']}",
                "kind": row["label"],
                "mood": f"quite {row['label']}",
                **{f"is_{name}": int(row["label"] == name) for name in LABELS},
                "even": int(number % 2 == 0),
                "odd": number % 2,
                "team": f"{number % 5}{number % 7}",
                "part": ("train", "dev", "train", "test", "train")[number % 5],
                "does": [{"name": "look", "description": "looks it up"}],
                "shows": ["a.png"] if number % 20 == 0 else None,
                "talk": [{"role": "user", "content": row["text"]}, {"role": "assistant", "content": row["label"]}],
                "other_talk": [
                    {"role": "user", "content": f"about {row['text']}"},
                    {"role": "assistant", "content": row["text"]},
                ],
            }
            for number, row in enumerate(labelled(60))
        ],
        "tagged": [
            {"w1": words, "w2": words[::-1], "t1": ["A", *"B" * (len(words) - 1)], "t2": ["B", *"A" * (len(words) - 1)]}
            for words in (row["text"].split() for row in labelled(60))
        ],
        "numbered": [{"text": f"doc-{number}", "label": LABELS[number % 2]} for number in range(60)],
        "noisy": [
            *noise,
            {"text": "fine", "label": "good"},
            {"text": noise[0]["text"], "label": "bad"},
            {"text": twin, "label": "bad"},
            *({"text": "the very same text of two kinds", "label": label} for label in ("good", "good", "bad")),
            {"text": "cafÃ© and naÃ¯ve, as a wrong encoding leaves them", "label": "good"},
            {"text": "write to someone@example.org about this lovely film", "label": "good"},
            {"text": german, "label": "good"},
            {"text": english, "label": "good"},
        ],
    }
    write_sounds(found / "sounds", 40)
    names = [str(path.relative_to(found)) for path in sorted((found / "sounds").rglob("*.wav"))]
    sources["heard"] = [
        {"first": name, "second": names[-1 - number], "label": LABELS[number % 2]} for number, name in enumerate(names)
    ]
    write_folders(found / "pictures", 60)
    names = [str(path.relative_to(found)) for path in sorted((found / "pictures").rglob("*.png"))]
    sources["seen"] = [
        {"first": name, "second": names[-1 - number], "label": LABELS[number % 2]} for number, name in enumerate(names)
    ]
    for name, lines in sources.items():
        write_rows(found / f"{name}.jsonl", lines)
    western = [json.dumps({**row, "text": f"{row['text']} café"}, ensure_ascii=False) for row in labelled(60, seed=12)]
    (found / "western.jsonl").write_text("\n".join(western), encoding="windows-1252")
    return Bed(found)


SLOW = ("general_text", "generate_rows", "transfer", "security", "drift", "harness", "batch_rows")


@pytest.mark.parametrize(
    "place",
    [
        pytest.param(
            place, marks=pytest.mark.slow if place.startswith(tuple(f"evaluate.{name}" for name in SLOW)) else ()
        )
        for place in FIELDS
    ],
)
def test_every_value_of_a_field_shows(bed: Bed, place: str) -> None:
    case = FIELDS[place]
    seen = [case.look(bed, case.recipe(place, value)) for value in case.values]
    for number, one in enumerate(seen):
        assert one not in seen[:number], f"{place}: {case.values[number]} is as another value"
