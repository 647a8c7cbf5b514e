"""ONNX Runtime Web, the files that run a graph in a browser: of its npm package, fetched once, or of a folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from pathlib import Path

from hfadapt.core import cache
from hfadapt.core.errors import RunError
from hfadapt.core.hashing import file_sha256

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
SHA256 = "d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71"
VARIABLE = "HFADAPT_ORT_WEB"
FILES = {
    "ort.wasm.min.mjs": "219e6a1fc8a9938268d18efca3c91d310bd2f4a59bbd13744df5b2b7fc6cee3b",
    "ort-wasm-simd-threaded.mjs": "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
"""sha256 of each file: JavaScript that is called, JavaScript that loads the other one, and WebAssembly."""
BYTES = 14_314_404
"""Of all of them."""
TIMEOUT_SECONDS = 600


def is_own(path: Path) -> bool:
    """Whether a file is the one of its name in the package."""
    return path.is_file() and file_sha256(path) == FILES[path.name]


def source() -> Path:
    """What holds the files: the folder that `HFADAPT_ORT_WEB` names, else the package's archive, fetched on first use.

    Raises:
        RunError: the folder has not the right files, or npm cannot fetch the package.
    """
    named = os.environ.get(VARIABLE)
    if not named:
        return _archive()
    for name in FILES:
        path = Path(named).expanduser() / name
        if not is_own(path):
            raise RunError(
                f"a file of ONNX Runtime Web is {'not the expected one' if path.is_file() else 'missing'}",
                place=str(path),
                allowed=f"the one of {PACKAGE} {VERSION}, sha256 {FILES[name]}",
                fix=f"npm pack {PACKAGE}@{VERSION}, unpack it, and set {VARIABLE} to package/dist in it",
            )
    return Path(named).expanduser()


def place(folder: Path) -> None:
    """Puts the files into a folder. Raises RunError as `source`."""
    found = source()
    if found.is_dir():
        for name in FILES:
            shutil.copyfile(found / name, folder / name)
        return
    with tarfile.open(found) as archive:
        for name in FILES:
            content = archive.extractfile(f"package/dist/{name}")
            assert content is not None
            (folder / name).write_bytes(content.read())


def _archive() -> Path:
    """The verified archive, which npm fetches; nothing of it is run."""
    folder, name = cache.folder() / "archives", f"{SHA256}.tgz"
    if cache.holds(folder / name, SHA256):
        return folder / name
    npm, said = shutil.which("npm"), "no npm"
    with cache.workplace(folder) as (home, temporary):
        if npm is not None:
            command = [npm, "pack", f"{PACKAGE}@{VERSION}", "--ignore-scripts", "--silent"]
            try:
                done = subprocess.run(
                    command, cwd=temporary, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
                )
                said = " ".join(done.stderr.split())[:300] or "a file with another sha256"
            except subprocess.TimeoutExpired:
                said = f"no answer in {TIMEOUT_SECONDS} seconds"
        found = [path for path in temporary.glob("*.tgz") if file_sha256(path) == SHA256]
        if not found:
            raise RunError(
                "ONNX Runtime Web cannot be fetched",
                place=f"{PACKAGE}@{VERSION}",
                got=said,
                fix="install Node.js with npm and check that its registry can be reached, or set "
                f"{VARIABLE} to a folder with {', '.join(FILES)} of {PACKAGE} {VERSION}",
            )
        if (home / name).is_dir():
            cache.remove(home / name)
        return found[0].replace(home / name)
