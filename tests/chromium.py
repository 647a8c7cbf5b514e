"""A real headless Chromium, driven through the pipe of its DevTools protocol: needs no package and opens no port."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "chromium-headless-shell", "google-chrome")
BROWSER = next((found for name in NAMES if (found := shutil.which(name))), None)
OPTIONS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update "
    "--disable-sync --disable-dev-shm-usage --remote-debugging-pipe"
)


class Page:
    """A tab.

    Attributes:
        events: All that the browser told of it: requests, messages of the console, errors.
    """

    def __init__(self, commands: int, answers: int) -> None:
        self.commands, self.answers, self.left = commands, answers, b""
        self.numbers = itertools.count(1)
        self.events: list[dict[str, Any]] = []
        self.session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for part in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{part}.enable")

    def call(self, method: str, **given: Any) -> dict[str, Any]:
        """One command and its answer."""
        number = next(self.numbers)
        said = {"id": number, "method": method, "params": given}
        if self.session:
            said["sessionId"] = self.session
        os.write(self.commands, json.dumps(said).encode() + b"\0")
        while (answer := self._next()).get("id") != number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.left:
            read = os.read(self.answers, 1 << 20)
            assert read, "the browser is gone"
            self.left += read
        line, self.left = self.left.split(b"\0", 1)
        return json.loads(line)

    def run(self, code: str) -> Any:
        """The value of an expression of JavaScript, awaited; an exception there is one here."""
        found = self.call("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, condition: str) -> None:
        """Waits in the page until an expression holds."""
        self.run(f"(async () => {{ while (!({condition})) await new Promise((done) => setTimeout(done, 20)) }})()")

    def open(self, address: str) -> None:
        """Goes there, and waits until all is loaded."""
        self.call("Page.navigate", url=address)
        self.until(f"location.href === {json.dumps(address)} && document.readyState === 'complete'")

    def click(self, selector: str) -> None:
        """Presses and lets go the mouse in the middle of an element."""
        found = f"document.querySelector({json.dumps(selector)})"
        self.run(f"{found}.scrollIntoView()")
        x, y = self.run(
            f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])({found}.getBoundingClientRect())"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def write(self, text: str) -> None:
        """Types where the focus is."""
        self.call("Input.insertText", text=text)

    @property
    def requests(self) -> list[str]:
        """The addresses that were asked for."""
        kind = "Network.requestWillBeSent"
        return [each["params"]["request"]["url"] for each in self.events if each.get("method") == kind]

    @property
    def faults(self) -> list[Any]:
        """Errors, warnings and exceptions."""
        found = []
        for each in self.events:
            said = each.get("params", {})
            if each.get("method") == "Runtime.exceptionThrown":
                found.append(said["exceptionDetails"])
            elif each.get("method") == "Runtime.consoleAPICalled" and said["type"] in ("error", "warning", "assert"):
                found.append(said["args"])
            elif each.get("method") == "Log.entryAdded" and said["entry"]["level"] in ("error", "warning"):
                found.append(said["entry"])
        return found


@contextmanager
def page(folder: Path) -> Iterator[Page]:
    """A tab of a new browser, with a profile in a folder."""
    assert BROWSER is not None
    (to_read, commands), (answers, to_write) = os.pipe(), os.pipe()

    def connect() -> None:
        # Through free numbers, as either pipe may hold 3 or 4.
        reads, writes = os.dup(to_read), os.dup(to_write)
        os.dup2(reads, 3)
        os.dup2(writes, 4)

    options = [*OPTIONS.split(), f"--user-data-dir={folder / 'profile'}"]
    process = subprocess.Popen(
        [BROWSER, *options, "about:blank"], preexec_fn=connect, close_fds=False, stderr=subprocess.DEVNULL
    )
    os.close(to_read)
    os.close(to_write)
    try:
        yield Page(commands, answers)
    finally:
        os.close(commands)
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        process.wait()
        os.close(answers)


class _Silent(SimpleHTTPRequestHandler):
    def log_message(self, *said: Any) -> None:
        """Nothing."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a folder, as `python -m http.server` in it serves it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Silent, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
