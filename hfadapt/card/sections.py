"""What a card says about evidence: rows and sentences from evaluation.json, security.json, drift.json, transfer.json.

Every function gets the facts and gives text with marked values, or the numbers of what a template is to show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hfadapt.card.facts import Facts, Records, escape, pointer
from hfadapt.core import registry
from hfadapt.modalities import Modality
from hfadapt.records.evidence import verdict

EVALUATION, SECURITY, DRIFT, TRANSFER = "evaluation.json", "security.json", "drift.json", "transfer.json"
MOST_SLICES = 24
MOST_FAILURES = 5
COMMANDS = {
    EVALUATION: "`hfadapt evaluate RECIPE`",
    SECURITY: "`hfadapt evaluate RECIPE evaluate.security=true`",
    DRIFT: "`hfadapt evaluate RECIPE evaluate.drift=true`",
    TRANSFER: "`hfadapt run RECIPE evaluate.transfer=true` of two domains or more",
    "general_text": "`hfadapt evaluate RECIPE evaluate.general_text=true`",
    "run": "`hfadapt run RECIPE --fresh`",
}
"""What measures what was not measured, by its record or part."""

TESTS = {
    "mcnemar-exact": "exact McNemar test of right and wrong answers",
    "wilcoxon-signed-rank": "Wilcoxon signed-rank test of the rows' losses",
}


def not_measured(what: str, record: str) -> str:
    """The sentence that stands where a record is missing."""
    return f"{what}: not measured; {COMMANDS[record]} measures it."


def kind_of(records: Records) -> Modality:
    """What the rows are made of."""
    return registry.modality_of(records.file("lock.yaml")["task"])


def part(records: Records, name: str, key: str) -> Any:
    """A part of a record, or None when the record or the part is missing or empty."""
    return records.file(name).get(key) or None if records.has(name) else None


def verdict_of(effect: Mapping[str, Any], higher_is_better: bool = True) -> str:
    """`verdict` of what has `low` and `high`."""
    return verdict(effect.get("low"), effect.get("high"), higher_is_better)


def difference(facts: Facts, at: str) -> str:
    """`+0.148 [+0.103, +0.193]` of what has `delta`, `low` and `high`."""
    effect = facts.records.value(at)
    if effect.get("delta") is None:
        return "no baseline"
    text = facts(f"{at}/delta", "signed")
    if effect.get("low") is None or effect.get("high") is None:
        return text
    return f"{text} [{facts(f'{at}/low', 'signed')}, {facts(f'{at}/high', 'signed')}]"


def estimate(facts: Facts, at: str, form: str = "decimal") -> str:
    """`0.631 [0.591, 0.671]` of an Estimate."""
    measured = facts.records.value(at)
    if measured.get("low") is None or measured.get("high") is None:
        return facts(f"{at}/value", form)
    return f"{facts(f'{at}/value', form)} [{facts(f'{at}/low', form)}, {facts(f'{at}/high', form)}]"


def named(facts: Facts, at: str) -> str:
    """A name from a record as code."""
    return facts(at, "code")


# --- evaluation ------------------------------------------------------------------------------------------------------


def higher_is_better(records: Records, metric: str) -> bool:
    """The direction of a metric; losses and perplexities fall."""
    every = [*records.value(f"{EVALUATION}#/metrics"), records.file(EVALUATION).get("general_text") or {}]
    known = {one.get("name"): one.get("higher_is_better", True) for one in every}
    return bool(known.get(metric, metric not in ("loss", "perplexity", "calibration_error")))


def worst_slices(records: Records) -> list[int]:
    """Numbers of the slices, the worst first by what the adapter reaches."""
    slices = part(records, EVALUATION, "slices") or []

    def key(number: int) -> tuple[float, int]:
        one = slices[number]
        return (one["adapter"] if higher_is_better(records, one["metric"]) else -one["adapter"], number)

    return sorted(range(len(slices)), key=key)[:MOST_SLICES]


def slice_name(facts: Facts, number: int) -> str:
    """The name of a slice; a source is named without its place on a disk, a group as what people wrote is quoted."""
    at = f"{EVALUATION}#/slices/{number}"
    return facts(f"{at}/name", {"source": "public", "group": "quote"}.get(facts.records.value(f"{at}/by"), "code"))


def slice_sentences(facts: Facts) -> list[str]:
    """The worst slice, and every one on which the adapter is worse than the baseline."""
    records, sentences = facts.records, []
    for place, number in enumerate(worst_slices(records)):
        at = f"{EVALUATION}#/slices/{number}"
        one = records.value(at)
        worse = verdict_of(one, higher_is_better(records, one["metric"])) == "worse"
        if place and not worse:
            continue
        name = f"{one['by']} {slice_name(facts, number)}"
        value = f"{named(facts, f'{at}/metric')} {facts(f'{at}/adapter', 'decimal')}"
        rows = f"{facts(f'{at}/rows', 'integer')} rows"
        if worse:
            sentences.append(f"**Worse than the baseline** on {name}: {value}, {difference(facts, at)}, {rows}.")
        else:
            sentences.append(f"Weakest slice: {name}, {value} on {rows}.")
    return sentences


def calibration_sentence(facts: Facts, counted: str) -> str:
    """How confidence and accuracy compare in the bin that holds most of what is counted: rows."""
    bins = facts.records.value(f"{EVALUATION}#/calibration/adapter")
    number = max(range(len(bins)), key=lambda n: (bins[n]["rows"], n))
    at = f"{EVALUATION}#/calibration/adapter/{number}"
    gap = bins[number]["confidence"] - bins[number]["accuracy"]
    says = "more sure than it is right" if gap > 0 else "right more often than it is sure"
    return (
        f"Where most {counted} lie, the adapter is {says}: mean confidence {facts(f'{at}/confidence', 'decimal')}, "
        f"share right {facts(f'{at}/accuracy', 'decimal')}, {facts(f'{at}/rows', 'integer')} {counted}."
    )


def failures(records: Records) -> list[int]:
    """Numbers of the failing examples to show."""
    return list(range(len(part(records, EVALUATION, "failures") or [])))[:MOST_FAILURES]


# --- other domains ---------------------------------------------------------------------------------------------------


def transfer_rows(records: Records) -> list[tuple[str, Mapping[str, Any]]]:
    """Where each cell of this adapter's row stands, and the cell, its own domain first."""
    domain = records.value("train.json#/domain")
    row = [
        (f"{TRANSFER}#/targets/{t}/cells/{c}", cell)
        for t, one in enumerate(part(records, TRANSFER, "targets") or [])
        for c, cell in enumerate(one["cells"])
        if cell["adapter"] == domain
    ]
    return sorted(row, key=lambda pair: pair[1]["data"] != domain)


