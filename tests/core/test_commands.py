"""What names and messages of others hold is shown to a terminal and not obeyed by it."""

import io

import pytest

from hfadapt.cli.answers import shown_answer
from hfadapt.cli.ending import failed
from hfadapt.cli.terminal import Console, Terminal
from hfadapt.core.commands import visible
from hfadapt.core.errors import RequestError
from hfadapt.core.progress import Said
from hfadapt.core.show import Heading, Table, Text, as_text
from hfadapt.data.audit.report import DataReport, Marked
from hfadapt.tasks import Answer

HOSTILE = "a\x1b[2J\x1b]0;title\x07\x9b1m\r"
SHOWN = r"a\x1b[2J\x1b]0;title\x07\x9b1m\r"


def told() -> str:
    screen = Terminal()
    screen.console = Console(file=io.StringIO(), highlight=False)
    screen.tell(Said(HOSTILE))
    return screen.console.file.getvalue()


def marked() -> str:
    class Report(DataReport):
        def blocks(self):
            return [Marked(HOSTILE, pieces=((HOSTILE, False),))]

    return Report([]).coloured()


WAYS = {
    "error": lambda: str(RequestError(HOSTILE, place=HOSTILE, got=HOSTILE)),
    "heading": lambda: as_text([Heading(HOSTILE)]),
    "text": lambda: as_text([Text(HOSTILE)]),
    "code": lambda: as_text([Text(HOSTILE, code=True)]),
    "table": lambda: as_text([Table([HOSTILE, "b"], [[HOSTILE, HOSTILE]])]),
    "progress": told,
    "row": marked,
    "answer": lambda: shown_answer(Answer(text=HOSTILE, label=HOSTILE)),
}


def test_letters_tabs_and_lines_stay():
    assert visible("é\t東京\n½ \u2028") == "é\t東京\n½ \u2028"


@pytest.mark.parametrize("way", WAYS)
def test_no_control_character_reaches_the_terminal(way):
    shown = WAYS[way]()
    assert SHOWN in shown
    assert not set(shown) & set("\x1b\x07\x9b\r")


def test_an_error_of_a_library_does_not_either(capsys):
    assert failed(ValueError(HOSTILE)) == 1
    assert "\x1b" not in capsys.readouterr().err
