"""What tools that stand on transformers and peft have in common: words of their trainers, and what these are here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hfadapt.converters import Lacking, Needless, Rule, Said, To, named

SCHEDULES = {
    "linear": "linear",
    "cosine": "cosine",
    "constant": "constant",
    "constant_with_warmup": "constant",
}
OPTIMIZERS = {
    **dict.fromkeys(("adamw", "adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw_apex_fused"), "adamw"),
    **dict.fromkeys(("paged_adamw", "paged_adamw_32bit"), "adamw"),
    **dict.fromkeys(("adamw_8bit", "adamw_bnb_8bit"), "adamw-8bit"),
    "paged_adamw_8bit": "paged-adamw-8bit",
}
TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")
TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def number(value: Any) -> Any:
    """A number, also one that YAML 1.1 takes for a text, such as 2e-5."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        return Lacking("no number")
    return int(found) if isinstance(value, int) and not isinstance(value, bool) else found


def above_zero(why: str) -> Callable[[Any], Any]:
    """A number above zero; zero or less needs nothing here."""

    def read(value: Any) -> Any:
        found = number(value)
        return found if isinstance(found, Lacking) or found > 0 else Needless(why)

    return read


def yes(value: Any) -> bool | None:
    """A switch, as tools write it; None for something else."""
    if isinstance(value, bool):
        return value
    text = str(value).lower()
    return True if text in TRUE else False if text in FALSE else None


def when_on(result: Any, off: str = "off here too") -> Callable[[Any], Any]:
    """What a switch that is on stands for."""

    def read(value: Any) -> Any:
        on = yes(value)
        return Lacking() if on is None else result if on else Needless(off)

    return read


def only(values: Sequence[Any], why: str, else_: str = "") -> Callable[[Any], Any]:
    """Needs nothing where it has one of these values, and has no counterpart otherwise."""
    return lambda value: Needless(why) if value in values else Lacking(else_)


def asked(rule: Callable[[Any], Any]) -> To:
    """A field that never has a place, and of which the value tells whether it is missed."""
    return To("", rule)


def switch(value: Any) -> Any:
    """`true` or `false`."""
    on = yes(value)
    return Lacking() if on is None else on


def schedule(value: Any) -> Any:
    """The schedule of that name."""
    return SCHEDULES.get(str(value), Lacking("schedules here are linear, cosine and constant"))


def optimizer(value: Any) -> Any:
    """The optimizer of that name."""
    return OPTIMIZERS.get(str(value), Lacking("optimizers here are AdamW, its states in 32 or 8 bits, paged or not"))


def dtype(value: Any) -> Any:
    """The type of the base's numbers."""
    text = str(value).removeprefix("torch.")
    return text if text in ("float32", "bfloat16", "float16", "auto") else Lacking()


def trackers(value: Any) -> Any:
    """The programs that get the curves."""
    names = [value] if isinstance(value, str) else list(value)
    if names == ["none"]:
        return Needless("off here too")
    if set(names) <= set(TRACKERS):
        return names
    return Lacking(f"trackers here are {', '.join(TRACKERS)}")


def steps(value: Any) -> Any:
    """A number of steps; a share of them has no place."""
    found = number(value)
    return found if isinstance(found, int) and found > 0 else Lacking("only numbers of steps")


def modules(value: Any) -> Any:
    """Name endings of layers; `auto` for all linear ones."""
    if isinstance(value, str) and value in ("all", "all-linear"):
        return "auto"
    names = value.replace(" ", "").split(",") if isinstance(value, str) else list(value)
    if all(name.replace("_", "").replace(".", "").isalnum() for name in names):
        return names
    return Lacking("only endings of names, no regular expressions")


