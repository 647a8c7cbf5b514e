"""Every field of a recipe by its place, as messages, explanations and completions name it: `domains.NAME.source`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from hfadapt.recipe.schema import Recipe
from hfadapt.recipe.words import base

NAME = "NAME"
"""Stands for any name in a mapping, such as a domain's."""


@dataclass(frozen=True)
class Field:
    """One field: where it stands, and the class of the section that it opens, if it is one."""

    place: str
    info: FieldInfo
    section: type[BaseModel] | None


@cache
def fields() -> dict[str, Field]:
    """All fields by place, in recipe order, each section before what is in it."""
    return {field.place: field for field in _below(Recipe, "")}


def _below(section: type[BaseModel], prefix: str) -> Iterator[Field]:
    for name, info in section.model_fields.items():
        inner, named = _section(info.annotation)
        yield Field(prefix + name, info, None if named else inner)
        if inner is not None:
            yield from _below(inner, f"{prefix}{name}.{NAME}." if named else f"{prefix}{name}.")


def _section(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """The class of a section, of its list or of its mapping, and whether names stand between."""
    bare = base(annotation)
    if get_origin(bare) is tuple:
        return _section(get_args(bare)[0])[0], False
    if get_origin(bare) is dict:
        return _section(get_args(bare)[1])[0], True
    return (bare if isinstance(bare, type) and issubclass(bare, BaseModel) else None), False
