"""A small Space of the Hub that serves an adapter: README.md, requirements.txt, app.py, and what is published of it.

app.py is the loading snippet of the card, which was run and compared when the card was made: what loads the model stays
as it is, what asks it about the example becomes a function of what somebody types or uploads.
"""

from __future__ import annotations

import ast
import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import packages_distributions
from itertools import takewhile
from pathlib import Path
from typing import Any

from hfadapt.card.snippet import example_file
from hfadapt.core import registry, resources
from hfadapt.core.errors import RequestError, RunError
from hfadapt.core.show import Block, Shown, Text
from hfadapt.core.spec import write_text
from hfadapt.hardware.versions import installed
from hfadapt.publish.publish import Parcel, Publication, chosen, refuse
from hfadapt.publish.staging import check_free, check_license, sealed, stage, write_out
from hfadapt.records.stages import CardRecord, TrainRecord
from hfadapt.run_folder import Cell

GRADIO = "6.31.0"
"""The version that app.py was tried with; it brings numpy and Pillow in versions of its own."""
BROUGHT = frozenset({"numpy", "pillow", "gradio"})
BASE = re.compile(r'^base = ((?:resolve_model\(.*\)\.path)|".*?")(?:  #.*)?$', re.MULTILINE)
PLACEHOLDER = re.compile(r"\{([^{}]+)\}")
ADAPTER = "adapter"


@dataclass(frozen=True)
class Space(Shown):
    """What was written: the files, and how the folder is tried and sent."""

    publication: Publication
    folder: Path
    base: str

    def blocks(self) -> list[Block]:
        """The files with their hashes, and the next commands."""
        said = (
            f"next: try it here: pip install gradio=={GRADIO} -r requirements.txt, then: python app.py\n"
            "      (BASE=FOLDER says where the base is, if not on the Hub)\n"
            "      hf repos create USER/NAME --type space --space-sdk gradio\n"
            f"      hf upload USER/NAME {self.folder} . --repo-type space"
        )
        return [*self.publication.blocks(), Text(said, code=True)]


def space_of(
    path: Path,
    domains: Sequence[str] | None = None,
    targets: Sequence[str] | None = None,
    to: Path | None = None,
    license: str | None = None,
    *,
    refused: Mapping[str, Any] = {},
) -> Space:
    """The Space of one cell, or of the one cell of a run that matches. Raises as `write_space`.

    Args:
        to: By default `spaces/RUN-DOMAIN`.
        refused: What was said and has no meaning here, by the names of the options.
    """
    if said := [name for name, value in refused.items() if value]:
        fix = "leave it out; the folder is sent with `hf upload USER/NAME FOLDER --repo-type space`"
        raise RequestError("--space only writes a folder", place=", ".join(said), fix=fix)
    cells = list(chosen(path, domains, targets).values())
    if len(cells) > 1:
        got = ", ".join(cell.name for cell in cells)
        raise RequestError(
            "a Space serves one adapter", place=str(path), got=got, fix="name one with --domain, --target"
        )
    cell = cells[0]
    return write_space(cell, to or Path("spaces") / f"{cell.lock.name}-{cell.domain}", license)


def write_space(cell: Cell, to: Path, license: str | None = None) -> Space:
    """Writes the folder; it passes the same checks as what is published.

    Args:
        to: A new folder.
        license: A licence id of the Hub, where the records cannot say what holds.

    Raises:
        RequestError: the folder is not free, or what the snippet asks about is nothing that a form has.
        RunError: the cell may not be published, or its base is not on the Hub.
    """
    check_free(to)
    if license is not None:
        check_license(license)
    refuse([cell], license)
    card = CardRecord.read(cell.folder / CardRecord.FILE)
    base = base_of(cell)
    app = app_text(cell, card, base)
    with tempfile.TemporaryDirectory(prefix="hfadapt-space-") as temporary:
        folder = Path(temporary)
        stage(cell, folder, ADAPTER, license)
        write_text(folder / "app.py", app)
        write_text(folder / "requirements.txt", requirements(app, cell))
        own = CardRecord.read(folder / ADAPTER / CardRecord.FILE)
        write_text(folder / "README.md", readme(cell, own, base))
        staged = sealed(folder)
        write_out(staged, to)
        parcel = Parcel(to.name, "", {ADAPTER: cell}, staged)
        return Space(Publication((parcel,), written=to), to, base)


def base_of(cell: Cell) -> str:
    """The base's name on the Hub; '' where the adapter is a whole model. Raises RunError where it is not there."""
    if registry.adapter(cell.lock.adapter.method).whole_model:
        return ""
    found = cell.read(TrainRecord).model_hub_id
    if not found or cell.lock.base is not None:
        whole = next(name for name in registry.names("adapters") if registry.adapter(name).whole_model)
        raise RunError(
            "a Space loads its base from the Hub, and this base is not there",
            place=str(cell.folder),
            got=cell.lock.base.how if cell.lock.base is not None else cell.lock.model,
            fix="publish the base first and train on it by its name; or train the whole model, whose Space loads "
            f"nothing else: adapter.method={whole}",
        )
    return found


