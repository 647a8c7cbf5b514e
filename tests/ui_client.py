"""How tests ask the pages of `hfadapt ui`."""

from __future__ import annotations

import contextlib
import http.client
import threading
from urllib.parse import urlencode

import uvicorn

from hfadapt.serve.http import listening
from hfadapt.ui.app import HOST, Pages, make_app

MARKUP = "<script>document.title='in'</script>"
TOKEN = "a-token-for-tests"


class Client:
    """Asks with the cookie of somebody who has opened the printed address."""

    def __init__(self, port):
        self.port, self.origin = port, f"http://127.0.0.1:{port}"
        self.cookie = f"hfadapt-ui-{port}={TOKEN}"

    def ask(self, path, form=None, method=None, text=True, **headers):
        """Status, text or bytes, and headers of an answer; `form` is sent, bytes as they are."""
        body = urlencode(form) if isinstance(form, dict) else form
        given = {"Cookie": self.cookie, **({"Origin": self.origin} if form is not None else {}), **headers}
        given = {name: value for name, value in given.items() if value is not None}
        line = http.client.HTTPConnection("127.0.0.1", self.port)
        line.request(method or ("GET" if form is None else "POST"), path, body, given)
        answer = line.getresponse()
        found = answer.read()
        line.close()
        return answer.status, found.decode() if text else found, dict(answer.getheaders())


@contextlib.contextmanager
def serving(run):
    """The port of pages over the folder of a run."""
    pages = Pages(run.folder.parent, run.folder.parents[1])
    with listening(HOST, 0) as at:
        port = at.getsockname()[1]
        program = uvicorn.Server(uvicorn.Config(make_app(pages, port, TOKEN), log_level="error"))
        at.listen()
        thread = threading.Thread(target=program.run, kwargs={"sockets": [at]})
        thread.start()
        try:
            yield port
        finally:
            program.should_exit = True
            thread.join()