PRINTED = Needless("hfadapt prints and keeps a line for each step")
PLACED = Needless("runs go to runs/NAME; --runs names another folder")
PROCESSES = Needless("settled by hfadapt, by the cores that it may use")
ATTENTION = Needless("hfadapt takes the fastest attention that the machine has")
PUBLISHED = Needless("`hfadapt publish RUN --repo USER/NAME` sends a finished run")
RESUMED = Needless("running the command again goes on where it was interrupted")
PLANNED = Needless("the plan settles it by the memory that there is")
VALIDATED = Needless("hfadapt validates and keeps checkpoints by itself")
BEST = Needless("the best validated weights are kept")
TEMPLATE = Needless("chats are written with the model's own template")
SCORED = Needless("the plan settles it")

TRAINING: dict[str, Rule] = {
    "learning_rate": To("train.learning_rate", number),
    "weight_decay": To("train.weight_decay", number),
    "max_grad_norm": To("train.max_grad_norm", above_zero("no gradient is cut")),
    "seed": To("train.seed"),
    "eval_steps": To("train.evaluate_every_steps", steps),
    "save_steps": To("train.checkpoint_every_steps", steps),
    "gradient_checkpointing": To("train.checkpointing", switch),
    "gradient_checkpointing_kwargs": PLANNED,
    "bf16": To("dtype", lambda value: Needless("the plan chooses") if value == "auto" else when_on("bfloat16")(value)),
    "fp16": To("dtype", when_on("float16")),
    "torch_dtype": To("dtype", dtype),
    "report_to": To("train.trackers", trackers),
    "early_stopping_patience": To("train.patience", above_zero("off here too")),
    "tf32": Needless("settled by the machine"),
    "output_dir": PLACED,
    "overwrite_output_dir": Needless("finished cells are kept; --fresh starts over"),
    "run_name": Needless("curves have the name of the recipe"),
    "deepspeed": Lacking("one process holds the base; processes share the rows"),
    "fsdp": Lacking("one process holds the base; processes share the rows"),
    "fsdp_config": Lacking("one process holds the base; processes share the rows"),
    "do_train": asked(lambda value: Needless("`hfadapt run` trains") if yes(value) else Lacking()),
    "trust_remote_code": asked(when_on(Lacking("code from a model's folder is never run"))),
    "torch_compile": To("train.fast.compile", switch),
    "dataloader_drop_last": asked(when_on(Lacking("all rows are learned"))),
    "group_by_length": asked(when_on(Needless("rows of like length go together by themselves"))),
    **dict.fromkeys(("logging_steps", "logging_strategy", "logging_first_step", "log_level", "plot_loss"), PRINTED),
    **dict.fromkeys(("do_eval", "do_predict", "eval_strategy", "evaluation_strategy", "eval_on_start"), VALIDATED),
    **dict.fromkeys(("save_strategy", "save_total_limit", "save_only_model", "save_safetensors"), VALIDATED),
    **dict.fromkeys(("load_best_model_at_end", "metric_for_best_model", "greater_is_better"), BEST),
    **dict.fromkeys(("dataset_num_proc", "dataloader_num_workers", "dataloader_pin_memory"), PROCESSES),
    **dict.fromkeys(("preprocessing_num_workers", "dataloader_prefetch_factor"), PROCESSES),
    **dict.fromkeys(("ddp_timeout", "ddp_find_unused_parameters", "ddp_backend", "local_rank"), PROCESSES),
    **dict.fromkeys(("push_to_hub", "hub_model_id", "hub_strategy", "hub_private_repo"), PUBLISHED),
    **dict.fromkeys(("remove_unused_columns", "use_cache"), SCORED),
    "per_device_eval_batch_size": SCORED,
    "resume_from_checkpoint": RESUMED,
    "use_liger_kernel": Needless("hfadapt has kernels of its own (`train.fast`)"),
    "enable_liger_kernel": Needless("hfadapt has kernels of its own (`train.fast`)"),
}
"""Fields of transformers' TrainingArguments, and what others call the same."""

LORA: dict[str, Rule] = {
    "lora_r": To("adapter.rank"),
    "lora_rank": To("adapter.rank"),
    "lora_alpha": To("adapter.alpha"),
    "lora_dropout": To("adapter.dropout", number),
    "lora_target_modules": To("adapter.modules", modules),
    "lora_modules_to_save": Lacking("only adapted layers, and a task's head, are trained"),
}