# --- app.py ----------------------------------------------------------------------------------------------------------


def app_text(cell: Cell, card: CardRecord, base: str) -> str:
    """The program. Raises RequestError where the snippet is not of the usual shape."""
    code = card.snippet.replace('adapter = "adapter" if os.path.isdir("adapter") else "."', f'adapter = "{ADAPTER}"')
    code = re.sub(r"\n+from hfadapt import resolve_model\n", "\n", code)
    if base:
        revision = cell.read(TrainRecord).model_revision
        said = f'base = os.environ.get("BASE", {json.dumps(base)})' + (f"  # revision {revision}" if revision else "")
        code = BASE.sub(lambda _: said, code, count=1)
    code = "\n".join(line.partition("  # its files, or its name")[0] for line in code.splitlines())
    code = code.replace("import torch\n", "import gradio as gr\nimport torch\n", 1)
    kind = registry.modality_of(cell.lock.task)
    loading, asking = split(code, example_file(registry.schema(cell.data.form)), kind.noun)
    template, examples = template_of(cell, asking), asking.examples
    if template:
        examples = (inside(template, examples[0]),)
    made = resources.templates(Path(__file__).parent / "templates").get_template("app.py.j2")
    text = made.render(
        loading=loading,
        asking=asking.body,
        inputs=asking.inputs,
        chat=asking.chat,
        examples=literal(list(examples) if asking.chat else [examples]) if all(examples) else "",
        component=kind.component,
        title=literal(f"{base.rpartition('/')[2] or cell.lock.name} for {cell.domain}"),
        template=literal(template) if template else "",
    )
    ast.parse(text)
    return text.rstrip() + "\n"


def literal(value: Any) -> str:
    """Python for texts, and lists of them."""
    return json.dumps(value, ensure_ascii=False)


def template_of(cell: Cell, asking: Asking) -> str:
    """The recipe's template around what is typed, its one placeholder called `{text}`; '' where there is none."""
    template = cell.lock.template_of(cell.domain)
    prompt = template.prompt if template and template.prompt else ""
    if len(PLACEHOLDER.findall(prompt)) != 1 or len(asking.inputs) != 1 or asking.chat:
        return ""
    return PLACEHOLDER.sub("{text}", prompt)


def inside(template: str, filled: str) -> str:
    """What was filled into a template; '' where it is not this template's."""
    before, _, after = template.partition("{text}")
    if not (filled.startswith(before) and filled.endswith(after)):
        return ""
    return filled[len(before) : len(filled) - len(after)]


@dataclass(frozen=True)
class Asking:
    """The part of a snippet that asks about its example.

    Args:
        body: Its lines as the body of a function.
        inputs: Names of what it is asked about.
        examples: What stood there, '' for a file.
        chat: Whether it is the turn of a chat.
    """

    body: str
    inputs: tuple[str, ...]
    examples: tuple[str, ...]
    chat: bool


@dataclass(frozen=True)
class Example:
    """What an assignment of a snippet makes of its example.

    Args:
        node: The expression that gives way to the input.
        name: Of the input.
        form: How the input stands in the place of the expression.
        text: What stood there; '' of a file.
    """

    node: ast.expr
    name: str
    form: str
    text: str


def split(code: str, file: str, noun: str) -> tuple[str, Asking]:
    """A snippet as what loads the model, and what asks it.

    Args:
        file: What the snippet calls the file that it opens, '' where it opens none.
        noun: What such a file holds.

    Raises:
        RequestError: no example is found in it.
    """
    tree, lines = ast.parse(code), code.splitlines()
    loaded = max((n for n, each in enumerate(tree.body) if "model" in _assigned(each)), default=len(lines))
    asked = [n for n, each in enumerate(tree.body) if n > loaded and _assigned(each)]
    rest = tree.body[asked[0] :] if asked else []
    # A question and a document are two inputs.
    found = list(takewhile(bool, (_example(each, file, noun) for each in rest)))
    examples = [each for each in found if each is not None]
    if not examples:
        raise RequestError(
            "no Space can be made for this task: the snippet of its card asks about more than texts or a file",
            got=lines[rest[0].lineno - 1].strip() if rest else None,
            allowed="a snippet that sets the example to a text, a chat, or an opened file once the model is loaded",
            fix="write app.py around the snippet yourself",
        )
    changes = [(each.node, each.form.format(each.name)) for each in examples]
    changes += _printed(tree.body, code)
    start = rest[0].lineno - 1
    # A parameter needs no line that sets it to itself.
    same = {f"{each.name} = {each.name}" for each in examples}
    body = [line for line in _changed(lines, changes)[start:] if line not in same]
    return "\n".join(lines[:start]).rstrip(), Asking(
        "\n".join(f"    {line}".rstrip() for line in body),
        tuple(each.name for each in examples),
        tuple(each.text for each in examples),
        any(each.form.startswith("chat(") for each in examples),
    )


