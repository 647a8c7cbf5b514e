"""What every test gets: no network, a cache of its own, quiet threads, and tiny models built once per session."""

from __future__ import annotations

import os

# Before torch is imported: threads that spin while they wait lose most of their speed on a shared machine.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

REAL_CACHE = os.environ.get("HFADAPT_CACHE")
OWN_CACHE = tempfile.mkdtemp(prefix="hfadapt-tests-")
os.environ["HFADAPT_CACHE"] = OWN_CACHE
os.environ["HF_MODULES_CACHE"] = os.path.join(OWN_CACHE, "modules")

_connect = socket.socket.connect
LOOPBACK = ("127.", "::1", "localhost", "0.0.0.0")


def _connect_at_home(self: socket.socket, address: Any) -> None:
    """`connect` for Unix sockets and this machine only."""
    if self.family != socket.AF_UNIX and not str(address[0]).startswith(LOOPBACK):
        raise OSError(f"tests do not use the network: {address[0]}")
    return _connect(self, address)


socket.socket.connect = _connect_at_home  # type: ignore[method-assign]


def pytest_unconfigure() -> None:
    shutil.rmtree(OWN_CACHE, ignore_errors=True)


@pytest.fixture(autouse=True)
def sample_cache(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow tests may use the sample models that the user's cache holds."""
    if request.node.get_closest_marker("slow"):
        if REAL_CACHE is None:
            monkeypatch.delenv("HFADAPT_CACHE")
        else:
            monkeypatch.setenv("HFADAPT_CACHE", REAL_CACHE)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the tiny models: `lm` (tied embeddings), `lm-untied`, `encoder`."""
    import gc

    import peft  # noqa: F401
    import tiny

    folder = tmp_path_factory.mktemp("models")
    tiny.make_models(folder)
    # The libraries hold millions of objects that never die; every collection would look at all of them again.
    gc.freeze()
    yield folder
    gc.unfreeze()
