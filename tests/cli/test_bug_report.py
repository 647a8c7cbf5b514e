"""`hfadapt doctor --report`: says what a maintainer needs, and nothing that is the user's own."""

from __future__ import annotations

import getpass
import os
import platform
import re
import socket
from importlib.metadata import version
from pathlib import Path

import pytest
from tiny import command

from hfadapt import __version__
from hfadapt.fast import compiled
from hfadapt.hardware import processor

SECRETS = {"HF_TOKEN": "hf_AbCdEfGhIjKlMnOpQrStUv", "HUGGING_FACE_HUB_TOKEN": "hf_ZyXwVuTsRqPoNm", "USER": "wilhelmina"}


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    home = tmp_path / "wilhelminas-home"
    (home / "cache/kernels").mkdir(parents=True)
    (home / "cache/kernels/one.so").write_bytes(b"0" * 3_000_000)
    (home / "cache/link.so").symlink_to(home / "cache/kernels/one.so")
    for name, value in {**SECRETS, "LOGNAME": "wilhelmina", "HOME": home, "HFADAPT_CACHE": home / "cache"}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", str(home))
    monkeypatch.setattr(socket, "gethostname", lambda: "wilhelminas-laptop")
    monkeypatch.setattr(platform, "node", lambda: "wilhelminas-laptop")
    done = command("doctor", "--report")
    assert done.code == 0, done.err
    return done.out


def test_it_is_markdown_with_what_a_maintainer_needs(report: str):
    rows = dict(re.findall(r"^\| (.*?) \| (.*?) \|$", report, re.MULTILINE))
    assert rows["hfadapt"] == __version__ or __version__ in report
    assert platform.python_version() in rows["Python"]
    assert rows["processor"] == processor.processor_name()
    assert rows["torch"] == version("torch")
    assert rows["peft"] == version("peft")
    assert rows["compiled kernels"] == ("yes" if compiled.passes() is not None else "no")
    assert "GiB" in rows["memory"]
    for feature in processor.cpu_features():
        assert feature in rows["instruction sets"]
    assert rows["HF_HUB_OFFLINE"] == "1"
    assert re.search(r"^\| hfadapt \| 2\.9 MiB \|$", report, re.MULTILINE)  # The link is not counted again.


def test_nothing_of_the_user_is_in_it(report: str, tmp_path: Path):
    assert getpass.getuser() == "wilhelmina"
    for secret in (*SECRETS.values(), "wilhelmina", str(tmp_path), socket.gethostname(), os.environ["HOME"]):
        assert secret.lower() not in report.lower()
    assert "hf_" not in report
    assert not re.search(r"(?<![\w.])/\w+/|[A-Z]:\\", report), "a path"


def test_a_compiler_that_fails_says_nothing_there(monkeypatch: pytest.MonkeyPatch):
    from hfadapt.cli import doctor

    told = doctor.Capability(name="compiled kernels", available=False, detail="/home/me/x.cpp: bad", fix="/tmp/log")
    monkeypatch.setattr(doctor, "_kernels", lambda target: [told])
    done = command("doctor", "--report")
    assert "| compiled kernels | no |" in done.out
    assert "/home/me" not in done.out + done.err
    assert "/tmp/log" not in done.out
