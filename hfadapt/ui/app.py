"""`hfadapt ui`: pages over the records of a folder of runs, for one person on this machine (extra `ui`).

Only 127.0.0.1 is listened on. Whoever has not the token of the address sees nothing, a name other than this machine's
own is refused (a page elsewhere could let its name point here), and so is what another page sends. The pages load
nothing from anywhere else.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from socket import socket
from typing import Annotated, Any
from urllib.parse import parse_qs, quote, urlsplit

import uvicorn
from fastapi import Depends, FastAPI, Request
from fastapi.responses import FileResponse, HTMLResponse, PlainTextResponse, RedirectResponse, Response
from markupsafe import Markup
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from hfadapt.core import registry, resources
from hfadapt.core.errors import HfadaptError, RequestError
from hfadapt.core.progress import quiet_libraries
from hfadapt.hardware import catalogue
from hfadapt.report import svg
from hfadapt.run_folder import CARD, Cell
from hfadapt.ui import live, views
from hfadapt.ui.beside import Beside, Pair
from hfadapt.ui.chat import Conversation, chats, system_of

HOST = "127.0.0.1"
HERE = Path(__file__).parent / "templates"
MOST_BYTES = 64 << 20
"""Of one request: a sound or a picture."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' blob:; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Door:
    """Lets in who has the token, under this machine's own name.

    Args:
        port: Where the server listens.
        token: The secret of the address that was printed.
    """

    def __init__(self, app: ASGIApp, port: int, token: str) -> None:
        self.app, self.token = app, token
        self.hosts = {f"{name}:{port}" for name in (HOST, "localhost")}
        self.cookie = f"hfadapt-ui-{port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request of ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope)
        given = request.query_params.get("token", "")
        if (refused := self._refusal(request)) is not None:
            answer: Response = PlainTextResponse(refused, 403, headers=HEADERS)
        elif self._same(given):
            # The address in the history and in what is copied from it has no token any more.
            answer = RedirectResponse(quote(request.url.path), 303, headers=HEADERS)
            answer.set_cookie(self.cookie, self.token, httponly=True, samesite="lax")
        elif not self._same(request.cookies.get(self.cookie, "")):
            answer = PlainTextResponse(
                "Open the address that hfadapt ui printed in the terminal, with its token.", 403, headers=HEADERS
            )
        else:
            await self.app(scope, receive, _with_headers(send))
            return
        await answer(scope, receive, send)

    def _same(self, given: str) -> bool:
        return secrets.compare_digest(given.encode(), self.token.encode())

    def _refusal(self, request: Request) -> str | None:
        if request.headers.get("host") not in self.hosts:
            return f"This is served as {' or '.join(sorted(self.hosts))} only."
        origin = request.headers.get("origin")
        foreign = origin is not None and urlsplit(origin).netloc not in self.hosts
        if request.method not in ("GET", "HEAD") and (foreign or origin is None):
            return "Only these pages themselves may ask for this."
        return None


def _with_headers(send: Send) -> Send:
    async def sent(message: Any) -> None:
        if message["type"] == "http.response.start":
            own = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
            message = {**message, "headers": [*message["headers"], *own]}
        await send(message)

    return sent


async def fields(request: Request) -> dict[str, str]:
    """The fields of a form that was sent."""
    body = await bounded(request)
    return {name: values[-1] for name, values in parse_qs(body.decode("utf-8", "replace")).items()}


