"""The code blocks of README.md and docs/: what stands in them, and what of it cannot be run."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>[^>]*) -->\n)?^(?P<fence>```+)(?P<language>[\w-]*)\n(?P<text>.*?)^(?P=fence)$",
    re.MULTILINE | re.DOTALL,
)
OUTPUT = ("", "text")
"""Languages of blocks that show what is printed."""
NOT_RUN = {
    r"make ": "installs, or runs all tests",
    r"python tests/renew_golden_cards": "writes golden files",
    r"hfadapt serve ": "does not end; tests/serve asks a server",
    r"hfadapt ui\b": "does not end; tests/ui asks it",
    r"curl ": "asks a server; tests/serve does",
    r"torchrun |accelerate ": "several processes; tests/train starts them",
    r"hfadapt publish .*--repo .*--yes": "sends to the Hub; tests/publish has one of its own",
    r"hfadapt export runs/sentiment-llm": "a recipe of its own; tests/formats and tests/export do",
    r"hfadapt bench ": "measures for long; tests/export does",
}
"""Lines of commands that parse and are not run, each with the reason."""


@dataclass(frozen=True)
class Block:
    """One block of code: its page, line, language and text, and why it cannot be run."""

    page: Path
    line: int
    language: str
    text: str
    reason: str | None

    @property
    def name(self) -> str:
        """`docs/data.md:12`."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def commands(self) -> list[str]:
        """The lines of a console without what is said of them, continued lines as one."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line.split("  #")[0].split(" # ")[0].strip() for line in lines if line.strip() and line[:1] != "#"]


def blocks(*languages: str) -> list[Block]:
    """All blocks in these languages that are not marked; of every language without any."""
    found = [
        Block(page, text[: each.start("fence")].count("\n") + 1, each["language"], each["text"], each["reason"])
        for page in PAGES
        for text in [page.read_text(encoding="utf-8")]
        for each in BLOCK.finditer(text)
    ]
    return [each for each in found if not languages or (each.language in languages and each.reason is None)]


def words(command: str) -> list[str]:
    """What a shell makes of a line."""
    return shlex.split(command)


def not_run(command: str) -> str | None:
    """Why a command is not run; None for one that is."""
    return next((why for pattern, why in NOT_RUN.items() if re.match(pattern, " ".join(command.split()))), None)
