"""A text with a grade."""

from hfadapt.schemas import TEXT_NAMES
from hfadapt.schemas.labelled import Labelled


class Graded(Labelled):
    """Rows of `text` and `grade`, which are written as text and label."""

    name = "graded"
    rank = 25
    parts = ("text", "grade")
    names = {"text": TEXT_NAMES, "grade": ("grade", "stars")}

    @property
    def columns(self):
        return ("text", "label")

    def fields(self, labelled):
        return super().fields(True)

    def make(self, values, name_of):
        return super().make({"text": values["text"], "label": values["grade"]}, name_of)


KIND = Graded()