async def bounded(request: Request) -> bytes:
    """The body of a request, which is not too large."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MOST_BYTES:
            raise HTTPException(413, f"the file is too large: {MOST_BYTES >> 20} MiB are taken")
    return body


Form = Annotated[dict[str, str], Depends(fields)]
Body = Annotated[bytes, Depends(bounded)]


class Pages:
    """The routes over a folder of runs.

    Args:
        runs: The folder of runs.
        folder: Where recipes are, and where relative names of folders begin.
    """

    def __init__(self, runs: Path, folder: Path) -> None:
        self.runs, self.folder = runs.absolute(), folder.absolute()
        self.beside = Beside()
        self.live = live.Live(self.runs, self.folder)

    def page(self, template: str, title: str, **what: Any) -> HTMLResponse:
        """A page by its template."""
        made = resources.templates(HERE, html=True).get_template(f"{template}.html.j2")
        status = what.pop("status", 200)
        shown = made.render(title=title, busy=self.live.busy, runs_folder=self.runs, **what)
        return HTMLResponse(shown, status)

    # --- records -----------------------------------------------------------------------------------------------------

    def home(self) -> Response:
        """The runs of the folder, and what can be started."""
        runs = [views.run_line(name, run) for name, run in views.runs_of(self.runs).items()]
        return self.page(
            "home", "Runs", runs=runs, recipes=live.recipes(self.folder), folder=self.folder, last=self.live.last
        )

    def run(self, name: str) -> Response:
        """The matrix of a run."""
        run = views.found_run(self.runs, name)
        recipes = [each for each in live.recipes(self.folder) if each.name == name]
        report = (run.folder / "report.html").exists()
        return self.page("run", name, name=name, cells=views.matrix(run), report=report, recipes=recipes)

    def report(self, name: str) -> Response:
        """report.html as it is."""
        return self._file(views.found_run(self.runs, name).folder / "report.html", "text/html")

    def card(self, name: str, domain: str, target: str) -> Response:
        """A cell's card, to which the report leads."""
        return self._file(views.found_cell(self.runs, name, domain, target).folder / CARD, "text/plain")

    def _file(self, path: Path, kind: str) -> Response:
        if not path.exists():
            raise views.Missing("this is not written yet", place=str(path), fix="wait for the run to end")
        return FileResponse(path, media_type=f"{kind}; charset=utf-8")

    def cell(self, name: str, domain: str, target: str) -> Response:
        """A cell: its worst errors, and what can be done with it."""
        cell = views.found_cell(self.runs, name, domain, target)
        return self._cell(cell, name)

    def _cell(self, cell: Cell, name: str, **more: Any) -> Response:
        lines = [each for each in views.matrix(views.found_run(self.runs, name)) if each["domain"] == cell.domain]
        found = {
            "line": next(each for each in lines if each["target"] == cell.target),
            "errors": views.worst_errors(cell),
            "targets": catalogue.names() if cell.planned else (),
            "target": cell.target,
            "chosen": cell.target,
            "formats": views.formats_of(cell) if cell.planned else (),
            "to": f"exports/{name}-{cell.domain}",
            "card": (cell.folder / CARD).exists(),
            "noun": registry.modality_of(cell.lock.task).noun if cell.planned else "row",
        }
        return self.page("cell", f"{name}: {cell.domain} on {cell.target}", name=name, cell=cell, **(found | more))

    # --- questions ---------------------------------------------------------------------------------------------------

    def ask_page(self, name: str, domain: str, target: str, row: int | None = None) -> Response:
        """Where both are asked; with a test row chosen."""
        return self._ask(views.found_cell(self.runs, name, domain, target), name, row=row)

    def ask(self, name: str, domain: str, target: str, said: Form) -> Response:
        """What both say of a text, or of a test row."""
        cell = views.found_cell(self.runs, name, domain, target)
        if "row" in said:
            number = int(said["row"]) if said["row"].isdecimal() else -1
            (view,) = views.listed_rows(cell, [number])
            raw = views.raw_row(cell, number)
            if chats(cell):
                conversation = self.beside.answer(cell, Conversation.of_row(raw))
                return self._ask(cell, name, view=view, row=number, conversation=conversation)
            return self._ask(cell, name, view=view, row=number, pairs=self.beside.ask_row(cell, raw))
        text = said.get("text", "").strip()
        if not text:
            raise RequestError("there is no text to ask about", fix="type one")
        if chats(cell):
            told = Conversation.sent(said.get("conversation", "")).told(text, said.get("system", "").strip())
            return self._ask(cell, name, conversation=self.beside.answer(cell, told))
        # Tasks that compare texts are asked about several, a line each.
        values = [line for line in text.splitlines() if line.strip()] if self._task(cell).compares else [text]
        return self._ask(cell, name, text=text, pairs=self.beside.ask(cell, values))

    def ask_file(self, name: str, domain: str, target: str, body: Body) -> Response:
        """What both say of a file, as a part of the page."""
        cell = views.found_cell(self.runs, name, domain, target)
        if not registry.modality(self._task(cell).modality).suffixes:
            raise RequestError("these adapters read texts, not files", fix="type a text")
        pairs: list[Pair] = self.beside.ask(cell, [body])
        return self.page("answers", "Answers", pairs=pairs, baseline=self._task(cell).baseline)

    def row_file(self, name: str, domain: str, target: str, row: int) -> Response:
        """The sound of a test row, to be played."""
        cell = views.found_cell(self.runs, name, domain, target)
        schema = registry.schema(cell.data.form)
        played_as = registry.modality(schema.modality).played_as
        if not played_as:
            raise views.Missing("these rows are not played", place=name, fix="look at them on the page")
        return Response(bytes(views.raw_row(cell, row)[schema.media]), media_type=played_as)

    def _task(self, cell: Cell) -> Any:
        return registry.task(cell.lock.task)

    def _ask(self, cell: Cell, name: str, **more: Any) -> Response:
        task = self._task(cell)
        kind = registry.modality(task.modality)
        found = {
            "files": bool(kind.suffixes),
            "kind": kind,
            "compares": task.compares,
            "baseline": task.baseline,
            "rows": views.listed_rows(cell),
            "chats": chats(cell),
            "conversation": Conversation(),
            **{"view": None, "row": None, "text": "", "pairs": []},
        }
        if found["chats"]:
            found["system"] = system_of(cell.read_split("test"))
        return self.page("ask", f"{name}: ask {cell.domain}", name=name, cell=cell, **(found | more))

    # --- plan, export, runs ------------------------------------------------------------------------------------------

    def plan(self, name: str, domain: str, target: str, to: str) -> Response:
        """The plan for another target."""
        cell = views.found_cell(self.runs, name, domain, target)
        shown = views.framed(views.plan_for(cell, to).blocks(why=True))
        return self._cell(cell, name, plan=shown, chosen=to)

    def export(self, name: str, domain: str, target: str, said: Form) -> Response:
        """An adapter written in a format, and what was found when it was opened again."""
        from hfadapt.export.write import export

        cell = views.found_cell(self.runs, name, domain, target)
        to = said.get("to", "").strip()
        if not to:
            raise RequestError("there is no folder to write to", fix="name a new one")
        self.beside.close()
        form = cell.lock.export.storage if said.get("format") == cell.lock.export.format else None
        with quiet_libraries():
            done = export(cell, said.get("format", ""), self.folder / Path(to).expanduser(), variant=form)
        return self._cell(cell, name, exported=views.framed(done.blocks()), to=to)

    def start(self, said: Form) -> Response:
        """Starts a run, and goes where it is watched."""
        self.beside.close()
        number = self.live.start(said.get("recipe", ""), said.get("settings", ""))
        return RedirectResponse(f"/live/{number}", 303)

    def watch(self, number: int) -> Response:
        """A run that goes on."""
        return self.page("live", "A run, live", number=number, **self._state(number))

    def state(self, number: int) -> Response:
        """Where it stands, as a part of the page."""
        return self.page("state", "State", number=number, **self._state(number))

    def _state(self, number: int) -> Mapping[str, Any]:
        state = self.live.state(number)
        left = views.show_seconds(state.seconds_left) if state.seconds_left is not None else ""
        said = state.said[-1].strip() if state.said else "starting"
        doing = state.status or state.doing or said
        return {"state": state, "left": left, "doing": doing, "plots": views.loss_plots(state)}

    def stop(self, number: int) -> Response:
        """Stops a run as Ctrl-C does."""
        self.live.stop(number)
        return RedirectResponse(f"/live/{number}", 303)


