"""Checkpoints: whole or not there, whatever happens while they are written."""

from __future__ import annotations

import json
import resource
import shutil
from contextlib import contextmanager

import pytest
import torch

from hfadapt.core.errors import RunError
from hfadapt.plan.disk import checkpoint_bytes
from hfadapt.train import checkpoint


def parts(value=1.0, size=4):
    parameter = torch.nn.Parameter(torch.full((size,), float(value)))
    optimizer = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimizer.step()
    return {"w": parameter}, optimizer.state_dict(), {"step": int(value), "best_loss": None}


@contextmanager
def file_limit(count):
    """No file may grow beyond `count` bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_checkpoint_is_as_large_as_the_plan_says(tmp_path):
    parameter = torch.nn.Parameter(torch.ones(50_000))
    optimizer = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimizer.step()
    folder = checkpoint.save(tmp_path, 1, {"w": parameter}, optimizer.state_dict(), {})
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert size == pytest.approx(checkpoint_bytes(50_000, "adamw") / (checkpoint.KEPT + 1), rel=0.01)


def test_what_was_saved_comes_back(tmp_path):
    tensors, optimizer, state = parts(3.0)
    checkpoint.save(tmp_path, 3, tensors, optimizer, state)
    found = checkpoint.latest(tmp_path)
    assert found is not None
    assert torch.equal(found[0]["w"], tensors["w"])
    assert found[2] == state
    moments = found[1]["state"][0]
    assert all(torch.equal(moments[name], optimizer["state"][0][name]) for name in ("exp_avg", "exp_avg_sq", "step"))


def test_the_newest_two_are_kept(tmp_path):
    for step in (1, 2, 10, 11):
        checkpoint.save(tmp_path, step, *parts(step))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000010", "step-000011"]
    assert checkpoint.latest(tmp_path)[2]["step"] == 11


def test_those_of_another_training_that_came_further_give_way_once_there_are_two(tmp_path):
    for step in (4, 5):
        checkpoint.save(tmp_path, step, *parts(step))
    names = []
    for step in (2, 3):
        checkpoint.save(tmp_path, step, *parts(step))
        names.append(sorted(path.name for path in tmp_path.iterdir()))
    assert names == [["step-000002", "step-000004", "step-000005"], ["step-000002", "step-000003"]]


def test_without_room_for_three_nothing_is_begun(tmp_path):
    checkpoint.require_room(tmp_path / "checkpoints", checkpoint_bytes(1000, "adamw"))
    with pytest.raises(RunError, match="not enough room"):
        checkpoint.require_room(tmp_path / "checkpoints", checkpoint_bytes(10**15, "adamw"))
    assert not (tmp_path / "checkpoints").exists()


def test_saving_the_same_step_again_replaces_it(tmp_path):
    checkpoint.save(tmp_path, 1, *parts(1))
    checkpoint.save(tmp_path, 1, *parts(7))
    assert checkpoint.latest(tmp_path)[2]["step"] == 7


def test_nothing_saved_is_nothing_found(tmp_path):
    assert checkpoint.latest(tmp_path / "none") is None


@pytest.mark.parametrize("name", ["adapter.safetensors", "optimizer.pt", "state.json", "manifest.json"])
@pytest.mark.parametrize("harm", ["flip", "cut", "remove", "empty"])
def test_any_damage_to_any_file_is_seen(tmp_path, name, harm):
    checkpoint.save(tmp_path, 1, *parts(1))
    path = checkpoint.save(tmp_path, 2, *parts(2)) / name
    content = bytearray(path.read_bytes())
    if harm == "remove":
        path.unlink()
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes({"flip": content, "cut": content[: len(content) // 2], "empty": b""}[harm])
    said = []
    found = checkpoint.latest(tmp_path, said.append)
    assert found[2]["step"] == 1
    assert len(said) == 1
    assert said[0].startswith("checkpoint step-000002 skipped: ")
    assert (tmp_path / "step-000002").exists(), "a bad checkpoint is evidence, it is not deleted"


def test_when_all_are_damaged_there_is_none(tmp_path):
    for step in (1, 2):
        (checkpoint.save(tmp_path, step, *parts(step)) / "state.json").unlink()
    assert checkpoint.latest(tmp_path) is None


@pytest.mark.parametrize(
    ("limit", "size"),
    [(2_000, 10_000), (3_000, 500), (60, 4)],
    ids=["in the adapter", "in the optimizer", "in the first bytes"],
)
def test_a_full_disk_keeps_the_older_ones(tmp_path, limit, size):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, *parts(step, size))
    with file_limit(limit), pytest.raises(RunError, match="checkpoint could not be written") as caught:
        checkpoint.save(tmp_path, 3, *parts(3, size))
    assert "free some space" in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000001", "step-000002"]
    assert checkpoint.latest(tmp_path)[2]["step"] == 2
    checkpoint.save(tmp_path, 3, *parts(3, size))
    assert checkpoint.latest(tmp_path)[2]["step"] == 3


def test_what_a_killed_process_left_is_not_taken_for_a_checkpoint(tmp_path):
    checkpoint.save(tmp_path, 1, *parts(1))
    whole = checkpoint.save(tmp_path, 2, *parts(2))
    shutil.copytree(whole, tmp_path / ".step-000003.tmp-abc")
    assert checkpoint.latest(tmp_path)[2]["step"] == 2


def test_loading_runs_no_code(tmp_path):
    class Trap:
        def __reduce__(self):
            return (exec, ("raise SystemExit('code was run')",))

    path = checkpoint.save(tmp_path, 1, *parts(1))
    torch.save(Trap(), path / "optimizer.pt")
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["optimizer.pt"] = checkpoint.file_sha256(path / "optimizer.pt")
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(Exception, match=r"Unsupported|weights_only|Weights only"):
        checkpoint.latest(tmp_path)