def transfer_sentences(facts: Facts) -> list[str]:
    """On which other domains the adapter is worse or better than their baselines."""
    records = facts.records
    domain = records.value("train.json#/domain")
    others = [(at, cell) for at, cell in transfer_rows(records) if cell["data"] != domain]
    better = bool(records.value(f"{TRANSFER}#/targets/0").get("higher_is_better", True)) if others else True
    said = {}
    for state in ("worse", "better", "open"):
        names = [named(facts, f"{at}/data") for at, cell in others if verdict_of(cell, better) == state]
        said[state] = ", ".join(names)
    sentences = []
    if said["worse"]:
        sentences.append(f"**Worse than the baseline on other domains**: {said['worse']}.")
    if said["better"]:
        sentences.append(f"Better than the baseline on other domains too: {said['better']}.")
    if said["open"]:
        sentences.append(f"No difference from the baseline that is more than chance: {said['open']}.")
    return sentences


def skipped_pairs(records: Records) -> list[str]:
    """Where it is said why a domain was left out."""

    def places(skipped: Any) -> list[tuple[str | int, ...]]:
        # Version 1 of the record has the reasons by name of the pair.
        if isinstance(skipped, dict):
            return [(pair,) for pair in skipped]
        return [(number, "reason") for number in range(len(skipped))]

    return [
        f"{TRANSFER}#" + pointer("targets", number, "skipped", *place)
        for number, one in enumerate(part(records, TRANSFER, "targets") or [])
        for place in places(one.get("skipped") or ())
    ]


def general_sentence(facts: Facts) -> str:
    """What happened to the perplexity on general text."""
    at = f"{EVALUATION}#/general_text"
    says = {
        "worse": "**Some of what the base knew about general text is lost**",
        "better": "General text is predicted better than by the base",
        "open": "No change on general text that is more than chance",
    }[verdict_of(facts.records.value(at), facts.records.value(at).get("higher_is_better", False))]
    return (
        f"{says}: {named(facts, f'{at}/name')} {facts(f'{at}/base', 'decimal')} → {facts(f'{at}/adapter', 'decimal')}, "
        f"{difference(facts, at)}, {facts(f'{at}/rows', 'integer')} passages."
    )