def batch(said: Said, rows: str, usual: int, processes: str = "") -> None:
    """Rows of an optimizer step: those of a device, times the steps that are accumulated, times the processes.

    Args:
        said: The file.
        rows: The field with the rows of a device.
        usual: How many the tool takes where that is not said.
        processes: The field with their number, where the tool has one.
    """
    accumulated = "gradient_accumulation_steps"
    if said.has(rows) or said.has(accumulated):
        found = [number(said.get(rows, usual)), number(said.get(accumulated, 1)), number(said.get(processes, 1))]
        if all(isinstance(each, int) for each in found):
            said.take([rows, accumulated], "train.batch_rows", found[0] * found[1] * found[2])


def length_of_training(said: Said, epochs: str) -> None:
    """Epochs or steps, and the warm-up as a share of them."""
    most = number(said.get("max_steps", -1))
    if isinstance(most, int) and most > 0:
        said.take("max_steps", "train.max_steps", most)
        said.end(epochs, Needless("max_steps counts"))
    else:
        said.end("max_steps", Needless("epochs count"))
        if said.has(epochs):
            said.take(epochs, "train.epochs", number(said.get(epochs)))
    if said.has("warmup_ratio"):
        said.take("warmup_ratio", "train.warmup_ratio", number(said.get("warmup_ratio")))
    if said.has("warmup_steps"):
        found = number(said.get("warmup_steps"))
        if isinstance(found, Lacking) or found < 1:
            said.take("warmup_steps", "train.warmup_ratio", found)
        elif isinstance(most, int) and most > found:
            said.take("warmup_steps", "train.warmup_ratio", round(found / most, 4))
        else:
            said.end("warmup_steps", Lacking("a share of the steps, `train.warmup_ratio`, stands for it"))


def bits(said: Said, kind: str = "bnb_4bit_quant_type") -> None:
    """How the base is stored: in 4 or 8 bits, or as it is."""
    four, eight = yes(said.get("load_in_4bit", False)), yes(said.get("load_in_8bit", False))
    keys = [key for key, on in (("load_in_4bit", four), ("load_in_8bit", eight)) if on]
    if keys:
        said.take([*keys, kind], "quant", said.get(kind, "nf4") if four else "int8")
    elif said.has("load_in_4bit") or said.has("load_in_8bit"):
        said.take(["load_in_4bit", "load_in_8bit"], "quant", "none")
    said.end(["load_in_4bit", "load_in_8bit"], Needless("off here too"))


def adapter(said: Said, method: str, keys: Sequence[str], variants: dict[str, str]) -> None:
    """The adapter, and which variant of it.

    Args:
        said: The file.
        method: The adapter's name here.
        keys: The fields that name it.
        variants: Switches, each with the method that it stands for.
    """
    on = [key for key in variants if yes(said.get(key))]
    said.take([*keys, *on[:1]], "adapter.method", variants[on[0]] if on else method)
    said.end(on[1:], Lacking(f"the adapter is {said.settings['adapter']['method']} already"))
    said.end([key for key in variants if key not in on and said.has(key)], Needless("off here too"))


def everything(said: Said, method: str, keys: Sequence[str], why: str) -> None:
    """All weights are trained; what is said of an adapter counts for nothing."""
    said.take(keys, "adapter.method", method)
    left = [key for key in said.pending if key.startswith(("lora_", "peft_", "use_dora", "use_rslora"))]
    said.end(left, Needless(why))


def domain(said: Said, keys: Sequence[str], sources: Sequence[dict[str, Any]], **more: Any) -> None:
    """One kind of data: all sources go into one adapter, as they do in the other tool.

    Args:
        said: The file.
        keys: The fields that were read for it.
        sources: Each as in a recipe.
        more: Further settings of the domain.
    """
    name = named(sources[0]["source"]) if len(sources) == 1 else "data"
    found: dict[str, Any] = dict(sources[0]) if len(sources) == 1 else {"sources": [*sources]}
    said.take(keys, f"domains.{name}", {**found, **{key: value for key, value in more.items() if value is not None}})
