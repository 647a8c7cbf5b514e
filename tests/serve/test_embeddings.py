"""`/v1/embeddings`: the vectors that `predict` gives, in the shape that OpenAI's clients read."""

from __future__ import annotations

import base64

import numpy as np
import pytest
from fastapi.testclient import TestClient
from tiny import NO_CHECKS, command, labelled, questions, recipe_fields, write_recipe, write_rows

from hfadapt import load_adapted, load_bank
from hfadapt.serve.batching import Limits
from hfadapt.serve.http import Server, make_app

TEXTS = ["a lovely film", "dreadful"]


def run_of(folder, model, task, rows):
    write_rows(folder / "one.jsonl", rows(60))
    train = {"max_steps": 3, "batch_rows": 8}
    fields = recipe_fields(model, task, {"one": {"source": "one.jsonl"}}, train=train, evaluate=NO_CHECKS)
    done = command("train", write_recipe(folder / "tiny.yaml", fields).name, folder=folder)
    assert done.code == 0, done.err
    return folder / "runs/tiny"


@pytest.fixture(scope="module")
def run(models, tmp_path_factory):
    return run_of(tmp_path_factory.mktemp("search"), models / "encoder", "embedding", questions)


@pytest.fixture(scope="module")
def client(run):
    with TestClient(make_app(Server(load_bank(run), Limits(request_rows=8)))) as made:
        yield made


def asked(client, **body):
    answer = client.post("/v1/embeddings", json={"model": "one", "input": TEXTS, **body})
    return answer.status_code, answer.json()


@pytest.mark.parametrize("kind", ["document", "query"])
def test_vectors_are_those_of_predict(client, run, kind):
    adapted = load_adapted(run, "one")
    # Of several texts the first is read as a query.
    wanted = [adapted.predict(text)[0] if kind == "query" else adapted.predict(["x", text])[1] for text in TEXTS]
    status, body = asked(client, input_type=kind)
    assert status == 200, body
    assert [(each["object"], each["index"]) for each in body["data"]] == [("embedding", 0), ("embedding", 1)]
    for found, one in zip(body["data"], wanted, strict=True):
        assert found["embedding"] == pytest.approx(list(one.vector), abs=1e-5)
    tokens = sum(map(len, adapted.tokenizer(TEXTS)["input_ids"]))
    assert (body["object"], body["model"]) == ("list", "one")
    assert body["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}


def test_one_text_and_packed_numbers(client):
    """OpenAI's own client asks for base64."""
    plain = asked(client, input=TEXTS[0])[1]["data"]
    packed = asked(client, input=TEXTS[0], encoding_format="base64", dimensions=len(plain[0]["embedding"]))[1]["data"]
    assert len(plain) == len(packed) == 1
    numbers = np.frombuffer(base64.b64decode(packed[0]["embedding"]), "<f4")
    assert numbers == pytest.approx(np.array(plain[0]["embedding"]), abs=1e-6)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"model": "two"}, 404, "two"),
        ({"input": []}, 400, "nothing to make a vector of"),
        ({"input": ["a", ""]}, 400, "nothing to make a vector of"),
        ({"input": [[1, 2]]}, 400, "a text is expected"),
        ({"dimensions": 3}, 400, "vectors are not shortened"),
        ({"input": ["a"] * 9}, 413, "too many inputs"),
        ({"encoding_format": "int8"}, 400, "encoding_format"),
    ],
)
def test_what_is_not_done_is_refused_in_words(client, body, status, words):
    found, answer = asked(client, **body)
    assert found == status
    assert words in answer["error"]["message"]


def test_other_tasks_have_none(models, tmp_path):
    run = run_of(tmp_path, models / "encoder", "text-classification", labelled)
    with TestClient(make_app(Server(load_bank(run), Limits()))) as client:
        status, body = asked(client)
    assert status == 404
    assert "these adapters make no vectors: their task is text-classification" in body["error"]["message"]
