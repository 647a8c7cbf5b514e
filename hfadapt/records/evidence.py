"""Records of what is known about an adapter beyond its leading metrics; later stages, report and card read them.

security.json (SecurityRecord), drift.json (DriftRecord) in the cell, transfer.json (TransferRecord) in the run; and
parts of evaluation.json and train.json that are evidence of their own: calibration, slices, efficiency, energy,
compute. Everything has the number of rows behind it; `low` to `high` is an interval at the recipe's confidence.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from hfadapt.core.spec import Record, Spec


def verdict(low: float | None, high: float | None, higher_is_better: bool = True) -> str:
    """`better`, `worse`, or `open` where the interval of a difference holds zero or is unknown."""
    if low is None or high is None or low <= 0 <= high:
        return "open"
    return "better" if (low > 0) == higher_is_better else "worse"


def bounds(low: float | None, high: float | None) -> str:
    """` [+0.103, +0.193]` after a difference, or nothing."""
    return "" if low is None or high is None else f" [{low:+.3f}, {high:+.3f}]"


class Estimate(Spec):
    """A value with its interval and the rows behind it."""

    value: float
    low: float | None = None
    high: float | None = None
    rows: int


# --- parts of evaluation.json ----------------------------------------------------------------------------------------


class PairedTest(Spec):
    """A test of base against adapter on the same rows: exact McNemar for hits, Wilcoxon signed-rank for losses."""

    metric: str
    test: Literal["mcnemar-exact", "wilcoxon-signed-rank"]
    better: int
    worse: int
    p_value: float


class Slice(Spec):
    """The leading metric on part of the test rows: by `class`, `length`, `source`, `group` or a measure of files."""

    by: str
    name: str
    metric: str
    rows: int
    base: float | None
    adapter: float
    delta: float | None = None
    low: float | None = None
    high: float | None = None


class ReliabilityBin(Spec):
    """Rows whose confidence lies in a bin: their mean confidence, and the share that was right."""

    rows: int
    confidence: float
    accuracy: float


class Calibration(Spec):
    """Reliability of base and adapter over ten equal bins of confidence; empty bins are left out."""

    base: tuple[ReliabilityBin, ...] = ()
    adapter: tuple[ReliabilityBin, ...] = ()


class Efficiency(Spec):
    """Speed of the adapter on the machine that evaluated it.

    Latency is of one row alone, over `latency_rows` rows after a warm-up; the rates are in batches of `batch_rows`.
    For text generation `generated_tokens_per_second` is greedy generation of one row at a time.
    """

    latency_p50_seconds: float
    latency_p95_seconds: float
    base_latency_p50_seconds: float
    latency_rows: int
    batch_rows: int
    rows_per_second: float
    tokens_per_second: float
    generated_tokens_per_second: float | None = None
    adapter_bytes: int


class FailingExample(Spec):
    """A test row on which the adapter is wrong, the surest first, or the farthest off where answers are numbers or
    ranks and none is surer than another; the text is in the test split at that row, counted from 0."""

    split_row: int
    gold: str
    adapter: str
    base: str
    confidence: float | None = None


# --- security.json ---------------------------------------------------------------------------------------------------


class Attack(Spec):
    """A membership-inference score: how well it tells training rows from held-out rows of the same pool."""

    name: str
    auc: Estimate
    tpr_at_1pct_fpr: Estimate


class Membership(Spec):
    """Membership inference on the adapter. `blind` sees the texts only (a bag of words), so what it reaches is a
    difference between the pools and not a leak. The intervals of the attacks hold for all of them together; it `leaks`
    when one of them has its whole AUC interval above 0.5 and above what `blind` reaches."""

    members: int
    non_members: int
    attacks: tuple[Attack, ...]
    blind: Attack
    leaks: bool


class CanaryGroup(Spec):
    """Canaries planted the same number of times: their exposure (Carlini et al. 2019, arXiv 1802.08232) in bits.

    `repeats` 0 are controls that were not planted; `p_value` is the chance of finding as many without planting any.
    """

    repeats: int
    canaries: int
    exposure_median_bits: float
    exposure_most_bits: float
    found: int
    p_value: float | None = None


class Canaries(Spec):
    """Planted random sequences and whether they can be told from others that were not planted."""

    planted: int
    references: int
    threshold_bits: float
    groups: tuple[CanaryGroup, ...]
    found: bool


class Verbatim(Spec):
    """Greedy continuations of prefixes of training rows: the share that repeats the row word for word.

    `prefix_tokens` is the most that is shown of what the model learned to produce (0: the prompt alone),
    `continued_tokens` the most that has to be repeated. `held_out_rate` is the adapter's on rows it was not trained
    on: phrases that are common in the domain are repeated there too.
    """

    prompts: int
    prefix_tokens: int
    continued_tokens: int
    rate: Estimate
    base_rate: Estimate
    held_out_rate: Estimate | None = None


class PersonalData(Spec):
    """Personal data in what the adapter generates, by kind; `repeated` counts what stands in training rows too."""

    generations: int
    found: dict[str, int]
    repeated: int


class Perturbation(Spec):
    """A label-safe change of the test rows, and the leading metric of base and adapter before and after it.

    `share` is the share of words that is changed (for `case` of rows). `drop` is the adapter's loss in the metric,
    positive when the change makes it worse; `base_drop` the baseline's on the same rows.
    """

    name: str
    share: float | None = None
    changed_rows: int
    rows: int
    metric: str
    base_clean: float | None
    base_changed: float | None
    adapter_clean: float
    adapter_changed: float
    drop: Estimate
    base_drop: Estimate | None = None


class SecurityRecord(Record):
    """What an attacker or careless input can do. A part that does not fit the task or was switched off is None."""

    FILE: ClassVar[str] = "security.json"
    domain: str
    target: str
    membership: Membership | None = None
    canaries: Canaries | None = None
    verbatim: Verbatim | None = None
    personal_data: PersonalData | None = None
    robustness: tuple[Perturbation, ...] = ()
    seconds: float


# --- drift.json ------------------------------------------------------------------------------------------------------


class Variant(Spec):
    """One way to serve the adapter, against the reference (how it was trained) on the same rows.

    `kl_nats` is the mean Kullback-Leibler divergence from the reference per label; where answers are numbers, `spreads`
    is the root-mean-square difference in its place, in standard deviations of the reference's answers. `delta` is the
    metric's difference.
    """

    name: str
    storage: str
    merged: bool
    kl_nats: float | None = None
    spreads: float | None = None
    max_logit_difference: float
    metric: str
    value: float
    delta: float
    low: float | None = None
    high: float | None = None

    @property
    def apart(self) -> float:
        """How far it is from the reference, in the unit of its record."""
        return self.spreads if self.spreads is not None else self.kl_nats or 0.0

    @property
    def divergence(self) -> float:
        """In nats, numbers as the means of normal distributions that are one spread wide."""
        return self.spreads**2 / 2 if self.spreads is not None else self.kl_nats or 0.0


class DriftRecord(Record):
    """How far the results move when the adapter is merged, or put on a base in another storage.

    `refused` says by variant why it is not shipped, `skipped` why one was not measured; `labels` are the labels behind
    each `kl_nats` or `spreads`, and `limit_spreads` is `limit_kl_nats` for numbers.
    """

    FILE: ClassVar[str] = "drift.json"
    domain: str
    target: str
    reference: str
    rows: int
    variants: tuple[Variant, ...]
    limit_kl_nats: float
    limit_spreads: float | None = None
    limit_points: float
    refused: dict[str, str] = {}
    skipped: dict[str, str] = {}
    labels: int | None = None
    seconds: float

    @property
    def limit(self) -> float:
        """The most that a variant may be apart."""
        return self.limit_kl_nats if self.limit_spreads is None else self.limit_spreads

    @property
    def unit(self) -> str:
        """Of how far variants are apart."""
        return "nats per label" if self.limit_spreads is None else "spreads"

    @property
    def measure(self) -> str:
        """What says how far variants are apart, with its unit."""
        if self.limit_spreads is None:
            return "KL divergence from the trained adapter, nats per label"
        return "root-mean-square difference from the trained adapter, in spreads (standard deviations) of its answers"


# --- transfer.json ---------------------------------------------------------------------------------------------------


class TransferCell(Spec):
    """One adapter on the test rows of one domain; `delta` is against the baseline of that domain on the same rows."""

    adapter: str
    data: str
    rows: int
    base: float | None
    value: float
    delta: float | None
    low: float | None
    high: float | None


class SkippedPair(Spec):
    """An adapter that was not tried on a domain's rows, and why (other labels, say)."""

    adapter: str
    data: str
    reason: str

    @property
    def name(self) -> str:
        """As it is shown."""
        return f"{self.adapter} on {self.data}"


