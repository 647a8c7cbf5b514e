"""A run of two domains, trained far enough to differ, with markup in its rows; and a server over it."""

from __future__ import annotations

import pytest
from tiny import NO_CHECKS, command, labelled, recipe_fields, run_of_chats, write_recipe, write_rows
from ui_client import MARKUP, Client, serving

from hfadapt.run_folder import Run


@pytest.fixture(scope="session")
def run(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ui")
    for seed, domain in enumerate(("one", "two")):
        rows = [{**row, "text": f"{row['text']} {MARKUP}"} if n % 3 == 0 else row for n, row in enumerate(labelled(90))]
        write_rows(folder / f"{domain}.jsonl", rows if not seed else labelled(90, seed=seed))
    domains = {domain: {"source": f"{domain}.jsonl"} for domain in ("one", "two")}
    fields = recipe_fields(models / "encoder", domains=domains, dtype="float32", evaluate=NO_CHECKS)
    fields["evaluate"] = {**fields["evaluate"], "resamples": 200, "transfer": False}
    fields["train"] |= {"max_steps": 6, "learning_rate": 2e-2}
    done = command("evaluate", write_recipe(folder / "tiny.yaml", fields), folder=folder)
    assert done.code == 0, done.out + done.err
    return Run(folder / "runs/tiny")


@pytest.fixture(scope="session")
def chat_run(models, tmp_path_factory):
    """Trained on chats that begin with instructions."""
    return Run(run_of_chats(tmp_path_factory.mktemp("chats"), models, "train"))


@pytest.fixture(scope="session")
def client(run):
    with serving(run) as port:
        yield Client(port)
