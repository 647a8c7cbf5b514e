"""The number of different words of a cell's training rows, before it is trained."""

from typing import ClassVar

from hfadapt.core import registry
from hfadapt.core.show import Heading, Table
from hfadapt.core.spec import Record
from hfadapt.stages import Section, Stage


class WordsRecord(Record):
    """words.json"""

    FILE: ClassVar[str] = "words.json"
    domain: str
    target: str
    different: int


class Words(Stage):
    """Counts them."""

    name = "words"
    title = "counting words"
    needs = ("prepare",)
    before = ("train",)
    records = (WordsRecord,)
    card = (Section("Vocabulary", lambda facts: f"{facts('words.json#/different', 'integer')} different words."),)

    def run(self, cells, context):
        for cell in cells:
            shown = registry.schema(cell.data.form).shown
            words = {word for row in cell.read_split("train") for word in shown(row).split()}
            cell.write(WordsRecord(domain=cell.domain, target=cell.target, different=len(words)))

    def report(self, cells):
        rows = [[cell.domain, str(cell.read(WordsRecord).different)] for cell in cells]
        return [Heading("Vocabulary"), Table(["domain", "different words"], rows)] if rows else []


KIND = Words()
