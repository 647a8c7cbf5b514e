"""A folder with a page that classifies texts in the reader's browser: the ONNX file, and what runs and shows it.

Its packages: `pip install "hfadapt[onnx]"`, and npm, which fetches ONNX Runtime Web once.

The files are those of the format `onnx`, opened and judged here by ONNX Runtime. Beside them lie ONNX Runtime Web,
BERT's tokenizer in JavaScript, and the page, which loads nothing from elsewhere.
"""

from __future__ import annotations

import html
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfadapt.core import registry
from hfadapt.core.errors import RunError
from hfadapt.core.spec import write_text
from hfadapt.formats import Estimate, Form, Format, Head
from hfadapt.formats.onnx import Onnx
from hfadapt.formats.web import runtime
from hfadapt.formats.web.reading import reading, unreadable
from hfadapt.models.base import BaseRef
from hfadapt.models.facts import ModelFacts
from hfadapt.models.load import load_processor, source_of
from hfadapt.run_folder import Cell
from hfadapt.tasks._classes import OneClass

if TYPE_CHECKING:
    import torch

PAGE, WORDS = "index.html", "page.json"
COPIED = ("app.js", "classifier.js", "wordpiece.js", "style.css", "ort/LICENSE")
FILES = frozenset({PAGE, WORDS, *COPIED, *(f"ort/{name}" for name in runtime.FILES)})


class Web(Onnx):
    """index.html, and beside model.onnx all that it needs."""

    name = "web"

    def unfit(self, task: str, config: Mapping[str, Any]) -> str | None:
        """All that is not one class for a text."""
        kind = registry.task(task)
        one = isinstance(kind, OneClass) and kind.label_kind == "class"
        if not (one and registry.modality(kind.modality).tokens):
            return f"the page tells which one class a text has, this is {kind.title}"
        return super().unfit(task, config)

    def estimates(self, facts: ModelFacts) -> tuple[Estimate, ...]:
        """As of an ONNX file, and what runs it."""
        return tuple(
            Estimate(each.form, each.bytes + runtime.BYTES, each.arithmetic) for each in super().estimates(facts)
        )

    def refusal(self, cell: Cell) -> str | None:
        """As of an ONNX file; tokenizers that the page cannot follow; and no ONNX Runtime Web."""
        if why := super().refusal(cell):
            return why
        lock = cell.lock
        if why := unreadable(load_processor(source_of(BaseRef.of(lock)), registry.task(lock.task).modality)):
            return why
        try:
            runtime.source()
        except RunError as error:
            return str(error)
        return None

    def holds(self, name: str, whole: bool) -> bool:
        """The page's files beside those of the model."""
        return name in FILES or super().holds(name, whole)

    def needed(self, whole: bool) -> frozenset[str]:
        """All of them."""
        return super().needed(whole) | FILES

    def head(self, path: Path) -> Head | None:
        """Of ONNX Runtime Web nothing: the files are the published ones, and say nothing of this machine."""
        if path.name in runtime.FILES and runtime.is_own(path):
            return Head(0, vocabulary=False, text="")
        return super().head(path)

    def write(self, cell: Cell, form: Form | None, folder: Path, device: torch.device) -> Any:
        """The ONNX file, and the page around it."""
        model = super().write(cell, form, folder, device)
        (folder / "ort").mkdir()
        for name in COPIED:
            shutil.copyfile(Path(__file__).parent / name, folder / name)
        runtime.place(folder / "ort")
        tokenizer = self.processor(cell, folder)
        page = {"labels": list(cell.data.labels), "reading": reading(tokenizer, cell.lock.data.max_length)}
        write_text(folder / WORDS, json.dumps(page, ensure_ascii=False, separators=(",", ":")) + "\n")
        write_text(folder / PAGE, _page(cell, form))
        return model

    def notes(self, cell: Cell) -> str:
        """How the page is opened."""
        return (
            "The page: `python -m http.server` in this folder, then http://localhost:8000 in a browser; any server of "
            "files will do. It needs no network beyond the folder, and what is written into it stays in the browser, "
            f"where ONNX Runtime Web {runtime.VERSION} answers one line after the other. Scripts ask by "
            "`await hfadapt.classify([text, …])`."
        )


def _page(cell: Cell, form: Form | None) -> str:
    """index.html with the names of what was trained."""
    named = form.name if form else cell.lock.dtype
    words = {
        "@TITLE@": f"{cell.lock.name}: {cell.domain}",
        "@ABOUT@": f"{cell.manifest.model} with an adapter for {cell.domain} merged into it, as {named}.",
    }
    text = (Path(__file__).parent / PAGE).read_text(encoding="utf-8")
    for mark, word in words.items():
        text = text.replace(mark, html.escape(word))
    return text


KIND: Format = Web()