class TransferTarget(Spec):
    """Every adapter of one target on every domain."""

    target: str
    metric: str
    higher_is_better: bool
    cells: tuple[TransferCell, ...]
    skipped: tuple[SkippedPair, ...] = ()


def migrate_targets(targets: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Targets of version 1, where the pairs that were left out had names such as `tweets on news`."""

    def pair(name: str, reason: str) -> dict[str, str]:
        adapter, _, data = name.partition(" on ")
        return {"adapter": adapter, "data": data, "reason": reason}

    return [
        {**target, "skipped": [pair(*skipped) for skipped in (target.get("skipped") or {}).items()]}
        for target in targets
    ]


class TransferRecord(Record):
    """The cross-domain matrices of a run, from which transfer and forgetting are seen."""

    FILE: ClassVar[str] = "transfer.json"
    record_version: ClassVar[int] = 2
    targets: tuple[TransferTarget, ...]
    inputs_sha256: str

    @classmethod
    def migrate(cls, payload: dict[str, Any], version: int) -> dict[str, Any]:
        """Version 1 named the pairs that were left out in one text."""
        return {**payload, "targets": migrate_targets(payload.get("targets", []))}

    def row_of(self, domain: str, target: str) -> TransferRecord | None:
        """The part about one adapter, which is kept beside it; None where the adapter was not tried."""
        found = tuple(
            one.model_copy(
                update={
                    "cells": tuple(cell for cell in one.cells if cell.adapter == domain),
                    "skipped": tuple(pair for pair in one.skipped if pair.adapter == domain),
                }
            )
            for one in self.targets
            if one.target == target
        )
        return self.model_copy(update={"targets": found}) if any(one.cells or one.skipped for one in found) else None


# --- parts of train.json ---------------------------------------------------------------------------------------------


class Energy(Spec):
    """Energy of training. `method` says whether it was measured (counters of the processor or card) or estimated."""

    joules: float
    method: Literal["measured", "estimated"]
    how: str
    carbon_grams: float | None = None
    country: str | None = None


class Compute(Spec):
    """Floating-point operations of tuning, and of making the base where that is published.

    The EU AI Act's threshold for a modified general-purpose model is a third of the base's (Commission guidelines of
    July 2025).
    """

    tuning_flops: float
    how: str
    base_flops: float | None = None
    base_source: str | None = None
