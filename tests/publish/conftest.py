"""A finished run to publish, the Hub it goes to, and how it is sent."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hub_server import TOKEN, hub_server
from tiny import command, labelled, recipe_fields, write_recipe, write_rows

from hfadapt.publish.publish import publish
from publish import REPO


@pytest.fixture(scope="session")
def finished(models, tmp_path_factory):
    """A run with one finished cell and a copy of it under another domain."""
    folder = tmp_path_factory.mktemp("run")
    write_rows(folder / "one.jsonl", labelled(120))
    domains = {"one": {"source": "one.jsonl", "license": "mit", "language": "en"}}
    fields = recipe_fields(models / "encoder", domains=domains, adapter__rank=4, train__max_steps=2)
    done = command("run", write_recipe(folder / "tiny.yaml", fields), folder=folder)
    assert done.code == 0, done.out + done.err
    return folder / "runs" / "tiny"


@pytest.fixture
def run(finished, tmp_path):
    """The run, to be spoilt."""
    return Path(shutil.copytree(finished, tmp_path / "runs" / "tiny"))


@pytest.fixture
def cell(run):
    return run / "one" / "this-machine"


@pytest.fixture
def sound_card(monkeypatch):
    """The card has been checked before; checking it again would take most of the time of a test."""
    monkeypatch.setattr("hfadapt.card.check.check_card", lambda folder, license=None: [])


@pytest.fixture
def hub(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    with hub_server() as server:
        yield server


@pytest.fixture
def send(hub):
    """`publish` to the server, without loading; `send.waited` has the seconds it would have slept."""
    from huggingface_hub import HfApi

    def go(path, repo=REPO, token=TOKEN, **options):
        settings = {"yes": True, "license": "mit", "verify_load": False, **options}
        return publish(path, repo, api=HfApi(endpoint=hub.endpoint, token=token), sleep=go.waited.append, **settings)

    go.waited = []
    return go