# --- merging, and bases in other precision ----------------------------------------------------------------------------


def drift_verdict(facts: Facts, number: int) -> str:
    """`within the limits`, or why this way of serving is refused."""
    records = facts.records
    name, refused = records.value(f"{DRIFT}#/variants/{number}/name"), records.file(DRIFT).get("refused") or {}
    if name in refused:
        return f"**refused**: {facts(f'{DRIFT}#' + pointer('refused', name))}"
    return "within the limits"


def drift_sentence(facts: Facts) -> str:
    """What may be done with the adapter according to the limits."""
    records = facts.records
    refused = list(records.file(DRIFT).get("refused") or {})
    if not refused:
        return "All of them may be used."
    names = ", ".join(facts.cited(f"`{name.replace('`', '')}`") for name in refused)
    return f"**Do not use**: {names}."


def drift_skipped(records: Records) -> list[tuple[str, str]]:
    """Ways of serving that were not measured, and where it is said why."""
    return [(name, f"{DRIFT}#" + pointer("skipped", name)) for name in part(records, DRIFT, "skipped") or {}]


# --- risks -----------------------------------------------------------------------------------------------------------


def membership_sentence(facts: Facts) -> str:
    """Whether training rows can be told from others, by the strongest attack."""
    at = f"{SECURITY}#/membership"
    membership = facts.records.value(at)
    number, nouns = strongest(membership["attacks"]), kind_of(facts.records).nouns
    says = (
        f"**Training rows can be told from others better than by their {nouns} alone**"
        if membership["leaks"]
        else f"Training rows could not be told from others better than by their {nouns} alone"
    )
    if number is None:
        return f"{says}."
    return (
        f"{says}: area under the curve {estimate(facts, f'{at}/attacks/{number}/auc')} by "
        f"{named(facts, f'{at}/attacks/{number}/name')}, {estimate(facts, f'{at}/blind/auc')} from the {nouns} alone; "
        f"{facts(f'{at}/members', 'integer')} training rows, {facts(f'{at}/non_members', 'integer')} held-out ones "
        "of the same pool."
    )


def strongest(attacks: Sequence[Mapping[str, Any]]) -> int | None:
    """Number of the attack with the largest area under the curve."""
    return max(range(len(attacks)), key=lambda n: (attacks[n]["auc"]["value"], -n)) if attacks else None


def canary_sentence(facts: Facts) -> str:
    """Whether planted rows were found."""
    at, kind = f"{SECURITY}#/canaries", kind_of(facts.records)
    says = (
        f"**Planted {kind.nouns} were found again**"
        if facts.records.value(f"{at}/found")
        else f"No planted {kind.noun} was found again"
    )
    return (
        f"{says}: {facts(f'{at}/planted', 'integer')} were planted, each was compared with "
        f"{facts(f'{at}/references', 'integer')} that were not, and counts as found above "
        f"{facts(f'{at}/threshold_bits', 'short')} bits of exposure."
    )


def verbatim_sentence(facts: Facts) -> str:
    """How often the start of a training row is continued word for word."""
    at = f"{SECURITY}#/verbatim"
    others = facts.records.value(at).get("held_out_rate")
    held_out = f", and of held-out rows in {estimate(facts, f'{at}/held_out_rate', 'share')}" if others else ""
    return (
        f"Verbatim reproduction: given at most {facts(f'{at}/prefix_tokens', 'integer')} tokens of a training row's "
        f"answer, the adapter "
        f"wrote what follows, up to {facts(f'{at}/continued_tokens', 'integer')} tokens, word for word in "
        f"{estimate(facts, f'{at}/rate', 'share')} of {facts(f'{at}/prompts', 'integer')} rows{held_out}; the base did "
        f"in {estimate(facts, f'{at}/base_rate', 'share')}."
    )


def personal_data_sentence(facts: Facts) -> str:
    """What personal data was seen in what the adapter wrote."""
    at = f"{SECURITY}#/personal_data"
    counts = facts.records.value(f"{at}/found")
    kinds = ", ".join(
        f"{facts.cited(escape(kind))} {facts(f'{at}' + pointer('found', kind), 'integer')}"
        for kind in counts
        if counts[kind]
    )
    return (
        f"Personal data in {facts(f'{at}/generations', 'integer')} generated texts: {kinds or 'none found'}; "
        f"{facts(f'{at}/repeated', 'integer')} of it stands in training rows."
    )


