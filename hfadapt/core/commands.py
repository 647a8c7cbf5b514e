"""Characters that command a terminal: names, values and messages of others may hold them, and must not be obeyed."""

from __future__ import annotations

import re

_COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""All control characters but the tab and the line feed."""


def visible(text: str) -> str:
    r"""The text with each such character as its code: `\x1b[2J` clears no screen."""
    return text if text.isprintable() else _COMMANDS.sub(lambda found: ascii(found[0])[1:-1], text)
