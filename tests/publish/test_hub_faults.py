"""What every fault of the Hub, of the network or of somebody else at the same moment leaves behind."""

from __future__ import annotations

import pytest
from hub_server import TOKEN, Fault

from hfadapt.core.errors import RequestError, RunError
from hfadapt.run_folder import Cell
from publish import FILES, REPO

# --- faults that are survived ----------------------------------------------------------------------------------------

SURVIVED = {
    "lost answer to the commit": Fault("POST .*/commit/", how="lost"),
    "commit answered 500": Fault("POST .*/commit/", 500),
    "commit answered 503": Fault("POST .*/commit/", 503, times=2),
    "commit answered 409": Fault("POST .*/commit/", 409),
    "commit answered 412 for nothing": Fault("POST .*/commit/", 412),
    "commit answered 429": Fault("POST .*/commit/", 429, headers={"Retry-After": "7"}),
    "connection ends before the commit": Fault("POST .*/commit/", how="down"),
    "commit answered 504": Fault("POST .*/commit/", 504),
    "upload answered 500": Fault("PUT /storage/", 500),
    "upload cut": Fault("PUT /storage/", how="down"),
    "lost answer to the new repository": Fault("POST /api/repos/create", how="lost"),
    "new repository answered 503": Fault("POST /api/repos/create", 503),
    "lost answer to the tag": Fault("POST .*/tag/", how="lost"),
    "tag answered 502": Fault("POST .*/tag/", 502),
    "files answered 503": Fault("GET .*/tree/", 503),
    "download cut": Fault("GET .*/resolve/.*safetensors", how="cut"),
    "download corrupted": Fault("GET .*/resolve/.*safetensors", how="corrupt"),
    "download answered 429": Fault("GET .*/resolve/.*safetensors", 429, headers={"Retry-After": "0"}),
    "download answered 503 twice": Fault("GET .*/resolve/.*safetensors", 503, times=2),
    "download answered 500": Fault("GET .*/resolve/", 500),
}


@pytest.mark.parametrize("name", SURVIVED)
def test_a_passing_fault_leads_to_one_commit_and_one_tag(hub, send, cell, sound_card, name):
    from dataclasses import replace

    fault = replace(SURVIVED[name])
    hub.faults = [fault]
    send(cell)
    assert fault.times == 0, "the fault did not happen"
    (commit,) = hub.made(REPO)
    assert set(commit.files) == FILES | {".gitattributes"}
    assert hub.repos[REPO].tags == {"v1": commit.oid}
    if name == "commit answered 429":
        assert send.waited == [7.0]


def test_files_are_compared_by_content_where_the_hub_gives_no_hash(hub, send, cell, sound_card):
    hub.git_names = False
    hub.faults = [Fault("POST .*/commit/", how="lost")]
    send(cell)
    assert len(hub.made(REPO)) == 1
    assert hub.count("POST .*/commit/") == 1


def test_a_commit_of_somebody_else_that_does_not_touch_us_is_built_upon(hub, send, cell, sound_card):
    hub.make(REPO)
    hub.faults = [Fault("POST .*/preupload/", status=0, how="", first=lambda: hub.commit(REPO, {"LICENSE": b"MIT"}))]
    send(cell)
    theirs, ours = hub.made(REPO)
    assert ours.parent == theirs.oid
    assert ours.files["LICENSE"] == b"MIT"


# --- faults that are not ---------------------------------------------------------------------------------------------

FATAL = {
    "401": (Fault("whoami", 401, times=99), "log in"),
    "401 in the middle": (Fault("POST .*/preupload/", 401, times=99), "log in"),
    "403": (Fault("POST .*/commit/", 403, times=99), "write permission"),
    "404": (Fault("POST .*/commit/", 404, times=99, headers={"X-Error-Code": "RepoNotFound"}), "USER/NAME"),
    "409": (Fault("POST .*/commit/", 409, times=99), "run the same command again"),
    "412": (Fault("POST .*/commit/", 412, times=99), "run the same command again"),
    "429": (Fault("POST .*/commit/", 429, times=99), "patience"),
    "500": (Fault("POST .*/commit/", 500, times=99), "fault of its own"),
    "down": (Fault("POST .*/commit/", how="down", times=99), "cannot be reached"),
    "400": (Fault("POST .*/commit/", 400, times=99), "card check"),
    "bad metadata": (Fault("POST .*/validate-yaml", 400, times=99), "card check"),
}


@pytest.mark.parametrize("name", FATAL)
def test_a_lasting_fault_leaves_nothing_behind_and_says_what_to_do(hub, send, cell, sound_card, name):
    fault, hint = FATAL[name]
    hub.faults = [fault]
    with pytest.raises(RunError) as caught:
        send(cell)
    assert hint in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 4
    assert TOKEN not in str(caught.value)
    assert hub.made(REPO) == []
    assert not (cell / "publish.json").exists()
    assert hub.count("POST .*/commit/") <= 4
    hub.faults = []
    send(cell)
    assert len(hub.made(REPO)) == 1


def test_without_a_token(hub, send, cell, sound_card, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._headers.get_token", lambda: None)
    with pytest.raises(RunError, match=r"token") as caught:
        send(cell, token=None)
    assert "hf auth login" in str(caught.value)
    assert hub.repos == {}


def test_another_persons_name(hub, send, cell, sound_card):
    with pytest.raises(RunError) as caught:
        send(cell, repo="other/tiny")
    assert "403" in str(caught.value)
    assert "write permission for other" in str(caught.value)


def test_somebody_else_changes_our_file_at_the_same_moment(hub, send, cell, sound_card):
    hub.make(REPO)
    theirs = lambda: hub.commit(REPO, {"README.md": b"---\n---\ntheirs"})  # noqa: E731
    hub.faults = [Fault("POST .*/preupload/", status=0, how="", first=theirs)]
    with pytest.raises(RequestError, match="somebody else"):
        send(cell)
    assert hub.repos[REPO].head.files["README.md"].endswith(b"theirs")
    assert hub.repos[REPO].tags == {}


def test_when_the_hub_falls_silent_after_the_commit_nothing_is_sent_twice(hub, send, cell, sound_card):
    hub.make(REPO)
    silence = Fault("GET ", how="down", times=0)
    hub.faults = [Fault("POST .*/commit/", how="lost", first=lambda: setattr(silence, "times", 99)), silence]
    with pytest.raises(RunError, match="unknown whether"):
        send(cell)
    assert hub.count("POST .*/commit/") == 1
    hub.faults = []
    send(cell)
    assert len(hub.made(REPO)) == 1
    assert hub.count("POST .*/commit/") == 1


def test_files_that_always_come_back_wrong_get_no_tag(hub, send, cell, sound_card):
    hub.faults = [Fault("GET .*/resolve/.*safetensors", how="corrupt", times=99)]
    with pytest.raises(RunError, match="another content"):
        send(cell)
    assert hub.repos[REPO].tags == {}
    hub.faults = []
    send(cell)
    assert len(hub.made(REPO)) == 1
    assert hub.repos[REPO].tags.keys() == {"v1"}


def test_an_adapter_that_scores_otherwise_gets_no_tag(hub, send, cell, sound_card):
    train = Cell(cell).train
    train.model_copy(update={"check_losses": tuple(loss + 1 for loss in train.check_losses)}).write(cell / "train.json")
    with pytest.raises(RunError, match="does not score"):
        send(cell, verify_load=True)
    assert hub.repos[REPO].tags == {}
