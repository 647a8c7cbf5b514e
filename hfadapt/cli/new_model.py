"""What `hfadapt new` asks of a model: whether it is one, what it is made for, whether it writes, and chats."""

from __future__ import annotations

import json
from contextlib import suppress
from shlex import quote

from hfadapt.core import registry
from hfadapt.core.errors import RequestError
from hfadapt.data.columns import Shape
from hfadapt.models.facts import load_config, reads_both_ways
from hfadapt.recipe.sources import expanded


def check_base(model: str) -> None:
    """Raises RequestError for an adapter where a model is asked for."""
    config = expanded(model) / "adapter_config.json"
    if not config.is_file():
        return
    base = None
    with suppress(ValueError, AttributeError, OSError):
        base = json.loads(config.read_text(encoding="utf-8")).get("base_model_name_or_path")
    raise RequestError(
        "this is an adapter, not a model",
        place=model,
        got=f"adapter_config.json, an adapter of {base}" if base else "adapter_config.json",
        allowed="the base that the adapter was trained on",
        fix=f"--model {quote(base)}" if base else "name its base with --model",
    )


def check_chat(model: str, shape: Shape) -> None:
    """Raises RequestError for chats with a model on this machine that has no chat template."""
    from hfadapt.models.load import load_processor, resolve_model

    if not registry.schema(shape.form).chat or not expanded(model).is_dir():
        return
    if not load_processor(resolve_model(model), "text").chat_template:
        raise RequestError(
            "the model has no chat template, and the rows are chats",
            place=model,
            allowed="an instruction-tuned model, whose tokenizer has one",
            fix="name such a model with --model, or data with prompt and completion",
        )


def generates(model: str) -> bool:
    """Whether the architecture is a language model that generates."""
    config = load_config(model)
    names = " ".join(config.architectures or [])
    return ("CausalLM" in names or "LMHead" in names) and not reads_both_ways(config)


def made_for(model: str) -> list[str]:
    """Modalities of the tasks for which transformers has a model of this kind."""
    import transformers

    kind, found = type(load_config(model)), []
    for task in map(registry.task, registry.names("tasks")):
        auto = getattr(transformers, task.auto_class)
        # Every model is known without a head.
        if auto is not transformers.AutoModel and kind in auto._model_mapping:
            found.append(task.modality)
    return list(dict.fromkeys(found))