def _assigned(node: ast.stmt) -> list[str]:
    targets = node.targets if isinstance(node, ast.Assign) else []
    names = [each for target in targets for each in (target.elts if isinstance(target, ast.Tuple) else [target])]
    return [each.id for each in names if isinstance(each, ast.Name)]


def _example(node: ast.stmt, file: str, noun: str) -> Example | None:
    if not isinstance(node, ast.Assign):
        return None
    value = node.value
    opened = [each for each in ast.walk(value) if isinstance(each, ast.Constant) and file and each.value == file]
    if opened:
        return Example(opened[0], noun, "{}", "")
    if (text := _text(value)) is not None:
        return Example(value, _assigned(node)[0], "{}", text)
    if isinstance(value, ast.List):
        if value.elts and all(isinstance(each, ast.Dict) for each in value.elts):
            turns = ast.literal_eval(value)
            # Instructions come before every conversation, as they did in training.
            opening = repr([turn for turn in turns[:-1] if turn["role"] == "system"])
            form = f"chat({opening.replace('{', '{{').replace('}', '}}')}, history, {{}})"
            return Example(value, "text", form, str(turns[-1]["content"]))
        words = [_text(each) for each in value.elts]
        if words and all(word is not None and " " not in word for word in words):
            return Example(value, "text", "{}.split()", " ".join(map(str, words)))
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute):
        text = _text(value.func.value)
        return None if text is None else Example(value.func.value, "text", "{}", text)
    return None


def _text(node: ast.expr) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def _printed(body: Sequence[ast.stmt], code: str) -> Iterator[tuple[ast.expr, str]]:
    """What is printed, as what is returned or, inside of loops, written to `said`."""
    for statement in body:
        for node in ast.walk(statement):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"):
                continue
            parts = [ast.get_source_segment(code, each) or "" for each in (*node.args, *node.keywords)]
            alone = isinstance(statement, ast.Expr) and len(parts) == 1
            yield node, f"return {parts[0]}" if alone else f"print({', '.join([*parts, 'file=said'])})"


def _changed(lines: Sequence[str], changes: Sequence[tuple[ast.expr, str]]) -> list[str]:
    """The lines with expressions replaced, which are counted in bytes of UTF-8; their number stays as it is."""
    found = [line.encode() for line in lines]
    for node, text in sorted(changes, key=lambda pair: (pair[0].lineno, pair[0].col_offset), reverse=True):
        first, last = node.lineno - 1, (node.end_lineno or node.lineno) - 1
        end = found[last][node.end_col_offset :]
        found[first] = found[first][: node.col_offset] + text.encode() + end
        del found[first + 1 : last + 1]
    return [line.decode() for line in found]


# --- what stands beside it -------------------------------------------------------------------------------------------


def requirements(app: str, cell: Cell) -> str:
    """The packages that app.py imports, in the versions that trained the adapter where these are recorded."""
    packages = cell.read(TrainRecord).versions.packages
    known = packages_distributions()
    modules = {
        name.partition(".")[0]
        for node in ast.walk(ast.parse(app))
        for name in (
            [each.name for each in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    # `device_map` is accelerate's, and quantised weights are bitsandbytes'.
    wanted = {"accelerate"} | ({"bitsandbytes"} if registry.quant(cell.lock.quant).quantised else set())
    wanted |= {known[name][0].lower() for name in modules if name in known and name != "__future__"}
    return "".join(f"{name}{_pin(name, packages)}\n" for name in sorted(wanted - BROUGHT))


def _pin(name: str, packages: dict[str, str]) -> str:
    found = packages.get(name) or installed(name)
    # A build for one kind of device has no place in a list for another machine.
    return f"=={found.partition('+')[0]}" if found else ""


def readme(cell: Cell, card: CardRecord, base: str) -> str:
    """README.md with the Space's metadata."""
    import yaml

    title = f"{(base or cell.lock.name).rpartition('/')[2]} for {cell.domain}"
    fields: dict[str, Any] = {
        "title": title[:80],
        "sdk": "gradio",
        "sdk_version": GRADIO,
        "python_version": ".".join(cell.read(TrainRecord).versions.python.split(".")[:2]),
        "app_file": "app.py",
        "pinned": False,
        **{key: card.metadata[key] for key in ("license", "license_name", "license_link") if key in card.metadata},
        **({"models": [base]} if base else {}),
        "tags": ["hfadapt"],
    }
    head = yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)
    return (
        f"---\n{head}---\n\n# {title}\n\nA `{cell.lock.task}` adapter"
        + (f" of `{base}`" if base else "")
        + f", trained with hfadapt. What it was trained and tested on stands in [its card]({ADAPTER}/README.md).\n"
    )
