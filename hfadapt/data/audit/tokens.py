"""Faults that appear only after tokenisation, one function each: masks, ends, cuts, templates.

They stay invisible while the loss falls, so every one is looked for in the very examples that training will get.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from hfadapt.core import registry
from hfadapt.data.audit.findings import ALWAYS_SPECIAL, CUT_OFF, MARKER, WITHOUT_CUT, Check, View, finding, level_for
from hfadapt.data.fit import STEP
from hfadapt.modalities import IGNORED, Example
from hfadapt.modalities.text import token_ids
from hfadapt.records.stages import Finding
from hfadapt.schemas import RowSchema

REMARKED_ROWS = 5_000
"""Most rows that are looked at one by one for what the task has to say of them; evenly spread."""

# --- tokens ----------------------------------------------------------------------------------------------------------


def no_labels(view: View) -> Iterator[Finding]:
    """Rows from which nothing is learned."""
    pairs = list(view.pairs())
    bad = [row for row, example in pairs if all(label == IGNORED for label in example.labels)]
    if not bad:
        return
    whole = "every label is masked" if len(bad) == len(pairs) else "no label is left"
    cut = sum(1 for _, example in pairs if example.truncated)
    fix = view.longer if cut >= len(bad) else "check the template and its response marker"
    code = "all-masked" if len(bad) == len(pairs) else "rows-without-labels"
    yield finding(code, level_for(len(bad), len(pairs), 0.05), whole, bad, fix, len(pairs))


def cut_off(view: View) -> Iterator[Finding]:
    """Rows that were dropped since nothing of their answer was left."""
    count = view.record.dropped.get(CUT_OFF, 0) if view.record else 0
    if count and view.record:
        total = view.record.rows_kept + count
        what = f"the whole answer is cut off in {count:,} of {total:,} rows, which are left out"
        what += f", such as {view.dropped[CUT_OFF]}" if CUT_OFF in view.dropped else ""
        yield finding("rows-without-labels", level_for(count, total, 0.05), what, fix=view.longer)


def learns_to_stop(view: View) -> bool | None:
    """Whether training shows the model where an answer ends; None where there is nothing to stop."""
    if not view.task.writes:
        return None
    whole = [example for _, example in view.pairs() if not example.truncated]
    if not whole:
        return False
    return sum(1 for example in whole if _last_label(example) in view.stop_ids) >= 0.99 * len(whole)


def _labelled(example: Example) -> int:
    return sum(1 for label in example.labels if label != IGNORED)


def _last_label(example: Example) -> int:
    return next((label for label in reversed(example.labels) if label != IGNORED), IGNORED)


def stop_token(view: View) -> Iterator[Finding]:
    """The end of an answer is absent, or masked."""
    if not view.task.writes:
        return
    absent: list[dict[str, Any]] = []
    masked: list[dict[str, Any]] = []
    pairs = list(view.pairs())
    for row, example in pairs:
        last = max((i for i, label in enumerate(example.labels) if label != IGNORED), default=None)
        if last is None or example.truncated or example.labels[last] in view.stop_ids:
            continue
        (masked if view.stop_ids & set(token_ids(example)[last + 1 : last + 4]) else absent).append(row)
    name = getattr(view.tokenizer, "eos_token", None)
    if masked:
        yield finding(
            "eos-masked",
            level_for(len(masked), len(pairs), 0.01),
            f"the end of the answer ({name}) is not learned, so the model would not stop",
            masked,
            "let the labels include the end token; check the chat template and the tokenizer's pad and eos tokens",
            len(pairs),
        )
    if absent:
        yield finding(
            "eos-absent",
            level_for(len(absent), len(pairs), 0.01),
            f"no end token ({name}) follows the answer, so the model would not stop",
            absent,
            "use a chat template that ends each assistant turn, and a tokenizer whose eos_token is the model's",
            len(pairs),
        )


def padding(view: View) -> Iterator[Finding]:
    """Padding a batch hides labels, as a pad token that is also the end token does in many collators."""
    chosen = [example for _, example in view.pairs() if example.labels][:256]
    if not view.task.per_token or not chosen:
        return
    chosen = sorted(chosen, key=lambda example: example.size)
    chosen = [chosen[0], chosen[-1]]
    eos, pad = view.tokenizer.eos_token_id, view.tokenizer.pad_token_id
    batch = view.task.collate(chosen, pad if pad is not None else eos)
    kept = int((batch["labels"] != IGNORED).sum())
    expected = sum(1 for example in chosen for label in example.labels if label != IGNORED)
    shown = int(batch["attention_mask"].sum())
    rows = [view.encoded["train"][i] for i in range(min(2, len(view.encoded["train"])))]
    if kept < expected or shown < sum(example.size for example in chosen):
        yield finding(
            "pad-hides-stop",
            "hard",
            f"padding masks {max(expected - kept, 0)} labels of a batch (pad token {view.tokenizer.pad_token!r}, "
            f"end token {view.tokenizer.eos_token!r})",
            rows,
            "give the tokenizer a pad token of its own",
        )
    elif kept > expected:
        yield finding("pad-trained", "hard", "padding is trained", rows, "mask the labels of padding")


def truncated(view: View) -> Iterator[Finding]:
    """Rows are longer than the model is shown; worse when the answer is cut."""
    pairs = list(view.pairs())
    long = [(row, example) for row, example in pairs if example.truncated]
    if not long:
        return
    fix = view.longer
    cut = []
    if view.schema.writes:
        rows = [row for row, _ in long]
        whole = view.task.encode(rows, view.tokenizer, max_length=WITHOUT_CUT, labels=view.labels)
        # Of a chat whole answers may be beyond the cut.
        cut = [row for (row, part), each in zip(long, whole, strict=True) if _labelled(part) < _labelled(each)]
    if cut:
        yield finding(
            "answer-cut", level_for(len(cut), len(pairs), 0.05), "the answer is cut off", cut, fix, len(pairs)
        )
    if len(long) > len(cut):
        rows = [row for row, _ in long if row not in cut] if len(long) < 2_000 else [row for row, _ in long]
        limited = view.most is not None and view.max_length >= view.most
        level = "soft" if limited or not view.task.per_token or len(long) < 0.5 * len(pairs) else "hard"
        kind = registry.modality(view.task.modality)
        yield finding("truncated", level, f"the {kind.noun} is {kind.cut}", rows, fix, len(pairs))


def double_bos(view: View) -> Iterator[Finding]:
    """The beginning-of-sequence token stands twice: once from the template, once from the tokenizer."""
    bos = getattr(view.tokenizer, "bos_token_id", None)
    pairs = list(view.pairs())
    bad = [row for row, example in pairs if bos is not None and token_ids(example)[:2] == (bos, bos)]
    if bad:
        yield finding(
            "double-bos",
            level_for(len(bad), len(pairs), 0.01),
            f"the text begins with {view.tokenizer.bos_token} twice",
            bad,
            "take the begin token out of the text or the chat template",
            len(pairs),
        )


def chat_template(view: View) -> Iterator[Finding]:
    """The chat template is missing, or was made for another model."""
    if not view.schema.chat:
        return
    template = getattr(view.tokenizer, "chat_template", None)
    if not template:
        yield finding(
            "no-chat-template",
            "hard",
            "the tokenizer has no chat template",
            view.rows.get("train", [])[:3],
            "use the instruction-tuned version of the model, or put a chat_template.jinja into a local copy of it and "
            "name that folder as model",
        )
        return
    text = template if isinstance(template, str) else str(template)
    vocabulary = view.tokenizer.get_vocab()
    foreign = sorted({marker for marker in MARKER.findall(text) if marker not in vocabulary})
    if foreign:
        hard = [marker for marker in foreign if marker in ALWAYS_SPECIAL]
        yield finding(
            "other-chat-template",
            "hard" if hard else "soft",
            f"the chat template uses {', '.join(hard or foreign)}, which this tokenizer does not know: "
            "it was made for another model",
            view.rows.get("train", [])[:3],
            "use the chat template of the base model",
        )


def trained_spans(view: View) -> Iterator[Finding]:
    """What is learned is not the answer: other roles, only some turns, the prompt, or text that decodes differently."""
    if not view.schema.writes:
        return
    faults: dict[str, list[dict[str, Any]]] = defaultdict(list)
    pairs = [(row, example) for row, example in view.pairs() if not example.truncated]
    for row, example in pairs:
        fault = _span_fault(view.schema, row, squeeze(trained_text(example, view.tokenizer)))
        if fault:
            faults[fault].append(row)
    said = {
        "no-response": ("no assistant turn is found", "check the chat template and its response marker"),
        "only-last-turn": ("only the last assistant turn is trained", "use a template that marks every assistant turn"),
        "wrong-role": ("turns of the user are trained", "use a template that marks assistant turns only"),
        "prompt-trained": ("the prompt is trained like the answer", "mask the labels of the prompt"),
        "turns-missing": ("some assistant turns are not trained", "use a template that marks every assistant turn"),
        "round-trip": (
            "the trained tokens do not decode to the answer",
            "check the tokenizer and the template; the model would learn other words than the data has",
        ),
    }
    for fault, rows in faults.items():
        what, fix = said[fault]
        hard_from = 0.2 if fault == "round-trip" else 0.01
        yield finding(fault, level_for(len(rows), len(pairs), hard_from), what, rows, fix, len(pairs))


def _span_fault(schema: RowSchema, row: Mapping[str, Any], learned: str) -> str | None:
    answers = [squeeze(answer) for answer in schema.spelled(row)]
    answers = [answer for answer in answers if answer]
    whole = "".join(answers)
    if not whole or learned == whole:
        return None
    if not learned:
        return "no-response"
    asked = [squeeze(text) for text in schema.asked(row)]
    if schema.chat:
        if any(len(each) > 3 and each in learned and each not in whole for each in asked):
            return "wrong-role"
        if len(answers) > 1 and learned == answers[-1]:
            return "only-last-turn"
        if len(answers) > 1 and any(answer not in learned for answer in answers):
            return "turns-missing"
    elif learned.endswith(whole) and len(learned) > len(whole) and asked[0].endswith(learned[: -len(whole)][-20:]):
        return "prompt-trained"
    # Templates write further words between the answers, such as calls of tools and thoughts.
    place = 0
    for answer in answers:
        place = learned.find(answer, place) + len(answer)
        if place < len(answer):
            return "round-trip"
    return None


def squeeze(text: str) -> str:
    """Text without white space and case, which tokenizers may change."""
    return "".join(text.casefold().split())


def trained_text(example: Example, tokenizer: Any) -> str:
    """The text of the labelled tokens without special tokens."""
    ids = [token for token, label in zip(token_ids(example), example.labels, strict=True) if label != IGNORED]
    return str(tokenizer.decode(ids, skip_special_tokens=True))


def remarks(view: View) -> Iterator[Finding]:
    """What the task has to say of how rows are learned."""
    pairs = list(view.pairs())
    rows = [row for row, _ in pairs[:: -(-len(pairs) // REMARKED_ROWS) or 1]]
    found: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        for each in view.task.remarks(row, view.tokenizer):
            found[each].append(row)
    for each, named in found.items():
        yield finding(each.code, "soft", each.what, named, each.fix, len(rows))


def noticed(view: View) -> Iterator[Finding]:
    """What the task has to say of all training rows together."""
    for each in view.task.noticed([example for _, example in view.pairs()]):
        yield finding(each.code, "soft", each.what, fix=each.fix)


def parted(view: View) -> Iterator[Finding]:
    """One chat or text is learned as several rows."""
    step = view.record.steps.get(STEP) if view.record else None
    if step and view.schema.chat:
        what = f"{step['parted']:,} chats are {step['rows']:,} rows, one for each answer: the chat template changes "
        what += "earlier turns when a turn is added, and each answer is learned after what the model will be shown"
        yield finding("chats-parted", "soft", what, fix="nothing has to be done")
    elif step:
        what = f"{step['parted']:,} long texts are {step['rows']:,} rows of up to {view.max_length:,} tokens"
        yield finding("texts-parted", "soft", what, fix="nothing has to be done")


def unknown_tokens(view: View) -> Iterator[Finding]:
    """The tokenizer does not know the words: another language, or text that is no text."""
    unknown = getattr(view.tokenizer, "unk_token_id", None)
    pairs = list(view.pairs())
    total = sum(example.size for _, example in pairs)
    if unknown is None or not total:
        return
    bad = [row for row, example in pairs if token_ids(example).count(unknown) > 0.2 * example.size]
    share = sum(token_ids(example).count(unknown) for _, example in pairs) / total
    if share > 0.02 and bad:
        yield finding(
            "unknown-tokens",
            # Where most of the tokens are known, as names and numbers among them, there is something to learn from.
            "hard" if share > 0.5 else "soft",
            f"the tokenizer does not know {share:.0%} of the tokens",
            bad,
            "use a model whose tokenizer knows this language",
            len(pairs),
        )


CHECKS: tuple[Check, ...] = (
    chat_template,
    no_labels,
    cut_off,
    stop_token,
    padding,
    truncated,
    double_bos,
    trained_spans,
    remarks,
    noticed,
    parted,
    unknown_tokens,
)
