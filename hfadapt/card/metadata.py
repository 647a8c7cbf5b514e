"""The metadata of a card, which the Hub reads: base, licence, language, tags and results as plain Python values."""

from __future__ import annotations

from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from hfadapt.card.facts import Facts, Records, public_name
from hfadapt.card.licenses import License, adapter_license
from hfadapt.core import registry
from hfadapt.recipe.sources import HUB_ID, SAMPLE

METRIC_TYPES = {
    "accuracy": "accuracy",
    "label_accuracy": "accuracy",
    "macro_f1": "f1",
    "calibration_error": "expected_calibration_error",
    "loss": "loss",
    "perplexity": "perplexity",
    "exact_match": "exact_match",
    "rouge_l": "rouge",
    "chrf": "chrf",
    "bleu": "bleu",
    "word_error_rate": "wer",
}
"""Our metrics by the Hub's names."""


def metric_type(name: str) -> str:
    """The Hub's name of a metric, ours where it has none; a task may bring both."""
    own = {
        metric.name: metric.hub_name for task in registry.names("tasks") for metric in registry.task(task).own_metrics
    }
    return METRIC_TYPES.get(name) or own.get(name) or name


def base_name(records: Records) -> str:
    """The base's name on the Hub, or the recipe's without a local path."""
    return str(records.value("train.json#/model_hub_id") or public_name(records.value("lock.yaml#/model")))


def license_of(records: Records) -> License:
    """The adapter's licence, from those of the base and of the sources."""
    sources = records.value("data.json#/sources")
    return adapter_license(
        records.value("train.json#/model_license"), {public_name(one["source"]): one.get("license") for one in sources}
    )


def languages(records: Records) -> list[str]:
    """Languages of the sources, as far as they are known."""
    named = [source.get("language") for source in records.value("data.json#/sources")]
    return list(dict.fromkeys(str(language) for language in named if language))


def hub_metadata(facts: Facts) -> dict[str, Any]:
    """The YAML front matter, as plain Python values in the form of huggingface_hub."""
    records = facts.records
    lock, license = records.file("lock.yaml"), license_of(records)
    task = registry.task(lock["task"])
    method, quant, base = registry.adapter(lock["adapter"]["method"]), registry.quant(lock["quant"]), base_name(records)
    sources = [one["source"] for one in records.value("data.json#/sources")]
    evaluated = records.value("evaluation.json#/metrics")
    tags = ["hfadapt", method.name, facts.records.value("train.json#/domain")]
    tags += [f"base_model:{method.relation}:{base}"] if _owned(base) else []
    tags += [quant.name] if quant.quantised else []
    data = ModelCardData(
        language=languages(records) or None,
        license=license.id,
        license_name=license.name or None,
        license_link=(license.link or None) if license.id == "other" else None,
        library_name="transformers" if method.whole_model else "peft",
        pipeline_tag=task.pipeline_tag,
        # A sample that the Hub does not have goes by its name, as the folder of a model on this machine does.
        base_model=base.removeprefix(SAMPLE),
        base_model_relation=method.relation,
        datasets=[source for source in sources if _owned(source)] or None,
        metrics=list(dict.fromkeys(metric_type(metric["name"]) for metric in evaluated)) or None,
        tags=tags,
        co2_eq_emissions=_emissions(facts),
        model_name=card_title(records) if evaluated else None,
        eval_results=_results(facts, task.pipeline_tag) or None,
    )
    return data.to_dict()


def _owned(name: str) -> bool:
    """Whether a name is `owner/name` of the Hub."""
    return "/" in name and HUB_ID.fullmatch(name) is not None


def _emissions(facts: Facts) -> dict[str, Any] | None:
    """Grams of carbon dioxide of training as the Hub wants them, where the records have them."""
    energy, at = facts.records.file("train.json").get("energy"), "train.json#/energy"
    if not energy or energy.get("carbon_grams") is None:
        return None
    found = {
        "emissions": facts.number(f"{at}/carbon_grams"),
        "source": f"{energy['method']}: {energy['how']}",
        "training_type": "fine-tuning",
        "geographical_location": energy.get("country"),
        "hardware_used": facts.records.value("train.json#/versions/processor"),
    }
    return {key: value for key, value in found.items() if value is not None}


def card_title(records: Records) -> str:
    """The heading of the card, and the name in its model-index."""
    return f"{base_name(records).rsplit('/', 1)[-1]} for {records.value('train.json#/domain')}"


def _results(facts: Facts, pipeline_tag: str) -> list[EvalResult]:
    """The adapter's metrics, and those of the base by name."""
    records = facts.records
    sources, domain = records.value("data.json#/sources"), records.value("train.json#/domain")
    baseline = records.value("evaluation.json#/baseline")
    whose = {"adapter": "adapter", "base": "base" if baseline == "base" else f"{baseline} of the base"}
    return [
        EvalResult(
            task_type=pipeline_tag,
            dataset_type=public_name(sources[0]["source"]).removeprefix(SAMPLE) if len(sources) == 1 else domain,
            dataset_name=domain,
            dataset_split=records.value("evaluation.json#/split"),
            metric_type=metric_type(metric["name"]),
            metric_value=facts.number(f"evaluation.json#/metrics/{number}/{key}"),
            metric_name=f"{metric['name']} ({who})",
        )
        for number, metric in enumerate(records.value("evaluation.json#/metrics"))
        for key, who in whose.items()
        if metric.get(key) is not None
    ]
