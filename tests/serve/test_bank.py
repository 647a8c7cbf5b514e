"""Several adapters over one base: a mixed batch gives what each adapter gives alone."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from tiny import command, labelled, pairs, recipe_fields, write_recipe, write_rows

from hfadapt import load_adapted, load_bank
from hfadapt.core.errors import RequestError

CHECKS = {"security": False, "drift": False, "transfer": False, "general_text": False}
TEXTS = ["good day", "bad film", "so it goes", "what a good bad thing"]
DOMAINS = ["one", "two", "two", "one"]


@pytest.fixture(scope="module", params=["text-classification", "causal-lm"])
def run(models, tmp_path_factory, request):
    """Two domains of a task, trained far enough to differ."""
    folder = tmp_path_factory.mktemp(request.param)
    name, make = {"text-classification": ("encoder", labelled), "causal-lm": ("lm", pairs)}[request.param]
    for i, domain in enumerate(("one", "two")):
        write_rows(folder / f"{domain}.jsonl", make(60, seed=i))
    domains = {domain: {"source": f"{domain}.jsonl"} for domain in ("one", "two")}
    train = {"max_steps": 12, "learning_rate": 2e-2, "batch_rows": 8}
    more = {"domains": domains, "train": train, "evaluate": CHECKS, "dtype": "float32"}
    fields = recipe_fields(models / name, task=request.param, **more)
    write_recipe(folder / "tiny.yaml", fields)
    done = command("evaluate", "tiny.yaml", folder=folder)
    assert done.code == 0, done.err
    return folder / "runs/tiny"


def test_a_mixed_batch_is_every_adapter_alone(run):
    bank = load_bank(run)
    mixed = bank.predict(TEXTS, DOMAINS, max_new_tokens=4)
    assert [answer.text for answer in mixed] == TEXTS
    for domain in ("one", "two"):
        alone = load_adapted(run, domain).predict(TEXTS, max_new_tokens=4)
        for answer, wanted, own in zip(mixed, alone, DOMAINS, strict=True):
            if own == domain:
                assert (answer.label, answer.generated) == (wanted.label, wanted.generated)
                if wanted.probability is not None:
                    assert answer.probability == pytest.approx(wanted.probability, abs=1e-5)


def test_the_base_is_there_once_and_switching_changes_the_answer(run):
    bank = load_bank(run)
    one, two = bank.use("one"), bank.use("two")
    assert one.model is two.model is bank.model
    ids = torch.tensor([[5, 6, 7, 8]])

    def logits(domain):
        bank.use(domain)
        with torch.inference_mode():
            return bank.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits

    first, other, again = logits("one"), logits("two"), logits("one")
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_some_domains_only(run):
    assert list(load_bank(run, ["two"]).adapters) == ["two"]
    assert load_bank(run).predict([], []) == []


def test_wrong_requests_say_what_is_there(run, tmp_path):
    bank = load_bank(run)
    with pytest.raises(RequestError, match="no domain of that name") as caught:
        bank.predict(["x"], "tow")
    assert "two" in str(caught.value)
    with pytest.raises(RequestError, match="every text needs a domain"):
        bank.predict(["x", "y"], ["one"])
    with pytest.raises(RequestError, match="no trained adapter of this domain"):
        load_bank(run, ["tree"])
    with pytest.raises(RequestError, match="no trained adapter here"):
        load_bank(tmp_path)
    with pytest.raises(RequestError, match="no adapter for this target"):
        load_bank(run, target="elsewhere")


def test_one_text_and_tables_are_asked_as_of_an_adapter(run):
    bank = load_bank(run)
    assert [answer.text for answer in bank.predict("good day", "one", 4)] == ["good day"]
    column = bank.adapter("one").columns.get("text", "prompt")
    found = bank.predict(pd.DataFrame({column: TEXTS}), DOMAINS, 4)
    assert [(each.label, each.generated) for each in found] == [
        (each.label, each.generated) for each in bank.predict(TEXTS, DOMAINS, 4)
    ]
    assert {"one", "two"} <= {*str(bank).split()}