def style() -> Response:
    """The style of the pages and of the charts in them."""
    return Response((HERE / "style.css").read_text(encoding="utf-8") + svg.STYLE, media_type="text/css")


def make_app(pages: Pages, port: int, token: str) -> FastAPI:
    """The routes, the door and the errors."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        pages.live.close()

    app = FastAPI(title="hfadapt ui", lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None)
    cell = "/run/{name}/{domain}/{target}"
    shown: tuple[tuple[str, Callable[..., Response]], ...] = (
        ("/", pages.home), ("/run/{name}", pages.run), ("/run/{name}/report.html", pages.report),
        ("/live/{number}", pages.watch), ("/live/{number}/state", pages.state),
        (f"{cell}/ask", pages.ask_page), (f"{cell}/plan", pages.plan), (f"{cell}/README.md", pages.card),
        (f"{cell}/row/{{row}}", pages.row_file),
        (cell, pages.cell),
    )  # fmt: skip
    done: tuple[tuple[str, Callable[..., Response]], ...] = (
        ("/start", pages.start), ("/live/{number}/stop", pages.stop), (f"{cell}/ask", pages.ask),
        (f"{cell}/ask/file", pages.ask_file), (f"{cell}/export", pages.export),
    )  # fmt: skip
    for path, route in shown:
        app.get(path, response_model=None)(route)
    for path, route in done:
        app.post(path, response_model=None)(route)
    app.get("/style.css", response_model=None)(style)
    app.get("/page.js", response_model=None)(lambda: FileResponse(HERE / "page.js", media_type="text/javascript"))

    def failed(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            what, status = Markup("<p>{}</p>").format(error.detail), error.status_code
        elif isinstance(error, HfadaptError):
            known = 404 if isinstance(error, views.Missing) else 400 if isinstance(error, RequestError) else 500
            what, status = views.told(error), known
        else:
            what, status = Markup("<p>This page failed; the terminal says why.</p>"), 500
        part = request.url.path.endswith(("/ask/file", "/state"))
        return pages.page("fault" if part else "message", "This did not work", what=what, status=status)

    for kind in (HfadaptError, HTTPException, Exception):
        app.add_exception_handler(kind, failed)
    app.add_middleware(Door, port=port, token=token)
    return app


def serve(place: Path, at: socket, say: Callable[[str], None]) -> None:
    """Shows a run, or a folder of runs, until Ctrl-C or SIGTERM.

    Args:
        place: A run, a cell of one, or a folder of runs.
        at: Where to listen.
        say: Told the address.

    Raises:
        RequestError: there is no such folder.
    """
    runs, first = placed(place)
    port, token = at.getsockname()[1], secrets.token_urlsafe(24)
    program = uvicorn.Server(
        uvicorn.Config(
            make_app(Pages(runs, Path.cwd()), port, token), log_level="warning", access_log=False,
            timeout_graceful_shutdown=5,
        )
    )  # fmt: skip
    at.listen(64)
    path = f"/run/{quote(first)}" if first else "/"
    say(f"runs of {os.path.relpath(runs)}, for you alone: http://{HOST}:{port}{path}?token={token}\nCtrl-C stops")
    with contextlib.suppress(KeyboardInterrupt):
        program.run(sockets=[at])


def placed(place: Path) -> tuple[Path, str]:
    """The folder of runs, and the run to begin with or ''.

    Raises:
        RequestError: there is no such folder.
    """
    from hfadapt.run_folder import Run

    if not place.is_dir():
        raise RequestError("there is no such folder", place=str(place), fix="name a run, or a folder of runs")
    place = place.resolve()
    for folder in (place, place.parent, place.parent.parent):
        # Of a folder above, the cells have to be this place or in it.
        if any(place in (folder, cell.folder.parent, cell.folder) for cell in Run(folder).cells()):
            return folder.parent, folder.name
    return place, ""
