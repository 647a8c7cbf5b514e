"""Which form of a format may be written, by what drift.json says of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hfadapt.core.errors import Problem, RequestError, RunError
from hfadapt.records.evidence import DriftRecord, Variant

if TYPE_CHECKING:
    from hfadapt.formats import Form
    from hfadapt.run_folder import Cell


def meant(forms: Sequence[Form], variant: str | None) -> list[Form]:
    """The forms that may be meant: the one that is named, or all. Raises RequestError for an unknown one."""
    if variant is not None and variant not in [form.name for form in forms]:
        raise RequestError(
            "the format has no such variant",
            place="--variant",
            got=repr(variant),
            allowed=", ".join(form.name for form in forms) or "none: it is what was trained",
        )
    return [form for form in forms if variant in (None, form.name)]


def choose(
    forms: Sequence[Form], drift: DriftRecord | None, variant: str | None, force: bool, cell: Cell
) -> tuple[Form | None, str | None]:
    """The form to write, and what was forced, if anything.

    Raises:
        RequestError: there is no such variant.
        RunError: every form that may be meant is refused or was not measured.
    """
    wanted = meant(forms, variant)
    if not wanted:
        return None, None
    reasons = {form.name: _reason(form.name, drift) for form in wanted}
    allowed = next((form for form in wanted if reasons[form.name] is None), None)
    if allowed:
        return allowed, None
    if force:
        return wanted[0], f"{wanted[0].name} {reasons[wanted[0].name]}"
    raise RunError(
        "no form of this export may be shipped",
        problems=[
            Problem(
                f"{name} {why}",
                str(cell.folder / "drift.json"),
                fix="measure it: hfadapt evaluate RECIPE evaluate.drift=true; or --force"
                if drift is None or name not in [each.name for each in drift.variants]
                else "ship the adapter itself (--format adapter), set evaluate.drift_limits in the recipe, or --force",
            )
            for name, why in reasons.items()
        ],
    )


def _reason(name: str, drift: DriftRecord | None) -> str | None:
    """Why a form may not be shipped, or None."""
    if drift is None or measured(name, drift) is None:
        skipped = drift.skipped.get(name) if drift else None
        return f"was not measured{f': {skipped}' if skipped else ''}"
    why = drift.refused.get(name)
    return f"is refused: {why}" if why else None


def measured(name: str, drift: DriftRecord | None) -> Variant | None:
    """What drift.json says of a form, if it was measured."""
    return next((each for each in drift.variants if each.name == name), None) if drift else None
