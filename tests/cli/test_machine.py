"""Machines as people have them: folders that cannot be written, no home, full disks, closed or narrow terminals."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import command, labelled, recipe_fields, write_recipe, write_rows

from hfadapt.core import cache, spec
from hfadapt.core.errors import RunError, fault_of_machine
from hfadapt.publish import leaks
from hfadapt.run_folder import make_writable


@pytest.fixture(scope="module")
def project(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("machine")
    write_rows(folder / "one.jsonl", labelled(80))
    write_recipe(folder / "tiny.yaml", recipe_fields(models / "encoder"))
    return folder


def no_fault(done):
    assert "bug in hfadapt" not in done.err
    assert "Traceback" not in done.err + done.out


@pytest.mark.parametrize("runs", ["file", "file/below", "/proc/runs", "/sys"])
def test_a_run_folder_that_cannot_be_written_is_told_before_anything_is_done(project, runs):
    (project / "file").touch()
    done = command("run", "tiny.yaml", "--runs", runs, folder=project)
    assert done.code == 2
    assert "the run folder cannot be written" in done.err
    assert "--runs" in done.err
    assert "looking for the sources" not in done.err
    assert ("file is a file" in done.err) == runs.startswith("file")


def test_a_cell_or_lock_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    cell = tmp_path / "tiny/one/this-machine"
    (cell / "data").mkdir(parents=True)
    make_writable(tmp_path / "tiny", [cell])
    import tempfile

    real = tempfile.TemporaryFile

    def refuse(dir):
        if Path(dir).name == "data":
            raise PermissionError(errno.EACCES, "Permission denied", f"{dir}/x")
        return real(dir=dir)

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(Exception, match="cannot be written") as found:
        make_writable(tmp_path / "tiny", [cell])
    assert str(cell / "data") in str(found.value)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_wherever_it_is_met(project, tmp_path, monkeypatch, number):
    real = spec.write_bytes

    def full(path, content):
        if tmp_path in path.parents:
            raise OSError(number, os.strerror(number), str(path))
        real(path, content)

    monkeypatch.setattr(spec, "write_bytes", full)
    done = command("train", "tiny.yaml", "--runs", tmp_path, folder=project)
    assert done.code == 1
    assert "the disk is full" in done.err
    assert "free some space" in done.err
    no_fault(done)


def test_a_full_cache_is_named_with_its_variable(tmp_path):
    def full(folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(RunError, match="the cache's disk is full") as found:
        cache.made(tmp_path / "made", full)
    assert str(tmp_path) in str(found.value)
    assert cache.VARIABLE in str(found.value)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "a b"), "ls -ld 'a b'"),
        (FileExistsError(errno.EEXIST, "File exists", "x"), "where a folder is needed"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "x"), "where a folder is needed"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "x"), "where a file is needed"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 300), "too long"),
        (FileNotFoundError("No such file or directory: m.safetensors"), "m.safetensors"),
        (RuntimeError("PytorchStreamWriter failed writing file data/0"), "the disk is full"),
        (OSError(errno.ENOSPC, "No space left on device", "from", None, "to"), "to: the disk is full"),
        (ValueError("x"), None),
        (OSError("x"), None),
    ],
)  # fmt: skip
def test_faults_of_the_machine_are_told_from_those_of_the_program(error, said):
    found = fault_of_machine(error)
    assert (said is None) == (found is None)
    assert said is None or said in str(found)


@pytest.mark.parametrize("command_line", [("export", "runs", "--to", "file/x"), ("new", "-o", "file/x.yaml")])
def test_a_file_in_the_way_is_named(project, models, command_line):
    (project / "file").touch()
    words = list(command_line)
    if words[0] == "export":
        assert command("train", "tiny.yaml", folder=project).code == 0
        words[1:2] = ["runs/tiny", "--format", "adapter"]
    else:
        words[1:1] = ["--model", models / "encoder", "--data", "one.jsonl"]
    done = command(*words, folder=project)
    assert done.code in (1, 2)
    assert "file: " in done.err
    no_fault(done)


def test_without_a_home_there_is_a_temporary_cache(monkeypatch):
    def nowhere(*_):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nowhere)
    monkeypatch.setattr(Path, "expanduser", nowhere)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    for asked in (None, "~/cache"):
        if asked:
            monkeypatch.setenv(cache.VARIABLE, asked)
        else:
            monkeypatch.delenv(cache.VARIABLE)
        assert cache.folder().is_dir()
    leaks.personal_rules.cache_clear()
    assert "home folder" not in dict(leaks.personal_rules())
    leaks.personal_rules.cache_clear()


@pytest.mark.parametrize("override", ["model=~nobody-here/m", "domains.one.source=~nobody-here/d.csv"])
def test_the_home_of_nobody_is_no_folder(project, override):
    done = command("check", "tiny.yaml", override, folder=project)
    assert done.code == 2
    assert "nobody-here" in done.err


def test_a_working_directory_that_is_gone_is_told(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    script = "import os, sys; os.rmdir(os.getcwd()); from hfadapt.__main__ import start; start()"
    done = subprocess.run(
        [sys.executable, "-c", script, "list", "quants"],
        cwd=gone,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 2
    assert "the folder you are in is gone" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("redirected", [">&-", "2>&-", "<&- >&- 2>&-", "| head -c 1", ">/dev/full", "2>/dev/full"])
def test_closed_and_full_streams(redirected):
    """What is printed may be lost; nothing crashes."""
    line = f"{sys.executable} -m hfadapt list adapters {redirected}"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode == (1 if redirected == ">/dev/full" else 0)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert ("the disk is full" in done.stderr) == (redirected == ">/dev/full")


@pytest.mark.parametrize("columns", ["0", "1", "20", "many"])
def test_any_terminal_is_written_to(project, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    done = command("check", "tiny.yaml", folder=project)
    assert done.code == 0, done.err
    no_fault(done)


@pytest.mark.parametrize("encoding", ["ascii", "utf-8", "latin-1"])
def test_names_that_a_terminal_cannot_show_are_written_all_the_same(encoding):
    line = [sys.executable, "-m", "hfadapt", "predict", b"runs/n\xf6 \xe2\x82\xac", "text"]
    done = subprocess.run(line, capture_output=True, check=False, env={**os.environ, "PYTHONIOENCODING": encoding})
    assert done.returncode == 2
    assert b"this is neither a run nor a cell" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(("kind", "code"), [("SIGTERM", 143), ("SIGUSR1", 143), ("SIGINT", 130)])
def test_being_told_to_stop_is_an_interruption(project, monkeypatch, kind, code):
    import signal

    import hfadapt.pipeline.run

    number = getattr(signal, kind)
    before = signal.getsignal(number)
    monkeypatch.setattr(hfadapt.pipeline.run, "plan_recipe", lambda *_, **__: os.kill(os.getpid(), number))
    done = command("plan", "tiny.yaml", folder=project)
    assert done.code == code
    assert "run the command again" in done.err
    assert signal.getsignal(number) is before
