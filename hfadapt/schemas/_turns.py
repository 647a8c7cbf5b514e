"""Turns of chats in the shapes that people store them in, brought to one.

A turn has `role` and `content`, both texts. `more` is a JSON object of the further keys that a chat template may show
(`tool_calls`, `reasoning_content`, `name` …), and `trained` is False where an answer is not to be learned. Both are
left out where there is nothing to say.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping
from typing import Any

from hfadapt.schemas import Unusable, plain

Turn = dict[str, Any]

ROLES = {role: role for role in ("system", "developer", "user", "assistant", "tool")}
ROLES.update({"human": "user", "prompter": "user"})
ROLES.update(dict.fromkeys(("gpt", "bot", "model", "chatgpt", "ai", "function_call"), "assistant"))
ROLES.update(dict.fromkeys(("function", "ipython", "observation", "tool_response", "function_response"), "tool"))
CALLS = "function_call"
"""The role, and in OpenAI's older format the key, of what an assistant calls instead of an answer in words."""

_ROLE, _CONTENT = ("role", "from"), ("content", "value", "parts")
_LISTS = ("messages", "conversations", "conversation", "contents")
_WEIGHTS = ("weight", "train", "trainable", "training", "loss", "loss_weight")
_ON, _OFF = (1, "1", "true", "True"), (0, "0", "false", "False")
_TEXTS = {"refusal": ("refusal",), **dict.fromkeys(("text", "input_text", "output_text"), ("text", "value", "content"))}
"""Where the text of a part stands, by the part's type; LLaMA-Factory's v1 calls it `value`."""
_PARTS_OF_THOUGHT = ("thinking", "reasoning")
THOUGHTS = ("reasoning_content", *_PARTS_OF_THOUGHT)
"""Keys of what an assistant thought before it answered, the most usual first."""


def turns_of(value: Any) -> list[Turn]:
    """The turns of a chat: a list of objects, an object that holds the list, one turn alone, or these as JSON text.

    Raises:
        Unusable: it cannot be read, or has a part that is no text.
    """
    value = decoded(value, "messages")
    if isinstance(value, Mapping):
        lists = (value[name] for name in _LISTS if isinstance(value.get(name), list))
        value = next(lists, [value] if any(name in value for name in _ROLE) else value)
    if not isinstance(value, (list, tuple)):
        raise _wrong(f"messages hold {_kind(value)}, not a list of turns")
    return [each for at, one in enumerate(value, 1) for each in _turn(decoded(one, f"turn {at}"), f"turn {at}")]


def decoded(value: Any, place: str) -> Any:
    """What a text says in JSON, or as Python prints it; any other value as it is. Raises Unusable for other text."""
    if not isinstance(value, str):
        return value
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(found, (list, dict)):
            return found
    raise _wrong(f"{place} is text that is no JSON: {value[:60]!r}")


def text_of(value: Any, place: str) -> str:
    """The text of a content: as it is, in parts, or in an object with these. Raises Unusable where it is none."""
    if isinstance(value, Mapping):
        value = next((value[name] for name in _CONTENT if value.get(name) is not None), value)
    return _parts(value, {}, place)[0]


def tools_of(value: Any) -> str | None:
    """A list of tools, in OpenAI's shape, as JSON text; None where there are none."""
    found = _without_null(decoded(value, "tools")) if value else None
    if not found:
        return None
    tools = found if isinstance(found, list) else [found]
    whole = [{"type": "function", "function": each} if _bare(each) else each for each in tools]
    return json.dumps(whole, ensure_ascii=False)


def _bare(tool: Any) -> bool:
    return isinstance(tool, Mapping) and "name" in tool and "function" not in tool and "type" not in tool


def _turn(value: Any, place: str) -> Iterator[Turn]:
    """One turn; several where the results of tools are parts of it."""
    if not isinstance(value, Mapping):
        raise _wrong(f"{place} is {_kind(value)}, not an object of role and content")
    more = {str(key): each for key, each in value.items() if each is not None and each not in ([], {}, "")}
    role = next((more.pop(name) for name in _ROLE if name in more), None)
    content = next((value[name] for name in _CONTENT if value.get(name) is not None), None)
    more = {key: each for key, each in more.items() if key not in _CONTENT}
    if role is None:
        raise _wrong(f"{place} has no role, only {', '.join(value)}")
    name = str(role).strip().lower()
    if name not in ROLES:
        raise _wrong(f"{place} has the unknown role {role!r}; allowed: {', '.join(ROLES)}")
    if name == CALLS:
        content, more["tool_calls"] = None, decoded(content, place)
    if CALLS in more:
        more.setdefault("tool_calls", more.pop(CALLS))
    if "tool_calls" in more:
        more["tool_calls"] = _calls(decoded(more["tool_calls"], f"tool_calls of {place}"), place)
    own, results = _parts(content, more, f"{place} ({role})")
    # In Python, 1 == True and 0 == False.
    switches = {key: more.pop(key) for key in _WEIGHTS if key in more and more[key] in (*_ON, *_OFF)}
    if ROLES[name] != "assistant":
        # A turn that is no answer is not learned, whatever its switch says; one that asks for it is kept, to be named.
        more.update({key: switch for key, switch in switches.items() if switch in _ON})
    yield from results
    if results and not own.strip():
        return
    if content is None and not any(key in more for key in ("tool_calls", *THOUGHTS)):
        raise _wrong(f"{place} ({role}) has no content" + (f", only {', '.join(more)}" if more else ""))
    turn: Turn = {"role": ROLES[name], "content": own}
    if more:
        turn["more"] = json.dumps(more, ensure_ascii=False, default=str)
    if ROLES[name] == "assistant" and any(switch in _OFF for switch in switches.values()):
        turn["trained"] = False
    yield turn


