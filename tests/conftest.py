"""What every test gets: no network, a home and caches of its own, quiet threads, tiny models built once per session.

Nothing of the user's is read or written, by tests or by the processes they start, whatever stands there. One thing is
shared: package files of samples, which are used only where their sha256 is the right one.
"""

from __future__ import annotations

import os
import shutil
import site
import socket
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# A deadline would make a timed test of every property.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")
MARK = "HFADAPT_TEST_SESSION"
IS_FIRST = MARK not in os.environ
"""Workers of pytest-xdist are started by a process that was here before."""
USERS = ("HF_", "HFADAPT_", "HUGGINGFACE_", "TRANSFORMERS_", "XDG_", "TORCHINDUCTOR_", "TRITON_")
KEPT = ("HFADAPT_KERNELS", "HFADAPT_ISA", "HFADAPT_LITERT_PYTHON")
"""Which processor is played, and where LiteRT's converter is."""


def begin_session() -> None:
    """A home for this process and all that it starts; package installers still find what the user has set."""
    home, session = Path.home(), Path(tempfile.mkdtemp(prefix="hfadapt-tests-"))
    packages = Path(os.environ.get("HFADAPT_CACHE") or home / ".cache" / "hfadapt") / "archives"
    os.environ.setdefault("PYTHONUSERBASE", site.getuserbase())
    settings = (home / folder / "pip.conf" for folder in (".config/pip", ".pip"))
    if (path := next((path for path in settings if path.is_file()), None)) is not None:
        os.environ.setdefault("PIP_CONFIG_FILE", str(path))
    for name in [name for name in os.environ if name.startswith(USERS) and name not in KEPT]:
        del os.environ[name]
    places = {"HOME": "home", "USERPROFILE": "home", "XDG_CACHE_HOME": "home/.cache", "HF_HOME": "huggingface"}
    places |= {"HF_MODULES_CACHE": "modules", "TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
    for name, place in places.items():
        (session / place).mkdir(parents=True, exist_ok=True)
        os.environ[name] = str(session / place)
    for name in ("kernels", "traces", "known"):
        (session / "shared" / name).mkdir(parents=True)
    with suppress(OSError):  # some systems let nobody make links
        packages.mkdir(parents=True, exist_ok=True)
        (session / "shared" / "archives").symlink_to(packages)
    os.environ[MARK] = str(session)


if IS_FIRST:
    begin_session()
SESSION = Path(os.environ[MARK])
CACHE = SESSION / os.environ.get("PYTEST_XDIST_WORKER", "main") / "cache"
"""Of this worker; compiled kernels, traces and what is known of models are made once for all."""
CACHE.mkdir(parents=True)
with suppress(OSError):
    for shared in (SESSION / "shared").iterdir():
        (CACHE / shared.name).symlink_to(shared)
os.environ["HFADAPT_CACHE"] = str(CACHE)
# Before torch is imported: threads that spin while they wait lose most of their speed on a shared machine.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if os.environ.get("HFADAPT_ISA"):
    from hfadapt.hardware.processor import limit_libraries

    limit_libraries()

_connect = socket.socket.connect
LOOPBACK = ("127.", "::1", "localhost", "0.0.0.0")


def _connect_at_home(self: socket.socket, address: Any) -> None:
    """`connect` for Unix sockets and this machine only."""
    if self.family != socket.AF_UNIX and not str(address[0]).startswith(LOOPBACK):
        raise OSError(f"tests do not use the network: {address[0]}")
    return _connect(self, address)


socket.socket.connect = _connect_at_home  # type: ignore[method-assign]


def pytest_unconfigure() -> None:
    if IS_FIRST:
        shutil.rmtree(SESSION, ignore_errors=True)


LONG = frozenset((Path(__file__).parent / "long.txt").read_text(encoding="utf-8").splitlines())
"""Tests that took more than half a second, by their ids; `python tests/renew_long.py` writes them."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Before -m chooses."""
    for item in items:
        if item.nodeid in LONG:
            item.add_marker("long")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny models: `lm` (tied embeddings), `lm-untied`, `encoder`."""
    import peft  # noqa: F401
    import tiny

    folder = tmp_path_factory.mktemp("models")
    tiny.make_models(folder)
    return folder


@pytest.fixture(autouse=True)
def frozen_libraries() -> None:
    from tiny import freeze_libraries

    freeze_libraries()


@pytest.fixture(scope="session")
def vision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny vision models: `vit`, `dino`, `conv`."""
    import tiny_images

    folder = tmp_path_factory.mktemp("vision")
    tiny_images.make_vision_models(folder)
    return folder


@pytest.fixture(scope="session")
def picture_run(vision: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of image classification on two domains; only to be read."""
    import tiny_images

    return tiny_images.finished_run(tmp_path_factory.mktemp("pictures"), vision)


@pytest.fixture(scope="session")
def hearing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny models that hear: `whisper`, `wave`."""
    import tiny_sounds

    folder = tmp_path_factory.mktemp("hearing")
    tiny_sounds.make_hearing_models(folder)
    return folder


@pytest.fixture
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of hfadapt for one test."""
    monkeypatch.setenv("HFADAPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
