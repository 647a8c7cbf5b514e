"""The licence of an adapter, from the licence of its base and those of its data, by the table in licenses.toml.

The result is careful, not legal advice: every duty of the base and of each source is kept, and where no single
licence keeps them all, or one is not known, the answer is `other` with a sentence that says why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hfadapt.core import resources

UNKNOWN = "unknown"
OTHER = "other"


@dataclass(frozen=True)
class License:
    """The licence of an adapter.

    Args:
        id: Licence id of the Hub.
        name: `license_name` when the id is `other`.
        link: Where the text stands, when known.
        why: Sentences from base and data to this result.
        clear: False when the adapter should not be passed on before a person has looked at it.
    """

    id: str
    name: str | None
    link: str | None
    why: tuple[str, ...]
    clear: bool


def _table() -> dict[str, Any]:
    return resources.toml(Path(__file__).with_name("licenses.toml"))


@cache
def hub_ids() -> frozenset[str]:
    """Every licence id that the Hub knows."""
    return frozenset(name for family in _table()["families"].values() for name in family["ids"])


def hub_id(said: str | None) -> str | None:
    """The Hub's id for what a source says about its licence; None when that names no terms."""
    if said is None:
        return None
    name = " ".join(said.strip().lower().split())
    name = _table()["aliases"].get(name, name)
    return name if duties(name) is not None else None


def duties(name: str) -> frozenset[str] | None:
    """What a licence asks of those who pass the work on, or None when the table cannot say."""
    for family in _table()["families"].values():
        if name in family["ids"]:
            return frozenset(family["duties"]) if "duties" in family else None
    return None


def link(name: str) -> str | None:
    """Where the text of a licence stands."""
    found: str | None = _table()["links"].get(name)
    return found


def adapter_license(base: str | None, sources: Mapping[str, str | None]) -> License:
    """The licence that keeps all duties of the base and of every source.

    Args:
        base: What the base says.
        sources: What each source of data says, by its name.
    """
    said = {"the base": base, **sources}
    known = {who: hub_id(license) for who, license in said.items()}
    if unknown := [who for who, license in known.items() if license is None]:
        why = [
            f"The licence of {who} is "
            + (f"not one that this table knows (`{said[who]}`)." if said[who] else "not stated.")
            for who in unknown
        ]
        fix = " Clarify it before you pass this adapter on, and name it as `license` of the domain in the recipe."
        return License(OTHER, UNKNOWN, None, (*why[:-1], why[-1] + fix), False)
    ids = list(dict.fromkeys(license for license in known.values() if license is not None))
    asked = {license: duties(license) or frozenset() for license in ids}
    return _combined(ids, asked, {who: str(license) for who, license in known.items()})


def _combined(ids: Sequence[str], asked: Mapping[str, frozenset[str]], known: Mapping[str, str]) -> License:
    wanted = frozenset().union(*asked.values())
    base = ids[0]
    alike = [license for license in ids if "share-alike" in asked[license]]
    chosen = next((license for license in ids if asked[license] >= wanted), None)
    if len(alike) > 1 or chosen is None:
        return License(
            OTHER,
            " and ".join(ids),
            None,
            (
                f"No single licence keeps all duties of {', '.join(f'`{name}`' for name in ids)} "
                f"({', '.join(sorted(wanted))}): all of them apply.",
                "Have this looked at before you pass the adapter on.",
            ),
            False,
        )
    if "no-derivatives" in wanted:
        why = f"`{chosen}` forbids passing on what is derived from the work; whether an adapter is, is disputed."
        return License(chosen, None, link(chosen), (why, "Have this looked at before you pass the adapter on."), False)
    if chosen == base:
        return License(chosen, None, link(chosen), ("Inherited from the base; the data ask for no more.",), True)
    from_data = ", ".join(who for who, license in known.items() if license == chosen)
    added = ", ".join(sorted(wanted - asked[base]))
    why = f"The base is `{base}`; `{chosen}` of {from_data} is stricter ({added}) and therefore holds for the adapter."
    return License(chosen, None, link(chosen), (why,), True)
