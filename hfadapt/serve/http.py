"""`hfadapt serve`: a run's adapters over HTTP, all on one resident base (extra `serve`).

The event loop only reads and writes; the model works in the thread of the batcher.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import json
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from pydantic import AliasChoices, BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hfadapt.core import registry
from hfadapt.core.errors import HfadaptError, Problem, RequestError, RunError
from hfadapt.core.show import show_count
from hfadapt.serve import openai
from hfadapt.serve.bank import Bank
from hfadapt.serve.batching import Batcher, Job, Limits, QueueFull, Refused
from hfadapt.serve.work import Answering, Asking, Writing, WritingTexts
from hfadapt.tasks import Answer, Task

ANSWER, WRITE = "answer", "write"
STOP_SECONDS = 300
"""After which a request that is not answered is given up when the server stops."""


class PredictAsked(BaseModel):
    """Body of `/predict`.

    Args:
        domain: One for all inputs, or one for each; may be left out where there is only one.
        inputs: Texts, rows by the recipe's columns, or files in base64. `texts` is another name.
    """

    model_config = ConfigDict(extra="forbid")

    domain: str | list[str] | None = None
    inputs: list[str | dict[str, Any]] = Field(validation_alias=AliasChoices("inputs", "texts"), min_length=1)


class TooLarge(RequestError):
    """More than the server takes in one request."""


class NotHere(RequestError):
    """What is asked for is not served."""


class Server:
    """The routes over one bank."""

    def __init__(self, bank: Bank, limits: Limits, say: Callable[[str], None] = lambda text: None) -> None:
        self.bank, self.limits, self.say = bank, limits, say
        self.task = registry.task(next(iter(bank.adapters.values())).task)
        works: dict[str, Any] = {ANSWER: Answering(bank, limits)}
        if self.task.writes:
            works[WRITE] = WritingTexts(bank, limits)
        self.batcher = Batcher(works, limits)
        self.since = time.time()
        self.answered: Counter[tuple[str, int]] = Counter()
        self.seconds = 0.0
        self.paths: list[str] = []

    # --- routes ------------------------------------------------------------------------------------------------------

    async def predict(self, asked: PredictAsked) -> dict[str, Any]:
        """Answers to texts, rows or files, as `hfadapt predict --json` gives them."""
        self._check_rows(len(asked.inputs))
        names = [asked.domain] * len(asked.inputs) if isinstance(asked.domain, str) else asked.domain
        names = [self._only()] * len(asked.inputs) if names is None else names
        if len(names) != len(asked.inputs):
            got = f"{show_count(len(asked.inputs), 'input')} and {show_count(len(names), 'domain')}"
            raise RequestError("one domain for all inputs, or one for each", place="domain", got=got)
        return await self._answers(names, self._inputs(asked.inputs))

    async def predict_file(self, request: Request, domain: str | None = None) -> dict[str, Any]:
        """The answer to one file, which is the body."""
        if not registry.modality(self.task.modality).suffixes:
            raise NotHere("these adapters read texts, not files", fix="POST /predict")
        return await self._answers([self._only() if domain is None else domain], [await request.body()])

    async def chat(self, asked: openai.ChatAsked) -> Any:
        """The next turn of a chat."""
        return await self._write(asked)

    async def completions(self, asked: openai.TextAsked) -> Any:
        """What follows a text."""
        return await self._write(asked)

    async def embeddings(self, asked: openai.VectorsAsked) -> dict[str, Any]:
        """A vector for each text, each by itself."""
        if not self.task.gives_vectors:
            raise NotHere(f"these adapters make no vectors: their task is {self.task.name}", fix="POST /predict")
        self._check_domain(asked.model)
        texts = asked.texts
        self._check_rows(len(texts))
        self._check_length(texts)
        if asked.input_type == "query":
            each = await asyncio.gather(*(self._asked([asked.model], [text]) for text in texts))
            found = [answers[0] for answers in each]
        else:
            # The first text is read as a query, whose vector is not asked for.
            found = [*await self._asked([asked.model] * (len(texts) + 1), [texts[0], *texts])][1:]
        tokenizer = self.bank.adapter(asked.model).tokenizer
        tokens = sum(map(len, tokenizer(texts, verbose=False)["input_ids"]))
        return openai.vectors(asked, [list(answer.vector or ()) for answer in found], tokens)

    async def models(self) -> dict[str, Any]:
        """The domains."""
        return openai.models(self.bank.adapters, int(self.since))

    async def model(self, name: str) -> dict[str, Any]:
        """One domain."""
        self._check_domain(name)
        return openai.models([name], int(self.since))["data"][0]

    async def health(self) -> dict[str, Any]:
        """That the server answers, and how much waits."""
        counts = self.batcher.counts
        return {
            "status": "ok",
            "task": self.task.name,
            "domains": list(self.bank.adapters),
            "waiting_rows": counts.waiting_rows,
            "seconds": round(time.time() - self.since, 1),
        }

    async def metrics(self) -> PlainTextResponse:
        """Counts since the start, in the format of Prometheus."""
        counts = self.batcher.counts
        lines = [
            f'hfadapt_requests_total{{path="{p}",status="{s}"}} {n}' for (p, s), n in sorted(self.answered.items())
        ]
        lines += [
            f"hfadapt_request_seconds_sum {self.seconds:.6f}",
            f"hfadapt_rows_total {counts.rows}",
            f"hfadapt_batches_total {counts.batches}",
            f"hfadapt_waiting_rows {counts.waiting_rows}",
        ]
        return PlainTextResponse("\n".join(lines) + "\n")

    # --- what they share ---------------------------------------------------------------------------------------------

    async def _answers(self, names: Sequence[str], inputs: Sequence[Any]) -> dict[str, Any]:
        for name in dict.fromkeys(names):
            self._check_domain(name)
        return {"answers": [each.model_dump() for each in await self._asked(names, inputs)]}

    async def _asked(self, names: Sequence[str], inputs: Sequence[Any]) -> Sequence[Answer]:
        job = Job(ANSWER, Asking(names, inputs), len(inputs), alone=self.task.compares)
        found: Sequence[Answer] = await asyncio.wrap_future(self.batcher.put(job))
        return found

    async def _write(self, asked: openai.Asked) -> Any:
        if not self.task.writes:
            raise NotHere(f"these adapters do not write texts: their task is {self.task.name}", fix="POST /predict")
        self._check_domain(asked.model)
        self._check_length([asked.said] if isinstance(asked.said, str) else [str(t) for t in asked.said])
        wanted, reply = openai.writing(asked, self.limits.new_tokens), openai.Reply(asked)
        if not asked.stream:
            return reply.whole(await asyncio.wrap_future(self.batcher.put(Job(WRITE, wanted))))
        pieces: asyncio.Queue[str | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        wanted.tell = lambda text: _tell(loop, pieces, text)
        done = asyncio.wrap_future(self.batcher.put(Job(WRITE, wanted)))
        done.add_done_callback(lambda _: pieces.put_nowait(None))
        first = await pieces.get()
        if first is None and done.exception() is not None:
            # Nothing was sent yet, and the status can still say it.
            done.result()
        return StreamingResponse(self._stream(reply, wanted, pieces, done, first), media_type="text/event-stream")

    async def _stream(
        self,
        reply: openai.Reply,
        wanted: Writing,
        pieces: asyncio.Queue[str | None],
        done: asyncio.Future[Any],
        piece: str | None,
    ) -> AsyncIterator[str]:
        try:
            while piece is not None:
                yield reply.piece(piece)
                piece = await pieces.get()
            error = done.exception()
            yield openai.event(_body(error)[1]) if error is not None else reply.last(done.result())
        finally:
            # Whoever hangs up early needs no more of it.
            wanted.given_up = True

    def _only(self) -> str:
        if len(self.bank.adapters) > 1:
            allowed = ", ".join(self.bank.adapters)
            raise RequestError("the request does not say which domain", place="domain", allowed=allowed, fix="name one")
        return next(iter(self.bank.adapters))

    def _check_domain(self, name: str) -> None:
        try:
            self.bank.adapter(name)
        except RequestError as error:
            raise NotHere(error.what, problems=error.problems) from None

    def _check_rows(self, count: int) -> None:
        if count > self.limits.request_rows:
            raise TooLarge(
                "too many inputs in one request",
                place="inputs",
                got=f"{count:,}",
                allowed=f"{self.limits.request_rows:,}",
                fix="send them in several requests",
            )

    def _check_length(self, texts: Sequence[str]) -> None:
        longest = max(map(len, texts))
        if longest > self.limits.text_characters:
            raise TooLarge(
                "a text is too long",
                got=f"{longest:,} characters",
                allowed=f"{self.limits.text_characters:,}",
                fix="shorten it, or send it in parts",
            )

    def _inputs(self, inputs: Sequence[str | dict[str, Any]]) -> list[Any]:
        """Texts and rows as they are; files out of base64. A string never names a file on this machine."""
        kind = registry.modality(self.task.modality)
        if not kind.suffixes:
            self._check_length([str(each) for each in inputs])
            return list(inputs)
        found = []
        for number, each in enumerate(inputs):
            try:
                if not isinstance(each, str):
                    raise ValueError("an object")
                found.append(base64.b64decode(each.rpartition(",")[2], validate=True))
            except (ValueError, binascii.Error) as error:
                allowed = f"{kind.nouns} in base64, or one as the body of POST /predict/file"
                raise RequestError(
                    "an input is no file", place=f"inputs.{number}", got=str(error), allowed=allowed
                ) from None
        return found


def _tell(loop: asyncio.AbstractEventLoop, pieces: asyncio.Queue[str | None], text: str) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody listens
        loop.call_soon_threadsafe(pieces.put_nowait, text)


# --- errors ----------------------------------------------------------------------------------------------------------


def _body(error: BaseException) -> tuple[int, dict[str, Any]]:
    """Status and body of an error."""
    kinds = ((TooLarge, 413, None), (NotHere, 404, "not_found"), (QueueFull, 429, "queue_full"), (Refused, 503, None))
    for kind, status, code in kinds:
        if isinstance(error, kind):
            return status, openai.fault(str(error), status, code)
    if isinstance(error, RequestError):
        return 400, openai.fault(str(error), 400, param=error.problems[0].place)
    if isinstance(error, HfadaptError):
        return 500, openai.fault(str(error), 500)
    return 500, openai.fault("the server failed on this request; its log says why", 500)


WORKS = {
    "/predict": '{"inputs": ["a text"]}, with "domain": "NAME" where there are several',
    "/v1/chat/completions": '{"model": "DOMAIN", "messages": [{"role": "user", "content": "a text"}]}',
    "/v1/completions": '{"model": "DOMAIN", "prompt": "a text"}',
    "/v1/embeddings": '{"model": "DOMAIN", "input": ["a text"]}',
}
"""Bodies that work, by route."""
OF_SEVERAL = '{"inputs": ["a query", "a text"]}, with "domain": "NAME" where there are several'
"""What works of the first, where texts are compared with a query."""
OF_FILES = '{"inputs": ["BASE64"]}, with "domain": "NAME" where there are several, or the file alone to /predict/file'
"""What works of the first, where what is asked about are files."""


def _wrong_body(error: RequestValidationError, path: str, task: Task) -> str:
    first = (
        OF_FILES if registry.modality(task.modality).suffixes else OF_SEVERAL if task.compares else WORKS["/predict"]
    )
    works = {**WORKS, "/predict": first}
    if not isinstance(error.body, dict):
        return str(_no_object(error, works.get(path, "a JSON object")))
    wanted: dict[str, list[Mapping[str, Any]]] = {}
    for each in error.errors():
        # Within the place in the body stands which of several types was tried.
        place = [str(part) for part in each["loc"][1:] if not str(part).startswith(TRIED)]
        wanted.setdefault(".".join(place), []).append(each)
    # Of what is wrong as a whole the parts say nothing more.
    wanted = {place: own for place, own in wanted.items() if not any(place.startswith(f"{whole}.") for whole in wanted)}
    problems = [_problem(place, own) for place, own in wanted.items()]
    return "\n".join([*map(str, problems), *([f"  a body that works: {works[path]}"] if path in works else [])])


TRIED = ("str", "dict[", "list[")
"""How pydantic calls a type of several."""
KINDS = {
    "string_type": "a text",
    "dict_type": "an object",
    "list_type": "a list",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
}
FAULTS = {"missing": "this is missing", "extra_forbidden": "there is no such field", "too_short": "the list is empty"}


def _problem(place: str, errors: Sequence[Mapping[str, Any]]) -> Problem:
    """What is wrong at a place of a body, as whoever wrote the body calls it."""
    kinds = [KINDS.get(each["type"]) for each in errors]
    if all(kinds):
        got = json.dumps(errors[0]["input"], ensure_ascii=False)[:80]
        return Problem(f"{' or '.join(dict.fromkeys(map(str, kinds)))} is expected", place or None, got=got)
    what = FAULTS.get(errors[0]["type"]) or str(errors[0]["msg"]).removeprefix("Value error, ")
    return Problem(what[:1].lower() + what[1:], place or None)


def _no_object(error: RequestValidationError, works: str) -> Problem:
    """What a body is instead of a JSON object: another value, broken JSON, or not sent as JSON."""
    names = {list: "a list", bool: "true or false", int: "a number", float: "a number", type(None): "nothing, or null"}
    broken = [str(each.get("ctx", {}).get("error", "")) for each in error.errors() if each["type"] == "json_invalid"]
    got = f"broken JSON: {broken[0]}" if broken else names.get(type(error.body), "text")
    return Problem(
        "the body is no JSON object", got=got, fix=f"send {works}; and the header Content-Type: application/json"
    )


class Door:
    """Counts what goes in and out, and refuses bodies that are too large before they are in memory."""

    def __init__(self, app: ASGIApp, server: Server) -> None:
        self.app, self.server = app, server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request of ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        most, start = self.server.limits.body_bytes, time.perf_counter()
        length = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
        seen, status = 0, 500

        async def bounded() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if max(seen, int(length) if length.isdigit() else 0) > most:
                raise HTTPException(413, f"the request is too large\n  allowed: {most:,} bytes")
            return message

        async def noted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self.app(scope, bounded, noted)
        finally:
            path = scope["path"] if scope["path"] in self.server.paths else "other"
            self.server.answered[path, status] += 1
            self.server.seconds += time.perf_counter() - start


def make_app(server: Server) -> FastAPI:
    """The routes, limits and errors."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(server.batcher.close)

    app = FastAPI(title="hfadapt", lifespan=lifespan)
    app.post("/predict")(server.predict)
    app.post("/predict/file")(server.predict_file)
    app.post("/v1/chat/completions")(server.chat)
    app.post("/v1/completions")(server.completions)
    app.post("/v1/embeddings")(server.embeddings)
    app.get("/v1/models")(server.models)
    app.get("/v1/models/{name}")(server.model)
    app.get("/health")(server.health)
    app.get("/metrics")(server.metrics)
    server.paths = sorted(path for route in app.routes if (path := getattr(route, "path", None)))

    async def failed(request: Request, error: Exception) -> JSONResponse:
        status, body = _body(error)
        return JSONResponse(body, status, headers={"Retry-After": "1"} if status in (429, 503) else None)

    async def wrong(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return JSONResponse(openai.fault(_wrong_body(error, request.url.path, server.task), 400), 400)

    async def refused(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        what = str(error.detail)
        if error.status_code == 405:
            what = (
                f"{request.url.path} is asked with {(error.headers or {}).get('allow', 'POST')}, not {request.method}"
            )
        if error.status_code == 404:
            what = f"there is nothing at {request.url.path}\n  allowed: {', '.join(server.paths)}"
        return JSONResponse(openai.fault(what, error.status_code), error.status_code, headers=error.headers)

    for kind, handler in (
        (HfadaptError, failed),
        (Exception, failed),
        (RequestValidationError, wrong),
        (HTTPException, refused),
    ):
        app.add_exception_handler(kind, handler)
    app.add_middleware(Door, server=server)
    return app


# --- the process -----------------------------------------------------------------------------------------------------


def listening(host: str, port: int) -> socket.socket:
    """A socket at an address; port 0 takes a free one.

    Raises:
        RequestError: it cannot be had.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, socket.SOCK_STREAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except (OSError, OverflowError) as error:
        raise RequestError(
            "the server cannot listen there",
            place="--host, --port",
            got=f"{host}:{port}: {getattr(error, 'strerror', None) or error}",
            fix="choose another with --port, 0 for any that is free, or end what listens there",
        ) from None
    return found


def serve(bank: Bank, at: socket.socket, limits: Limits, say: Callable[[str], None]) -> None:
    """Answers until SIGTERM or Ctrl-C; then finishes what was asked, and refuses the rest. A second Ctrl-C ends it.

    Raises:
        RunError: the server ended by itself.
    """
    server = Server(bank, limits, say)
    host, port = at.getsockname()[:2]
    config = uvicorn.Config(
        make_app(server), log_level="warning", access_log=False, timeout_graceful_shutdown=STOP_SECONDS
    )
    program = uvicorn.Server(config)
    shown = f"[{host}]" if ":" in host else host
    files = bool(registry.modality(server.task.modality).suffixes)
    routes = "/v1/chat/completions, /v1/completions, /predict" if server.task.writes else "/predict"
    routes += ", /predict/file" if files else ", /v1/embeddings" if server.task.gives_vectors else ""
    # From here on nobody is turned away, whoever reads the line.
    at.listen(config.backlog)
    say(f"{show_count(len(bank.adapters), 'domain')} on one base at http://{shown}:{port} ({routes}); Ctrl-C stops")
    # uvicorn raises the signal that stopped it again when all is done.
    with contextlib.suppress(KeyboardInterrupt):
        program.run(sockets=[at])
    if not program.started:
        raise RunError("the server did not start", place=f"{shown}:{port}")
    say(f"stopped after {show_count(sum(server.answered.values()), 'request')}")
