"""Publishing with the real client over HTTP: what is refused, what is sent, and what every fault leaves behind."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import TOKEN, USER, Fault, hub_server
from tiny import command, labelled, recipe_fields, write_recipe, write_rows

from hfadapt.errors import HfadaptError, RequestError, RunError
from hfadapt.publish import publish
from hfadapt.records import CellState, PublishRecord
from hfadapt.run_folder import Cell

REPO = f"{USER}/tiny"
FILES = {
    "README.md", "adapter_config.json", "adapter_model.safetensors", "card.json", "chat_template.jinja",
    "evaluation.json", "hfadapt.json", "lock.yaml", "loss.svg", "tokenizer.json", "tokenizer_config.json",
}  # fmt: skip
SECRETS = {
    "Hugging Face token": "hf_" + "a1B2c3D4e5F6g7H8i9J0kLmN",
    "AWS key": "AKIA" + "ABCDEFGHIJKLMNOP",
    "GitHub token": "ghp_" + "abcdefghijklmnopqrstuvwxyz0123456789",
    "private key": "-----BEGIN RSA " + "PRIVATE KEY-----",
    "JSON web token": "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxMjM0NTY3ODkwIn0." + "dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P",
    "password in an address": "postgres://me:" + "hunter2secret@db.example/x",
    "named secret": 'api_key = "' + "Zx81k0aP22mmQ7z9LL31" + '"',
    "home folder": "/home/" + "jane/models/base",
}


@pytest.fixture(scope="module")
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
    monkeypatch.setattr("hfadapt.card_check.check_card", lambda folder, licence=None: [])


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
        settings = {"yes": True, "licence": "mit", "verify_load": False, **options}
        return publish(path, repo, api=HfApi(endpoint=hub.endpoint, token=token), sleep=go.waited.append, **settings)

    go.waited = []
    return go


# --- what is sent ----------------------------------------------------------------------------------------------------


def test_dry_run_shows_every_file_and_sends_nothing(hub, send, cell):
    shown = str(send(cell, yes=False))
    for name in FILES:
        path = cell / name if (cell / name).exists() else cell / "adapter" / name
        assert name in shown
        if name not in ("README.md", "card.json", "lock.yaml"):
            assert hashlib.sha256(path.read_bytes()).hexdigest() in shown
    assert "Nothing was sent" in shown
    assert "first free one of v1" in shown
    assert hub.requests == []
    assert not (cell / "publish.json").exists()


def test_a_cell_becomes_one_commit_that_is_verified_scored_and_tagged(hub, send, cell):
    done = send(cell, verify_load=True)
    (commit,) = hub.made(REPO)
    assert set(commit.files) == FILES | {".gitattributes"}
    assert hub.repos[REPO].tags == {"v1": commit.oid}
    assert commit.files["adapter_model.safetensors"] == (cell / "adapter" / "adapter_model.safetensors").read_bytes()
    record = PublishRecord.read(cell / "publish.json")
    assert (record.repo, record.commit, record.tag, record.new_commit) == (REPO, commit.oid, "v1", True)
    assert record.loaded_difference is not None
    assert record.loaded_difference < 1e-4
    assert {file.name: file.sha256 for file in record.files} == {
        name: hashlib.sha256(data).hexdigest() for name, data in commit.files.items() if name != ".gitattributes"
    }
    writes = [line for line in hub.requests if line.startswith(("POST", "PUT"))]
    assert "/tag/" in writes[-1], "the tag is the last thing that is written"
    assert hub.requests.index(writes[-1]) > max(i for i, line in enumerate(hub.requests) if "/resolve/" in line)
    assert "v1" in str(done)
    assert "license: mit" in commit.files["README.md"].decode()
    assert str(cell.parent) not in commit.files["lock.yaml"].decode()


def test_the_same_again_makes_no_commit_and_no_tag(hub, send, cell, sound_card):
    send(cell)
    again = send(cell)
    assert len(hub.made(REPO)) == 1
    assert hub.repos[REPO].tags.keys() == {"v1"}
    assert "the same files were there already" in str(again)


def test_a_changed_adapter_is_the_next_version_and_old_files_go(hub, send, cell, sound_card):
    send(cell)
    hub.commit(REPO, {"vocab.txt": b"old"})
    send(cell)
    assert "vocab.txt" not in hub.repos[REPO].head.files
    assert set(hub.repos[REPO].tags) == {"v1", "v2"}


def test_a_run_becomes_a_repository_for_each_adapter_and_a_collection(hub, send, run, sound_card):
    shutil.copytree(run / "one", run / "two")
    done = send(run)
    assert set(hub.repos) == {f"{REPO}-one", f"{REPO}-two"}
    (collection,) = hub.collections.values()
    assert [item["id"] for item in collection["items"]] == [f"{REPO}-one", f"{REPO}-two"]
    assert {record.collection for record in done.records} == {collection["slug"]}
    send(run)
    assert len(hub.collections) == 1
    assert len(collection["items"]) == 2


def test_a_run_as_folders_of_one_repository(hub, send, run, sound_card):
    shutil.copytree(run / "one", run / "two")
    send(run, layout="folders", private=True)
    (commit,) = hub.made(REPO)
    assert set(commit.files) == {f"{each}/{name}" for each in ("one", "two") for name in FILES} | {
        "README.md",
        ".gitattributes",
    }
    assert hub.repos[REPO].private
    assert "[two](two/README.md)" in commit.files["README.md"].decode()
    assert PublishRecord.read(run / "two" / "this-machine" / "publish.json").folder == "two"


def test_a_folder_instead_of_the_hub(hub, cell, tmp_path):
    publish(cell, to=tmp_path / "out", licence="mit")
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES | {"SHA256SUMS"}
    for line in (tmp_path / "out" / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest() == digest
    assert hub.requests == []
    with pytest.raises(RequestError, match="not empty"):
        publish(cell, to=tmp_path / "out", licence="mit")


def test_a_run_as_folders_on_this_machine(run, tmp_path, sound_card):
    shutil.copytree(run / "one", run / "two")
    publish(run, to=tmp_path / "out", licence="mit")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"one", "two"}


def test_the_command_line_in_a_process_of_its_own(hub, cell):
    words = ["publish", cell, "--repo", REPO, "--yes", "--license", "mit", "--no-verify-load", "--tag", "first"]
    places = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0", "HF_HOME": str(cell / "hf")}
    done = subprocess.run(
        [sys.executable, "-m", "hfadapt", *map(str, words)],
        env={**os.environ, **places},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert hub.repos[REPO].tags.keys() == {"first"}
    assert TOKEN not in done.stdout + done.stderr


# --- what is refused before anything is sent -------------------------------------------------------------------------


def refused(send, hub, path, **options):
    with pytest.raises(HfadaptError) as caught:
        send(path, **options)
    assert hub.count("commit|create") == 0, "something was sent"
    return str(caught.value)


def test_an_unclear_licence_is_refused_unless_it_is_set(hub, send, cell):
    assert "licence" in refused(send, hub, cell, licence=None)
    assert "apache-2.0" in refused(send, hub, cell, licence="apache-2")


def test_a_cell_that_is_not_done_is_refused(hub, send, cell):
    CellState(status="failed", error="accuracy gained too little").write(cell / "cell.json")
    assert "accuracy gained too little" in refused(send, hub, cell)


def test_a_failed_gate_is_refused(hub, send, cell):
    evaluation = Cell(cell).evaluation.model_copy(update={"gates_failed": ("accuracy gained -0.1",)})
    evaluation.write(cell / "evaluation.json")
    assert "a gate failed" in refused(send, hub, cell)


@pytest.mark.parametrize("spoil", ["missing", "number"])
def test_a_missing_or_wrong_card_is_refused(hub, send, cell, spoil):
    readme = cell / "README.md"
    if spoil == "missing":
        readme.unlink()
        assert "there is no card" in refused(send, hub, cell)
    else:
        text = readme.read_text()
        readme.write_text(text.replace("24 test rows", "25 test rows", 1))
        assert readme.read_text() != text
        assert "README.md" in refused(send, hub, cell)


@pytest.fixture
def proved(cell):
    """A cell with every record of evidence, and the card that follows."""
    import evidence_records

    from hfadapt.card import build_card

    record = evidence_records.drift("one", rows=Cell(cell).evaluation.rows)
    evidence_records.put(cell, drift=record)
    build_card(Cell(cell), execute=False)
    return cell


def test_a_refused_form_that_is_not_published_blocks_nothing_but_is_told(hub, send, proved):
    send(proved)
    (commit,) = hub.made(REPO)
    assert "**Do not use**: `merged-nf4`" in commit.files["README.md"].decode()


@pytest.mark.parametrize("kind", ["as it is published", "not measured"])
def test_what_drifts_too_far_as_it_is_published_is_refused(hub, send, proved, sound_card, kind):
    record = Cell(proved).drift
    stored = Cell(proved).lock.dtype
    name = f"adapter-{stored}" if kind == "as it is published" else "reference"
    variant = record.variants[1].model_copy(update={"name": f"adapter-{stored}", "storage": stored, "kl_nats": 0.5})
    refusal = {name: "its answers differ by 0.5 nats per label, the limit is 0.02"}
    record.model_copy(update={"variants": (*record.variants, variant), "refused": refusal}).write(proved / "drift.json")
    said = refused(send, hub, proved)
    assert "drift too far" in said
    assert "0.5 nats" in said
    assert "evaluate.drift_limits" in said


def test_a_full_model_is_published_whole_and_its_drift_counts(proved):
    from hfadapt.staging import blocks

    lock = proved / "lock.yaml"
    lock.write_text(lock.read_text().replace("method: lora", "method: full"))
    record = Cell(proved).drift
    merged = f"merged-{Cell(proved).lock.dtype}"
    assert merged in [variant.name for variant in record.variants]
    record.model_copy(update={"refused": {merged: "too far"}}).write(proved / "drift.json")
    assert any("drift too far" in problem.what for problem in blocks(Cell(proved), "mit"))


@pytest.mark.parametrize("name", ["security.json", "drift.json", "transfer.json"])
def test_a_card_that_hides_evidence_is_refused(hub, send, proved, name):
    from hfadapt.card import build_card

    (proved / name).rename(proved / "kept")
    build_card(Cell(proved), execute=False)
    (proved / "kept").rename(proved / name)
    assert "differs from its records" in refused(send, hub, proved)


def test_a_dry_run_warns_of_what_the_evidence_found(hub, send, proved, sound_card):
    shown = str(send(proved, yes=False))
    assert "warning: one: it can be told on which rows this adapter was trained" in shown
    assert "warning: one: not to be served as merged-nf4" in shown


def test_evidence_is_published_in_the_card_alone(hub, send, proved):
    send(proved)
    (commit,) = hub.made(REPO)
    assert set(commit.files) == FILES | {".gitattributes"}
    assert "Training rows can be told from others" in commit.files["README.md"].decode()


def test_texts_of_rows_and_places_are_published_as_the_card_has_them(hub, send, proved, sound_card):
    from hfadapt.evidence import FailingExample, Slice

    record = Cell(proved).evaluation
    mail = "write to jane@" + "example.org at once"
    example = FailingExample(split_row=1, gold=mail, adapter="word " * 100, base="no", confidence=0.5)
    place = "/srv/data/tickets.csv"
    slice_ = Slice(by="source", name=place, metric="accuracy", rows=4, base=0.5, adapter=0.5)
    changed = record.model_copy(update={"failures": (example,), "slices": (slice_,)})
    changed.write(proved / "evaluation.json")
    send(proved)
    sent = hub.made(REPO)[0].files["evaluation.json"].decode()
    assert "jane" not in sent
    assert "[e-mail]" in sent
    assert "/srv" not in sent
    assert "tickets.csv" in sent
    assert "word " * 40 not in sent
    assert Cell(proved).evaluation == changed, "the record of the cell stays as it is"


@pytest.mark.parametrize("rule", SECRETS)
def test_secrets_and_personal_paths_are_refused_and_not_repeated(hub, send, cell, sound_card, rule):
    (cell / "README.md").write_text((cell / "README.md").read_text() + f"\n{SECRETS[rule]}\n")
    plant(cell / "adapter", "tokenizer_config.json", lambda config: {**config, "note": SECRETS[rule]})
    said = refused(send, hub, cell)
    for name in ("README.md", "tokenizer_config.json"):
        assert f"{name}:" in said
    assert said.count(f"{rule} found") == 2
    assert SECRETS[rule] not in said


def plant(adapter, name, change):
    """Changes a JSON file of an adapter, and its hash in the manifest, as an attacker would."""
    path = adapter / name
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    manifest = json.loads((adapter / "hfadapt.json").read_text())
    manifest["files"][name] = hashlib.sha256(path.read_bytes()).hexdigest()
    (adapter / "hfadapt.json").write_text(json.dumps(manifest))


def test_the_name_of_this_machine_and_its_user_are_refused(hub, send, cell, sound_card, monkeypatch):
    from hfadapt.leaks import personal_rules

    monkeypatch.setattr("socket.gethostname", lambda: "gandalf-7")
    monkeypatch.setenv("EMAIL", "jane@example.test")
    personal_rules.cache_clear()
    for secret, rule in (("gandalf-7", "name of this machine"), ("jane@example.test", "e-mail address")):
        text = (cell / "README.md").read_text()
        (cell / "README.md").write_text(f"{text}\n{secret}\n")
        said = refused(send, hub, cell)
        (cell / "README.md").write_text(text)
        assert rule in said
        assert secret not in said
    personal_rules.cache_clear()


@pytest.mark.parametrize("kind", ["link", "linked card", "pickle", "disguised pickle", "stranger", "folder"])
def test_links_pickles_and_strangers_are_refused(hub, send, cell, sound_card, kind, tmp_path):
    import pickle

    outside = tmp_path / "outside.txt"
    outside.write_text("private")
    adapter = cell / "adapter"
    if kind == "link":
        (adapter / "special_tokens_map.json").symlink_to(outside)
    elif kind == "linked card":
        (cell / "loss.svg").unlink()
        (cell / "loss.svg").symlink_to(outside)
    elif kind == "pickle":
        (adapter / "optimizer.pt").write_bytes(b"x")
    elif kind == "disguised pickle":
        (adapter / "vocab.txt").write_bytes(pickle.dumps({"a": 1}))
    elif kind == "stranger":
        (adapter / ".env").write_text("X=1")
    else:
        (adapter / "more").mkdir()
    said = refused(send, hub, cell)
    assert {"link": "special_tokens_map.json", "linked card": "loss.svg", "pickle": "optimizer.pt"}.get(
        kind, ""
    ) in said
    assert "private" not in said


def test_what_lies_beside_the_records_is_not_taken(hub, send, cell, sound_card):
    (cell / ".env").write_text("TOKEN=1")
    (cell / "checkpoints").mkdir()
    (cell / "checkpoints" / "optimizer.pt").write_bytes(b"x")
    send(cell)
    assert set(hub.repos[REPO].head.files) == FILES | {".gitattributes"}


@pytest.mark.parametrize("repo", ["tiny", "a/b/c", "some body/tiny", "somebody/ti--ny", None])
def test_a_bad_name_is_refused(hub, send, cell, repo):
    assert "--repo" in refused(send, hub, cell, repo=repo)


def test_a_repository_with_something_else_in_it_is_refused(hub, send, cell, sound_card):
    hub.make(REPO)
    hub.commit(REPO, {"pytorch_model.bin": b"x"})
    assert "pytorch_model.bin" in refused(send, hub, cell)


def test_a_tag_of_another_commit_is_refused_before_anything_is_sent(hub, send, cell, sound_card):
    send(cell, tag="v1")
    hub.commit(REPO, {"README.md": b"---\n---\nother"})
    before = len(hub.repos[REPO].commits)
    hub.repos[REPO].tags["v1"] = hub.repos[REPO].head.oid
    with pytest.raises(RequestError, match="another commit"):
        send(cell, tag="v1")
    assert len(hub.repos[REPO].commits) == before


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
    with pytest.raises(RunError, match="not known whether"):
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
