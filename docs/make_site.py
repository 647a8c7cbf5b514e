"""Writes the pages of the site into a folder: those of `docs/`, with what is generated put in its place.

    python docs/make_site.py build/docs

Generated parts are made anew each time, from the classes, commands, recipes and measurements that they tell of, and
are not committed. In a page `<!-- table: NAME -->` stands for the table of benchmarks/NAME.json, `<!-- list: KIND -->`
for `hfadapt list KIND`, `<!-- recipes -->` for all recipes, and `<!-- file: PATH -->` for a file of the tree.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import inspect
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
PART = re.compile(r"<!-- (table|list|recipes|file)(?:: (\S+))? -->")
MOST_CHOICES = 160


def build(out: Path) -> list[Path]:
    """Writes every page.

    Args:
        out: A folder that is made anew.

    Returns:
        The pages.
    """
    shutil.rmtree(out, ignore_errors=True)
    (out / "reference").mkdir(parents=True)
    for path in sorted(DOCS.iterdir()):
        if path.suffix in (".svg", ".css"):
            shutil.copy(path, out)
        elif path.suffix == ".md":
            (out / path.name).write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
    for name, text in (("recipe", fields_page()), ("commands", commands_page()), ("python", python_page())):
        (out / "reference" / f"{name}.md").write_text(text, encoding="utf-8")
    return sorted(out.rglob("*.md"))


def filled(text: str) -> str:
    """A page with its generated parts. Raises KeyError for a part that there is not."""
    makers: dict[str, Callable[[str], str]] = {
        "table": table,
        "list": listed,
        "recipes": lambda _: "\n".join(recipes()),
        "file": lambda path: f"```python\n{(ROOT / path).read_text(encoding='utf-8').strip()}\n```",
    }
    return PART.sub(lambda found: makers[found[1]](found[2] or ""), text)


# --- measurements ----------------------------------------------------------------------------------------------------


def table(name: str) -> str:
    """What the program that measured it makes of its kept results."""
    if name == "memory_grid":
        return memory()
    sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "benchmarks/speed")]
    try:
        path = ROOT / f"benchmarks/{name}.py"
        spec = importlib.util.spec_from_file_location(f"benchmark_{name}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return str(module.table(json.loads(module.RESULTS.read_text(encoding="utf-8"))))
    finally:
        del sys.path[:2]


def memory() -> str:
    """Measured peaks of one training by how the base is stored, of the largest model that was trained with each."""
    record = json.loads((ROOT / "benchmarks/memory_grid.json").read_text(encoding="utf-8"))
    found: dict[tuple[str, int, int], dict[str, dict[str, int]]] = {}
    for each in record["points"]:
        point = each["point"]
        if not point["checkpointing"]:
            found.setdefault((point["model"], point["rows"], point["tokens"]), {})[point["quant"]] = each["peaks"]
    most = max(len(by_quant) for by_quant in found.values())
    complete = {key: by_quant for key, by_quant in found.items() if len(by_quant) == most}
    (model, rows, tokens), peaks = max(complete.items(), key=lambda item: item[1]["none"]["train"])
    lines = ["| base stored as | loading | training |", "|---|---:|---:|"]
    lines += [f"| `{quant}` | {each['load'] >> 20} MiB | {each['train'] >> 20} MiB |" for quant, each in peaks.items()]
    processor = record["versions"]["processor"]
    return "\n".join([*lines, "", f"{model}, {rows} rows of {tokens} tokens at once, LoRA, measured on {processor}."])


# --- what is there ---------------------------------------------------------------------------------------------------


def listed(kind: str) -> str:
    """What `hfadapt list KIND` shows."""
    from hfadapt.cli.listing import listing

    return re.sub(r"^#+ .*\n+", "", str(listing(kind)._repr_markdown_()))


def recipes() -> Iterator[str]:
    """Each recipe: what it says of itself, what it needs, and its text."""
    import yaml

    from hfadapt.core import registry

    for path in sorted((ROOT / "recipes").glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        said = yaml.safe_load(text)
        comment = re.match(r"(# .*\n)+", text)
        assert comment is not None
        words = [line[2:].strip() for line in comment[0].splitlines() if not line.startswith("#   ")]
        own = [str(each) for each in re.findall(r"(?:source: |: )\"?(sample:[\w/.-]+)", text)]
        needs = ", ".join(f"`{each}`" for each in dict.fromkeys(own))
        yield f"## {path.stem}\n\n{' '.join(words)}\n"
        yield f"- learns: {registry.task(said['task']).title} (`{said['task']}`)"
        yield f"- needs: {needs}; samples are fetched from the package index once"
        yield f"- comes out: an adapter for each of {', '.join(f'`{name}`' for name in said['domains'])}, with a card"
        yield f"- run it: `hfadapt run recipes/{path.name}`\n\n```yaml\n{text[comment.end() :].strip()}\n```\n"


# --- reference -------------------------------------------------------------------------------------------------------


def fields_page() -> str:
    """Every field of a recipe, from the classes that read them: what `hfadapt explain FIELD` says."""
    from hfadapt.recipe.explain import _default, about, example
    from hfadapt.recipe.places import fields
    from hfadapt.recipe.words import annotation_of, describe

    lines = ["# Fields of a recipe", "", "`hfadapt explain FIELD` says the same in a terminal.", ""]
    section = None
    for place, field in sorted(fields().items(), key=lambda item: (item[0].count(".") > 0, item[0].split("."))):
        head = place.partition(".")[0] if "." in place else ""
        if head != section:
            section = head
            lines += [f"## {head or 'Top level'}", ""]
        said = about(field)
        takes = describe(annotation_of(field.info))
        lines += [f"### `{place}`", "", escaped(said.what), ""]
        facts = {
            "takes": takes if len(takes) <= MOST_CHOICES else f"{takes[:MOST_CHOICES]} …",
            "default": _default(field),
            "auto": said.auto,
            "costs": said.cost,
            "example": f"`{written}`" if (written := example(field)) else "",
        }
        lines += [f"- {name}: {text if name == 'example' else escaped(text)}" for name, text in facts.items() if text]
        lines.append("")
    return "\n".join(lines)


def commands_page() -> str:
    """Every command with its help, arguments and options, from the command line itself."""
    import typer

    from hfadapt.cli.app import app

    lines = ["# Commands", "", "`hfadapt COMMAND --help` says the same in a terminal.", ""]

    def add(command: Any, name: str) -> None:
        if inner := getattr(command, "commands", None):
            for key in inner:
                add(inner[key], f"{name} {key}")
            return
        context = typer.Context(command, info_name=name)
        usage = " ".join(command.collect_usage_pieces(context))
        lines.extend([f"## {name}", "", "<!-- not run: a usage -->", f"```text\n{name} {usage}\n```", ""])
        lines.extend([escaped(inspect.cleandoc(command.help or "")), ""])
        rows = [record for each in command.get_params(context) if (record := each.get_help_record(context))]
        lines.extend(f"- `{first}`: {escaped(' '.join(second.split()))}" for first, second in rows)
        lines.append("")

    add(typer.main.get_command(app), "hfadapt")
    return "\n".join(lines)


def python_page() -> str:
    """What `from hfadapt import …` has, from signatures and docstrings; read as text, nothing is imported."""
    import hfadapt

    lines = ["# Python", "", "All of it comes from `hfadapt` itself: `from hfadapt import run`.", ""]
    homes = {name: (home, name) for name, home in hfadapt._HOME.items()}
    homes["run"] = ("hfadapt.pipeline.run", "run_recipe")
    for name in sorted(homes, key=str.lower):
        node = defined(*homes[name])
        if node is None:
            continue
        if isinstance(node, ast.ClassDef):
            lines += [f"## class {name}", "", *documented(node)]
            for each in node.body:
                if isinstance(each, ast.FunctionDef) and not each.name.startswith("_"):
                    lines += [f"### {name}.{each.name}", "", *signature(each, each.name), *documented(each)]
        else:
            lines += [f"## {name}", "", *signature(node, name), *documented(node)]
    return "\n".join(lines)


def defined(module: str, name: str) -> ast.ClassDef | ast.FunctionDef | None:
    """Where a module defines a name, or the module from which it has it."""
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    for node in ast.walk(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return node
        if isinstance(node, ast.ImportFrom) and node.module and any(alias.name == name for alias in node.names):
            return defined(node.module, name)
    return None


def signature(node: ast.FunctionDef, name: str) -> list[str]:
    """`name(arguments) -> result`, one argument a line where they are many."""
    arguments = ast.unparse(node.args)
    text = f"{name}({arguments})" + (f" -> {ast.unparse(node.returns)}" if node.returns else "")
    if len(text) > 90:
        text = text.replace(", ", ",\n    ").replace(f"{name}(", f"{name}(\n    ", 1)
    return ["<!-- not run: a signature -->", f"```text\n{text}\n```", ""]


def documented(node: ast.ClassDef | ast.FunctionDef) -> list[str]:
    """A docstring as Markdown: arguments as a list, examples as code."""
    lines: list[str] = []
    heading = re.compile(r"(Args|Returns|Raises|Attributes|Yields|Example|Examples):$")
    inside = ""
    for line in (ast.get_docstring(node) or "").splitlines():
        if found := heading.match(line.strip()):
            inside = found[1]
            lines += ["", f"**{inside}**", ""]
        elif line.startswith("    ") and not line.startswith("     ") and inside in ("Args", "Attributes", "Raises"):
            name, _, text = line.strip().partition(": ")
            lines.append(f"- `{name}`: {escaped(text)}" if text else f"- {escaped(name)}")
        else:
            lines.append(line if line.startswith("    ") and not inside else escaped(line.strip()))
    return [*lines, ""]


def escaped(text: str) -> str:
    """A text in which signs of Markdown and HTML stand for themselves, outside of code."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([<\[*_])", r"\\\1", part) for part in parts)


def main() -> None:
    """Builds into the folder that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", default=ROOT / "build/docs")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    print(f"{len(build(parser.parse_args().out))} pages written")


if __name__ == "__main__":
    main()
