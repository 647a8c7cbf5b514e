"""The recipe as JSON Schema (draft 2020-12), for editors: made from the classes that read it.

It is never stricter than the reader. What takes several fields at once, or the files that are there, only the reader
knows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from hfadapt.hardware import catalogue
from hfadapt.recipe.described import described, value_of
from hfadapt.recipe.names import OneOf, WithUnit
from hfadapt.recipe.schema import Recipe

Json = dict[str, Any]
INTEGER = r"^\s*[-+]?[0-9][0-9_]*(\.0*)?\s*$"
NUMBER = r"^(?=.*[0-9])\s*[-+]?[0-9_]*\.?[0-9_]*([eE][-+]?[0-9_]+)?\s*$"
BOOLEANS = ("0", "off", "f", "false", "n", "no", "1", "on", "t", "true", "y", "yes")
"""In quotes, as the reader takes them; of a number in quotes the limits are left to the reader."""


def recipe_schema() -> Json:
    """The schema of a recipe file, with the names that are known here: also those of other packages."""
    found = Recipe.model_json_schema(schema_generator=_Generator)
    _as_read(found)
    for each in _objects(found):
        for name, info in each["properties"].items():
            # pydantic leaves out what the section itself says in the same words.
            section = found["$defs"].get(info.get("$ref", "").rpartition("/")[2], {})
            about = described(info.pop("description", section.get("description")))
            info.setdefault("title", name)
            each["properties"][name] = {"title": info.pop("title"), "description": about.words, **info}
            if about.example:
                each["properties"][name]["examples"] = [value_of(about.example)]
    return {"$schema": GenerateJsonSchema.schema_dialect, **found, "title": "Recipe of hfadapt"}


def schema_text() -> str:
    """The same as the text of a file."""
    return json.dumps(recipe_schema(), indent=1, ensure_ascii=False) + "\n"


def _as_read(schema: Json) -> None:
    """What the reader settles before it looks at the fields."""
    fields = schema["properties"]
    # A recipe without a name is called as its file.
    schema["required"].remove("name")
    # A budget may stand beside the name of its target.
    budget = fields["budgets"]["additionalProperties"]
    serving = filter(catalogue.only_serves, fields["targets"]["items"]["enum"])
    beside = {
        "type": "object",
        "properties": {name: {"description": f"The budget of {name}.", **budget} for name in serving},
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 1,
    }
    fields["targets"]["items"] = {"anyOf": [fields["targets"]["items"], beside]}
    # A lock is a recipe too, and says which base a stage has made.
    about = "In a lock: the base that a stage has made, which makes it again."
    fields["base"] = {"type": "object", "description": about, "required": ["made_by"]}


def _objects(schema: Any) -> Iterator[Json]:
    """Every object with named properties, at any depth."""
    if isinstance(schema, dict):
        if isinstance(schema.get("properties"), dict):
            yield schema
        for each in schema.values():
            yield from _objects(each)
    elif isinstance(schema, list):
        for each in schema:
            yield from _objects(each)


def _any_case(word: str) -> str:
    return "".join(f"[{letter.upper()}{letter.lower()}]" if letter.isalpha() else letter for letter in word)


class _Generator(GenerateJsonSchema):
    """Also what pydantic takes of a type and does not say: names from sets, units, numbers and switches in quotes."""

    def function_after_schema(self, schema: Any) -> Json:
        check = schema["function"]["function"]
        if isinstance(check, OneOf):
            return {"type": "string", "enum": list(check.options())}
        return super().function_after_schema(schema)

    def function_before_schema(self, schema: Any) -> Json:
        read = schema["function"]["function"]
        if not isinstance(read, WithUnit):
            return super().function_before_schema(schema)
        inner = self.generate_inner(schema["schema"])
        units = "|".join(_any_case(name) for name, _ in read.units)
        with_unit = {"type": "string", "pattern": rf"^\s*[0-9]*\.?[0-9]+\s*({units})\s*$"}
        # A number in quotes has no unit.
        return {"anyOf": [*(each for each in inner.get("anyOf", [inner]) if each.get("type") != "string"), with_unit]}

    def dict_schema(self, schema: Any) -> Json:
        found = super().dict_schema(schema)
        return {**found, "additionalProperties": False} if "patternProperties" in found else found

    def int_schema(self, schema: Any) -> Json:
        return {"anyOf": [super().int_schema(schema), {"type": "string", "pattern": INTEGER}]}

    def float_schema(self, schema: Any) -> Json:
        return {"anyOf": [super().float_schema(schema), {"type": "string", "pattern": NUMBER}]}

    def bool_schema(self, schema: Any) -> Json:
        quoted = f"^({'|'.join(map(_any_case, BOOLEANS))})$"
        return {"anyOf": [super().bool_schema(schema), {"enum": [0, 1]}, {"type": "string", "pattern": quoted}]}

    def default_schema(self, schema: Any) -> Json:
        # Of a section the fields have defaults of their own.
        if isinstance(schema.get("default"), BaseModel):
            return self.generate_inner(schema["schema"])
        return super().default_schema(schema)
