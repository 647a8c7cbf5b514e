"""The notebooks in recipes/notebooks run from top to bottom; a run in a notebook can be interrupted and goes on."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny import labelled, recipe_fields, write_recipe, write_rows

nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "recipes" / "notebooks").glob("*.ipynb"))
PATIENCE = 600


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """`!hfadapt` and `import hfadapt` are those of this checkout."""
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")


def test_there_are_notebooks_without_outputs() -> None:
    import nbformat

    assert len(NOTEBOOKS) == 5
    for path in NOTEBOOKS:
        assert not [cell.outputs for cell in nbformat.read(path, 4).cells if cell.get("outputs")], path


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path) -> None:
    import nbformat

    notebook = nbformat.read(path, 4)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=PATIENCE, kernel_name="python3", resources=resources).execute()
    for cell in notebook.cells:
        outputs = cell.get("outputs", [])
        text = str(outputs)
        assert len(outputs) < 20, cell.source
        assert "\\x1b[" not in text, cell.source
        assert "Traceback" not in text, text
        if cell.source.startswith("!"):
            said = "".join(output.get("text", "") for output in outputs)
            assert "fix:" not in said, said


class Kernel:
    """A kernel and what it has shown."""

    def __init__(self, folder: Path) -> None:
        from jupyter_client.manager import start_new_kernel

        self.manager, self.client = start_new_kernel(cwd=str(folder))

    def begin(self, code: str) -> None:
        self.shown: list[dict[str, Any]] = []
        self.client.execute(code)

    def until(self, done: Any) -> None:
        """Listens until `done` says so of a message."""
        ends = time.monotonic() + PATIENCE
        while time.monotonic() < ends:
            message = self.client.get_iopub_msg(timeout=PATIENCE)
            self.shown.append(message)
            if done(message):
                return
        raise TimeoutError

    def finish(self) -> str:
        """Listens to the end of the cell; how it ended."""
        self.until(lambda message: message["content"].get("execution_state") == "idle")
        return str(self.client.get_shell_msg(timeout=PATIENCE)["content"]["status"])


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    found = Kernel(tmp_path)
    yield found
    found.client.stop_channels()
    found.manager.shutdown_kernel(now=True)


def steps(message: dict[str, Any]) -> int:
    found = re.search(r"step (\d+)/", message["content"].get("data", {}).get("text/plain", ""))
    return int(found[1]) if found else 0


def test_an_interrupted_cell_leaves_a_run_that_goes_on(models: Path, tmp_path: Path, kernel: Kernel) -> None:
    write_rows(tmp_path / "one.jsonl", labelled(120))
    fields = recipe_fields(models / "encoder", train={"batch_rows": 8, "max_steps": 4000}, evaluate__security=False)
    write_recipe(tmp_path / "tiny.yaml", fields)
    kernel.begin("from hfadapt import load_recipe, run\nrun(load_recipe('tiny.yaml'), until='train')")
    kernel.until(lambda message: steps(message) > 2)
    kernel.manager.interrupt_kernel()
    assert kernel.finish() == "error"
    last = next(each for each in reversed(kernel.shown) if each["msg_type"] == "update_display_data")
    assert "run it again to go on" in last["content"]["data"]["text/plain"]
    assert any(each["content"].get("ename") == "KeyboardInterrupt" for each in kernel.shown)
    assert len([each for each in kernel.shown if each["msg_type"] == "display_data"]) == 1, "one display"

    kernel.begin("run(load_recipe('tiny.yaml'), until='train')")
    kernel.until(lambda message: steps(message) > 2)
    kernel.manager.interrupt_kernel()
    kernel.finish()
    html = [each["content"]["data"].get("text/html", "") for each in kernel.shown if "data" in each["content"]]
    assert any("going on from step" in text for text in html)
