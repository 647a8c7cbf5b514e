"""What a recipe says of one kind of data: where its rows are, and which column holds what."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, Field, create_model, model_validator

from hfadapt.core import registry
from hfadapt.core.spec import Section
from hfadapt.recipe.names import SOURCE_WORDS, Encoding, HubConfig, HubRevision, HubSplit, MostRows, as_source
from hfadapt.recipe.pretrain import AnyPretrain
from hfadapt.recipe.template import Template

GROUPING = ("group", "group_pattern", "split")
"""Of `columns`, what says which rows stay together, and in which split."""
CLASSES = "classes"
"""Of `columns`, what names several of them."""
PATTERNS = ("group_pattern", "label_pattern")
"""Of `columns`, what says which part of a value counts: no column itself."""
NAMES_SHOWN = 6


class _Columns(Section):
    """Which column of the source holds what; an unset one is recognised by name."""

    text: str | None = None
    label: str | None = None
    prompt: str | None = None
    completion: str | None = None
    messages: str | None = None
    group: str | None = None
    """Column whose equal values, such as a speaker's, stay in one split.

    Example: speaker
    """
    group_pattern: str | None = None
    """Regular expression; of a value of `group` only what its first bracket finds counts.

    Example: _(\\w+)_
    """
    split: str | None = None
    """Column that says of each row whether it is for train, validation or test; a split that it has is not made.

    Example: usage
    """
    label_pattern: str | None = None
    """Regular expression; of a value of `label`, such as the name of a file, only what its first bracket finds is the
    class.

    Example: ^\\w+?_(\\w+?)_
    """
    classes: tuple[str, ...] | None = None
    """Columns of 0 and 1, one for each class that a row has or has not, in the place of `label`.

    Example: [rust, crack, dent]
    """

    @property
    def parts(self) -> dict[str, str]:
        """The columns that are said to hold a part of the row."""
        said = self.model_dump(exclude={*GROUPING, *PATTERNS, CLASSES})
        return {part: column for part, column in said.items() if column is not None}

    def class_in(self, value: Any) -> Any:
        """What of a value of `label` is the class; None where the pattern finds nothing."""
        if self.label_pattern is None or value is None:
            return value
        match = re.search(self.label_pattern, str(value))
        return (match[1] or None) if match else None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.classes is None:
            return self
        if self.label is not None:
            raise ValueError("label and classes both say what is learned: name one of them")
        if len(self.classes) < 2:
            raise ValueError("classes names two columns or more; a single one of 0 and 1 is a label")
        if twice := [name for name in dict.fromkeys(self.classes) if self.classes.count(name) > 1]:
            raise ValueError(f"classes names {', '.join(twice)} twice")
        return self

    @model_validator(mode="after")
    def _one_bracket(self) -> Self:
        for name in PATTERNS:
            pattern, column = getattr(self, name), name.removesuffix("_pattern")
            if pattern is None:
                continue
            if getattr(self, column) is None:
                raise ValueError(f"{name} needs {column}, the column in which it looks")
            try:
                brackets = re.compile(pattern).groups
            except re.error as error:
                raise ValueError(f"{name} is no regular expression: {error}") from None
            if not brackets:
                raise ValueError(f"{name} needs a bracket round what it is to find, such as _(\\w+)_")
        return self


def _about_parts() -> dict[str, str]:
    """A description of the column of each part of all row schemas, also of those that another package adds."""
    names: dict[str, dict[str, None]] = {}
    for schema in registry.schemas():
        for part in (*schema.parts, *schema.optional):
            names.setdefault(part, {}).update(dict.fromkeys(schema.names.get(part, ())))
    return {
        part: f"Column that holds the row's `{part}`; by default one called {', '.join([*known][:NAMES_SHOWN]) or part}"
        f"{' …' if len(known) > NAMES_SHOWN else ''}."
        for part, known in names.items()
    }


if TYPE_CHECKING:
    Columns = _Columns
else:
    Columns = create_model(
        "Columns",
        __base__=_Columns,
        __doc__=_Columns.__doc__,
        **{part: (str | None, Field(None, description=about)) for part, about in _about_parts().items()},
    )


class Source(Section):
    """One place rows come from."""

    source: Annotated[str, Field(description=SOURCE_WORDS)]
    config: HubConfig = None
    split: HubSplit = None
    revision: HubRevision = None
    encoding: Encoding = None
    columns: Columns = Columns()
    """Which column holds what, where its name does not say so; `hfadapt new --columns` writes it.

    Example: {text: body, label: mood}
    """
    weight: Annotated[float, Field(gt=0.0)] = 1.0
    """Share of its training rows that are kept, as a multiple of the largest weight of the domain's sources.

    Example: 0.5
    """
    rows: MostRows = None


AnySource = Annotated[Source, BeforeValidator(as_source, json_schema_input_type=Source | str)]


Label = Annotated[str, AfterValidator(lambda name: " ".join(name.split()))]
"""The name of a class, with one space between its words, as the rows' labels are read."""


class Domain(Section):
    """One kind of data, for which one adapter is made: a source, or settings with `source` or `sources`."""

    source: Annotated[str | None, Field(description=SOURCE_WORDS)] = None
    sources: tuple[AnySource, ...] | None = None
    """Several sources in the place of one."""
    config: HubConfig = None
    split: HubSplit = None
    revision: HubRevision = None
    encoding: Encoding = None
    columns: Columns = Columns()
    """Which column holds what, where its name does not say so; `hfadapt new --columns` writes it.

    Example: {text: body, label: mood}
    """
    rows: MostRows = None
    validation: str | None = None
    """Given validation rows: a source, or a split of the Hub data set or sheet of the workbook.

    Example: validation.csv
    """
    test: str | None = None
    """Given test rows: a source, or a split of the Hub data set or sheet of the workbook.

    Example: test.csv
    """
    template: Template | None = None
    """How its rows become prompt and completion, or a chat, in the place of the recipe's template."""
    labels: tuple[Label, ...] | None = None
    """Names of the classes, in the order of their numbers.

    Example: [bad, good]
    """
    no_label: tuple[Label, ...] = ()
    """What stands in the column of the label, or of a class, where it is not known: such rows are left out; `''` is an
    empty cell.

    Example: [n/a, '???']
    """
    language: str | None = None
    """Language of the texts as a code, for the card.

    Example: en
    """
    license: str | None = None
    """Licence of the data, for the card; publishing needs it.

    Example: cc-by-4.0
    """
    pretrain: AnyPretrain | None = None
    """Its own adaptation to texts before the task, in the place of the recipe's; `false` leaves it out.

    Cost: the time of a second training.
    """

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.source is None) == (self.sources is None):
            raise ValueError("a domain needs either source or sources")
        if self.sources is not None and not self.sources:
            raise ValueError("sources must not be empty")
        return self

    def all_sources(self) -> tuple[Source, ...]:
        """The sources as a tuple, in recipe order."""
        if self.sources is not None:
            return self.sources
        assert self.source is not None
        return (
            Source(
                source=self.source,
                config=self.config,
                split=self.split,
                revision=self.revision,
                encoding=self.encoding,
                columns=self.columns,
                rows=self.rows,
            ),
        )


NOTES = ("language", "license")
"""Fields of a domain that the card shows, and on which no row and no step depends."""

AnyDomain = Annotated[Domain, BeforeValidator(as_source, json_schema_input_type=Domain | str)]
