"""The shapes of OpenAI's API: what is asked for, what is answered, and how errors look."""

from __future__ import annotations

import base64
import json
import struct
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hfadapt.core.errors import RequestError
from hfadapt.serve.work import Writing, Written

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "top_k": (0, -1),
    "min_p": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
}
"""What changes an answer and is not done here, with the values that ask for nothing."""
LAST = "data: [DONE]\n\n"
MOST_STOPS = 16


class _Asked(BaseModel):
    """What both routes have in common. Further fields, such as `user`, change nothing."""

    model_config = ConfigDict(extra="allow", frozen=True)

    model: str
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 63)
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _only_what_is_done(self) -> Self:
        for name, values in NEUTRAL.items():
            said = (self.model_extra or {}).get(name)
            if said is not None and said not in values:
                raise ValueError(f"`{name}` is not done by this server; leave it out")
        if not all(self.stops) or len(self.stops) > MOST_STOPS:
            raise ValueError(f"`stop` takes up to {MOST_STOPS} texts, none of them empty")
        return self

    @property
    def stops(self) -> list[str]:
        """The texts that end the answer."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with what it took."""
        return bool((self.stream_options or {}).get("include_usage"))


class ChatAsked(_Asked):
    """Body of `/v1/chat/completions`. Without a temperature the likeliest token is taken."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)

    @property
    def said(self) -> list[dict[str, Any]]:
        """The chat."""
        return self.messages

    @property
    def tokens(self) -> int | None:
        """How many are wanted."""
        return self.max_completion_tokens or self.max_tokens


class TextAsked(_Asked):
    """Body of `/v1/completions`: the prompt is continued as it stands, without the recipe's template."""

    prompt: str | list[str]

    @property
    def said(self) -> str:
        """The prompt. Raises RequestError for several."""
        prompts = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        if len(prompts) != 1:
            raise RequestError(
                "one prompt is continued", place="prompt", got=f"{len(prompts)} of them", fix="send a request for each"
            )
        return prompts[0]

    @property
    def tokens(self) -> int | None:
        """How many are wanted."""
        return self.max_tokens


class VectorsAsked(BaseModel):
    """Body of `/v1/embeddings`. Beside OpenAI's fields, `input_type` says how bases read a text that tell queries from
    documents."""

    model_config = ConfigDict(extra="allow", frozen=True)

    model: str
    input: str | list[str]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    input_type: Literal["query", "document"] = "document"

    @property
    def texts(self) -> list[str]:
        """The texts. Raises RequestError where there are none."""
        found = [self.input] if isinstance(self.input, str) else self.input
        if not found or not all(found):
            raise RequestError("there is nothing to make a vector of", place="input", got=json.dumps(found)[:80])
        return found


Asked = ChatAsked | TextAsked


def writing(asked: Asked, most: int) -> Writing:
    """What is to be written.

    Args:
        most: Tokens that may be asked for.

    Raises:
        RequestError: it asks for more.
    """
    if (asked.tokens or 0) > most:
        raise RequestError(
            "that many tokens may not be asked for",
            place="max_tokens",
            got=f"{asked.tokens:,}",
            allowed=f"{most:,}",
            fix="ask for fewer, or start the server with a larger --max-tokens",
        )
    return Writing(
        asked.model,
        asked.said,
        asked.tokens,
        asked.temperature or 0.0,
        1.0 if asked.top_p is None else asked.top_p,
        asked.seed,
        asked.stops,
        bare=isinstance(asked, ChatAsked),
    )


class Reply:
    """What is sent back for one request: whole, or in the pieces of a stream."""

    def __init__(self, asked: Asked) -> None:
        self.asked, self.chat = asked, isinstance(asked, ChatAsked)
        self.id = f"{'chatcmpl' if self.chat else 'cmpl'}-{uuid.uuid4().hex}"
        self.created = int(time.time())
        self.begun = False

    def whole(self, written: Written) -> dict[str, Any]:
        """The answer in one piece."""
        said = {"message": {"role": "assistant", "content": written.text}} if self.chat else {"text": written.text}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": written.reason}
        return {**self._head(""), "choices": [choice], "usage": _usage(written)}

    def piece(self, text: str) -> str:
        """An event of a stream: some more text."""
        return self._event(text, None)

    def last(self, written: Written) -> str:
        """The events that end a stream."""
        end = self._event("", written.reason)
        if self.asked.with_usage:
            end += _line({**self._head(".chunk"), "choices": [], "usage": _usage(written)})
        return end + LAST

    def _event(self, text: str, reason: str | None) -> str:
        said: dict[str, Any] = {"text": text}
        if self.chat:
            role = {} if self.begun else {"role": "assistant"}
            said = {"delta": {**role, **({"content": text} if text or role else {})}}
        self.begun = True
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": reason}
        return _line({**self._head(".chunk"), "choices": [choice]})

    def _head(self, part: Literal["", ".chunk"]) -> dict[str, Any]:
        kind = f"chat.completion{part}" if self.chat else "text_completion"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.asked.model}


def vectors(asked: VectorsAsked, found: Sequence[Sequence[float]], tokens: int) -> dict[str, Any]:
    """The answer of `/v1/embeddings`.

    Args:
        tokens: Of all texts.

    Raises:
        RequestError: other dimensions are asked for than the vectors have.
    """
    if asked.dimensions not in (None, len(found[0])):
        raise RequestError(
            "vectors are not shortened",
            place="dimensions",
            got=str(asked.dimensions),
            allowed=str(len(found[0])),
            fix="leave it out",
        )
    data = [
        {
            "object": "embedding",
            "index": number,
            "embedding": _packed(row) if asked.encoding_format == "base64" else row,
        }
        for number, row in enumerate(found)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": asked.model, "usage": usage}


def _packed(vector: Sequence[float]) -> str:
    """Float32, the lowest byte first, in base64."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def models(domains: Iterable[str], since: int) -> dict[str, Any]:
    """The answer of `/v1/models`."""
    data = [{"id": name, "object": "model", "created": since, "owned_by": "hfadapt"} for name in domains]
    return {"object": "list", "data": data}


def fault(message: str, status: int, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """The body of an error."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    kind = "rate_limit_error" if status == 429 else kind
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def event(body: Mapping[str, Any]) -> str:
    """An error in the middle of a stream."""
    return _line(body)


def _usage(written: Written) -> dict[str, int]:
    both = written.prompt_tokens + written.completion_tokens
    return {
        "prompt_tokens": written.prompt_tokens,
        "completion_tokens": written.completion_tokens,
        "total_tokens": both,
    }


def _line(body: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"