def _parts(content: Any, more: dict[str, Any], place: str) -> tuple[str, list[Turn]]:
    """The text of a content, and turns of tools' results among its parts; thoughts and calls go to `more`."""
    if content is None:
        return "", []
    if isinstance(content, Mapping) and not ("type" in content or "text" in content):
        return json.dumps(content, ensure_ascii=False, default=str), []
    if not isinstance(content, (Mapping, list, tuple)):
        return plain(content), []
    texts: list[str] = []
    results: list[Turn] = []
    for part in [content] if isinstance(content, Mapping) else content:
        if not isinstance(part, Mapping):
            texts.append(plain(part))
            continue
        kind = str(part.get("type") or "text")
        written = next((part[key] for key in _TEXTS.get(kind, ()) if isinstance(part.get(key), str)), None)
        if written is not None:
            texts.append(written)
        elif kind in _PARTS_OF_THOUGHT:
            thought = next((part[key] for key in (kind, "text") if isinstance(part.get(key), str)), "")
            more["reasoning_content"] = "\n".join(filter(None, (more.get("reasoning_content"), thought)))
        elif isinstance(call := part.get("functionCall"), Mapping):
            own = {"name": call.get("name"), "arguments": call.get("args") or {}}
            more["tool_calls"] = [*more.get("tool_calls", ()), *_calls([own], place)]
        elif isinstance(said := part.get("functionResponse"), Mapping):
            answer = json.dumps(said.get("response"), ensure_ascii=False, default=str)
            results.append({"role": "tool", "content": answer, "more": json.dumps({"name": said.get("name")})})
        elif kind == "tool_use":
            call = {"id": part.get("id"), "name": part.get("name"), "arguments": part.get("input")}
            more["tool_calls"] = [*more.get("tool_calls", ()), *_calls([call], place)]
        elif kind == "tool_result":
            result, _ = _parts(part.get("content"), {}, place)
            key = {"tool_call_id": part["tool_use_id"]} if part.get("tool_use_id") else {}
            results.append({"role": "tool", "content": result, **({"more": json.dumps(key)} if key else {})})
        elif kind in _TEXTS:
            raise _wrong(f"{place} has a part of type {kind} without a text, only {', '.join(map(str, part))}")
        else:
            raise Unusable("not-text", f": {place} has a part of type {kind}, and only text is learned")
    return "\n".join(texts), results


def _calls(value: Any, place: str) -> list[dict[str, Any]]:
    """Calls of tools in OpenAI's shape, arguments as an object where they are one."""
    found = []
    for call in value if isinstance(value, (list, tuple)) else [value]:
        one = decoded(call, f"a tool call of {place}")
        function = one.get("function", one) if isinstance(one, Mapping) else None
        if not isinstance(function, Mapping) or not function.get("name"):
            raise _wrong(f"a tool call of {place} has no function with a name: {str(one)[:80]}")
        arguments = function.get("arguments", function.get("parameters", {}))
        if isinstance(arguments, str):
            try:
                read = json.loads(arguments)
            except ValueError:
                read = None
            arguments = read if isinstance(read, dict) else arguments
        else:
            arguments = _without_null(arguments)
        key = {"id": one["id"]} if one.get("id") else {}
        found.append({"type": "function", **key, "function": {"name": str(function["name"]), "arguments": arguments}})
    return found


def _without_null(value: Any) -> Any:
    """Without the keys that a table of columns adds to objects that lack them."""
    if isinstance(value, Mapping):
        return {str(key): _without_null(each) for key, each in value.items() if each is not None}
    return [_without_null(each) for each in value] if isinstance(value, (list, tuple)) else value


def _kind(value: Any) -> str:
    names = {str: "text", dict: "an object", list: "a list", type(None): "nothing"}
    return names.get(type(value), "a number" if isinstance(value, (int, float)) else type(value).__name__)


def _wrong(what: str) -> Unusable:
    return Unusable("wrong-messages", f": {what}")