def privacy_sentences(facts: Facts, generates: bool) -> list[str]:
    """One sentence for each leak check, also for those that were not made or do not apply."""
    records = facts.records
    sentences = [
        membership_sentence(facts)
        if part(records, SECURITY, "membership")
        else not_measured("Membership inference", SECURITY)
    ]
    if part(records, SECURITY, "canaries"):
        sentences.append(canary_sentence(facts))
    elif records.has(SECURITY):
        sentences.append("Canaries: none were planted in the training rows, so none were looked for.")
    else:
        sentences.append(not_measured("Canaries", SECURITY))
    if not generates:
        return [*sentences, "Verbatim reproduction, personal data in answers: do not apply, no text is generated."]
    for key, sentence, what in (
        ("verbatim", verbatim_sentence, "Verbatim reproduction of training rows"),
        ("personal_data", personal_data_sentence, "Personal data in generated texts"),
    ):
        if part(records, SECURITY, key):
            sentences.append(sentence(facts))
        elif records.has(SECURITY):
            chosen = (
                "the answer is one of a few given ones" if part(records, EVALUATION, "confusion") else "no row fits"
            )
            sentences.append(f"{what}: does not apply, {chosen}.")
        else:
            sentences.append(not_measured(what, SECURITY))
    return sentences


# --- energy and compute ----------------------------------------------------------------------------------------------


def energy_sentence(facts: Facts) -> str:
    """Energy and carbon of training with the method, or what records them."""
    energy = facts.records.file("train.json").get("energy")
    if not energy:
        return not_measured("Energy and emissions", "run")
    at = "train.json#/energy"
    text = f"Energy of training: {facts(f'{at}/joules', 'watt-hours')}, {energy['method']} ({facts(f'{at}/how')})."
    if energy.get("carbon_grams") is None:
        return f"{text} Emissions: not measured, the carbon of the electricity is not known."
    where = f" in {facts(f'{at}/country')}" if energy.get("country") else ""
    return f"{text} Emissions: {facts(f'{at}/carbon_grams', 'short')} g of carbon dioxide for electricity{where}."


def eu_sentences(facts: Facts, estimate: str) -> list[str]:
    """Facts that the EU AI Act asks for: the compute of tuning against a third of the base's.

    Args:
        estimate: The compute of tuning where no record counts it.
    """
    compute = facts.records.file("train.json").get("compute")
    if not compute:
        sentences = [estimate]
    else:
        at = "train.json#/compute"
        sentences = [f"Training compute: {facts(f'{at}/tuning_flops', 'power')} FLOPs ({facts(f'{at}/how')})."]
    sentences.append("What it was trained on stands under [Data](#data), on which terms under [Licence](#licence).")
    year = facts.cited("2025")
    rule = (
        "whoever modifies a general-purpose model becomes the provider of a new one only above about a third of the "
        f"compute that made it (guidelines of the European Commission, July {year})"
    )
    if not compute or not compute.get("base_flops"):
        return [*sentences, f"EU AI Act: {rule}. The compute of the base's own training is not recorded here."]
    at = "train.json#/compute"
    third = [f"{at}/tuning_flops", f"{at}/base_flops"]
    source = f" ({facts(f'{at}/base_source')})" if compute.get("base_source") else ""
    above = 3 * compute["tuning_flops"] > compute["base_flops"]
    return [
        *sentences,
        f"EU AI Act: {rule}. The base took {facts(f'{at}/base_flops', 'power')} FLOPs{source}; this training is "
        f"{facts(third, 'tiny-share', 'ratio', 3)} of a third of that, so it is "
        f"{'**above**' if above else 'below'} the threshold.",
    ]


def size_sentence(facts: Facts) -> str:
    """What was done with inputs that are larger than the model takes, and that no others were tested."""
    kind = kind_of(facts.records)
    if (facts.records.value("data.json#").get("audit") or {}).get("brought"):
        return f"Every {kind.noun} came to one size: {facts('data.json#/audit/brought')}; no other size was tested."
    return (
        f"Inputs were {kind.cut.removesuffix(' off')} to {facts('lock.yaml#/data/max_length', 'integer')} {kind.unit}; "
        f"{kind.longer} ones were not tested."
    )
