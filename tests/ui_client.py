"""How tests ask the pages of `hfadapt ui`."""

from __future__ import annotations

import http.client
from urllib.parse import urlencode

MARKUP = "<script>document.title='in'</script>"
TOKEN = "a-token-for-tests"


class Client:
    """Asks with the cookie of somebody who has opened the printed address."""

    def __init__(self, port):
        self.port, self.origin = port, f"http://127.0.0.1:{port}"
        self.cookie = f"hfadapt-ui-{port}={TOKEN}"

    def ask(self, path, form=None, method=None, **headers):
        """Status, text and headers of an answer; `form` is sent, bytes as they are."""
        body = urlencode(form) if isinstance(form, dict) else form
        given = {"Cookie": self.cookie, **({"Origin": self.origin} if form is not None else {}), **headers}
        given = {name: value for name, value in given.items() if value is not None}
        line = http.client.HTTPConnection("127.0.0.1", self.port)
        line.request(method or ("GET" if form is None else "POST"), path, body, given)
        answer = line.getresponse()
        text = answer.read().decode()
        line.close()
        return answer.status, text, dict(answer.getheaders())
