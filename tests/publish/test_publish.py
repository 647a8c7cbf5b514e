"""What is sent, and what is refused before anything is."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys

import pytest
from hub_server import TOKEN
from tiny import command, labelled, recipe_fields, write_recipe, write_rows

from hfadapt import load_adapted
from hfadapt.core.errors import HfadaptError, RequestError
from hfadapt.publish.publish import publish
from hfadapt.publish.staging import stage
from hfadapt.records.published import PublishRecord
from hfadapt.records.stages import CellState, StageError
from hfadapt.run_folder import Cell
from publish import FILES, REPO

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


# --- what is sent ----------------------------------------------------------------------------------------------------


def test_dry_run_shows_every_file_and_sends_nothing(hub, send, cell):
    shown = str(send(cell, yes=False))
    for name in FILES:
        path = cell / name if (cell / name).exists() else cell / "adapter" / name
        assert name in shown
        if name not in ("README.md", "card.json", "lock.yaml", "hfadapt.json"):
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
    assert "the same files were there already" in " ".join(str(again).split())


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
    publish(cell, to=tmp_path / "out", license="mit")
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES | {"SHA256SUMS"}
    for line in (tmp_path / "out" / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest() == digest
    assert hub.requests == []
    with pytest.raises(RequestError, match="not empty"):
        publish(cell, to=tmp_path / "out", license="mit")


def test_a_published_adapter_is_asked_as_that_of_its_run(models, tmp_path):
    """By the template, and among the answers that it was trained to choose from."""
    write_rows(tmp_path / "one.jsonl", labelled(80))
    template = {"prompt": "{text} :", "completion": " {label}"}
    domains = {"one": {"source": "one.jsonl", "license": "mit"}}
    checks = {"security": False, "drift": False, "general_text": False}
    fields = recipe_fields(models / "lm", "causal-lm", domains, template=template, evaluate=checks)
    done = command("run", write_recipe(tmp_path / "tiny.yaml", fields), folder=tmp_path)
    assert done.code == 0, done.err
    cell = Cell(tmp_path / "runs/tiny/one/this-machine")
    stage(cell, tmp_path / "out")
    own, published = load_adapted(cell.folder), load_adapted(tmp_path / "out", base=str(models / "lm"))
    assert (published.form, published.prompt, published.choices) == (own.form, own.prompt, own.choices)
    assert published.predict("good film")[0] == own.predict("good film")[0]


def test_a_run_as_folders_on_this_machine(run, tmp_path, sound_card):
    shutil.copytree(run / "one", run / "two")
    publish(run, to=tmp_path / "out", license="mit")
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


def test_an_unclear_license_is_refused_unless_it_is_set(hub, send, cell):
    assert "licence" in refused(send, hub, cell, license=None)
    assert "apache-2.0" in refused(send, hub, cell, license="apache-2")


def test_a_cell_that_is_not_done_is_refused(hub, send, cell):
    error = StageError(stage="evaluate", message="accuracy gained too little")
    CellState(status="failed", errors=(error,)).write(cell / "cell.json")
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

    from hfadapt.card.build import build_card

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
    from hfadapt.publish.staging import blocks

    lock = proved / "lock.yaml"
    lock.write_text(lock.read_text().replace("method: lora", "method: full"))
    record = Cell(proved).drift
    merged = f"merged-{Cell(proved).lock.dtype}"
    assert merged in [variant.name for variant in record.variants]
    record.model_copy(update={"refused": {merged: "too far"}}).write(proved / "drift.json")
    assert any("drift too far" in problem.what for problem in blocks(Cell(proved), "mit"))


@pytest.mark.parametrize("name", ["security.json", "drift.json", "transfer.json"])
def test_a_card_that_hides_evidence_is_refused(hub, send, proved, name):
    from hfadapt.card.build import build_card

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
    from hfadapt.records.evidence import FailingExample, Slice

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
    from hfadapt.publish.leaks import personal_rules

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
