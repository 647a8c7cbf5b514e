"""Processes: that the world is the one that was asked for, and how errors and signals travel."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest
from tiny import finish, labelled, recipe_fields, start, write_recipe, write_rows

import hfadapt
from hfadapt.core.errors import RequestError
from hfadapt.hardware.processes import World, check_world, interruptible, meeting, processes_asked


@pytest.mark.parametrize(
    ("command", "asked"),
    [
        (["accelerate", "launch", "--cpu", "--num_processes", "2", "adapt.py"], 2),
        (["python", "/usr/bin/accelerate", "launch", "--num_processes=4", "adapt.py"], 4),
        (["python", "-m", "accelerate.commands.launch", "--num_processes", "2", "adapt.py"], 2),
        (["torchrun", "--nproc_per_node", "3", "-m", "hfadapt"], 3),
        (["torchrun", "--nproc-per-node=3", "-m", "hfadapt"], 3),
        (["python", "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "hfadapt"], 2),
        (["torchrun", "-m", "hfadapt"], None),
        (["python", "-m", "hfadapt", "run", "r.yaml"], None),
        (["bash", "-c", "something"], None),
        (["torchrun", "--nproc_per_node"], None),
        (["torchrun", "--nproc_per_node", "gpu"], None),
        ([], None),
    ],
)
def test_what_a_launcher_was_asked_for(command, asked):
    assert processes_asked([["bash"], command]) == asked


def test_a_launchers_config_file_counts(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("num_processes: 6\n")
    assert processes_asked([["accelerate", "launch", "--config_file", str(path), "adapt.py"]]) == 6
    assert processes_asked([["accelerate", "launch", "--config_file", str(tmp_path / "none"), "adapt.py"]]) is None


@pytest.mark.parametrize(("recipe", "started", "asked"), [(1, 1, None), (1, 2, 2), (2, 2, None), (2, 2, 2), (1, 1, 1)])
def test_the_right_world(recipe, started, asked):
    check_world(recipe, started, asked)


@pytest.mark.parametrize(
    ("recipe", "started", "asked", "who"),
    [(1, 1, 2, "the launcher"), (2, 1, None, "the recipe"), (4, 2, 2, "the recipe")],
)
def test_a_smaller_world_is_refused(recipe, started, asked, who):
    with pytest.raises(RequestError, match=who) as caught:
        check_world(recipe, started, asked)
    assert caught.value.exit_code == 2
    assert "torchrun --nproc_per_node" in str(caught.value)


def test_several_nodes(monkeypatch):
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    check_world(1, started=4, asked=2)
    check_world(1, started=4, asked=4)
    with pytest.raises(RequestError):
        check_world(1, started=1, asked=2)


def test_processes_that_are_started_again_meet_under_new_names(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "2")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert meeting() == "env://"
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert meeting() == meeting() == "hfadapt://"
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    with pytest.raises(RequestError, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1") as caught:
        meeting()
    assert "--max-restarts 2" in str(caught.value)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "False")
    assert meeting() == "env://"


def test_accelerate_launch_on_a_cpu_starts_one_and_is_refused(models, tmp_path):
    """`accelerate launch --cpu --num_processes 2` starts a single process and says nothing; hfadapt does."""
    write_rows(tmp_path / "one.jsonl", labelled(60))
    write_recipe(tmp_path / "tiny.yaml", recipe_fields(models / "encoder"))
    script = Path(hfadapt.__file__).parents[1] / "recipes/adapt.py"
    launcher = ["accelerate.commands.launch", "--cpu", "--num_processes", "2", str(script)]
    done = finish(start("tiny.yaml", folder=tmp_path, launcher=launcher))
    assert "1 process started, but the launcher asked for 2" in done.err
    assert "torchrun --nproc_per_node 2" in done.err
    assert "exit status 2" in done.err, "accelerate reports the exit code of the process in its own words"
    assert done.code != 0
    assert not (tmp_path / "runs").exists()


def test_one_process_does_its_own_work(tmp_path):
    world = World()
    assert (world.size, world.is_main) == (1, True)
    assert world.on_main(lambda: 7) == 7
    assert world.any(True) is True
    assert world.any(False) is False
    with pytest.raises(RequestError, match="wrong"):
        world.on_main(lambda: (_ for _ in ()).throw(RequestError("wrong")))


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_the_first_signal_asks_and_the_second_one_ends(kind):
    before = signal.getsignal(kind)
    with interruptible() as interrupt:
        assert not interrupt
        os.kill(os.getpid(), kind)
        assert interrupt
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(kind)
    assert signal.getsignal(kind) is before


def test_outside_the_main_thread_signals_keep_their_meaning():
    asked = []

    def work():
        with interruptible() as interrupt:
            asked.append(bool(interrupt))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert asked == [False]
