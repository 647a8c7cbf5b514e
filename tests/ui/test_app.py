"""The pages over HTTP: who is let in, what is shown, and what is refused."""

from __future__ import annotations

import re
import shutil
import sys

import pytest
from tiny import command
from ui_client import MARKUP, TOKEN

from hfadapt.core.errors import RequestError
from hfadapt.ui.app import placed

CELL = "/run/tiny/one/this-machine"
PAGES = ("/", "/run/tiny", CELL, f"{CELL}/ask", f"{CELL}/plan?to=cpu-8gb", "/run/tiny/report.html")


def test_nobody_is_let_in_without_the_token(client):
    for path in (*PAGES, "/style.css", f"/?token={TOKEN}x"):
        status, text, _ = client.ask(path, Cookie=None)
        assert (status, "token" in text, "tiny" in text) == (403, True, False), path


def test_the_printed_address_lets_in_and_hides_the_token(client):
    status, _, headers = client.ask(f"/run/tiny?token={TOKEN}", Cookie=None)
    assert (status, headers["location"]) == (303, "/run/tiny")
    cookie = headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "samesite=lax" in cookie.lower()
    assert client.ask("/run/tiny", Cookie=cookie.partition(";")[0])[0] == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "127.0.0.1:1", "localhost.evil.example:80"])
def test_other_names_for_this_machine_are_refused(client, host):
    assert client.ask("/", Host=host)[0] == 403
    assert client.ask(f"/?token={TOKEN}", Host=host)[0] == 403


@pytest.mark.parametrize("origin", [None, "null", "http://evil.example", "http://127.0.0.1:1"])
def test_what_another_page_sends_is_refused(client, origin):
    assert client.ask(f"{CELL}/ask", {"text": "a text"}, Origin=origin)[0] == 403
    assert client.ask("/start", {"recipe": "tiny.yaml"}, Origin=origin)[0] == 403


def test_pages_are_shown_and_load_nothing_from_elsewhere(client):
    for path in PAGES:
        status, text, headers = client.ask(path)
        assert status == 200, text
        assert not re.search(r"(?:src|href|action)=\"(?:https?:)?//", text), path
        assert "url(" not in text
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["cache-control"] == "no-store"


def test_what_takes_long_says_what_is_done(client):
    for path, doing in ((CELL, "opening them again"), (f"{CELL}/ask", "asking base and adapter")):
        forms = re.findall(r"<form [^>]*(?:method=.post.|data-file)[^>]*>", client.ask(path)[1])
        assert forms
        assert all(doing in form for form in forms)


def test_rows_are_text_and_nothing_else(client, run):
    texts = [str(row["text"]) for row in run.cell("one", "this-machine").read_split("test")]
    number = next(n for n, text in enumerate(texts) if MARKUP in text)
    status, text, _ = client.ask(f"{CELL}/ask", {"row": str(number)})
    assert status == 200
    assert MARKUP not in text
    assert "&lt;script&gt;document.title" in text
    assert "Right is" in text
    status, text, _ = client.ask(f"{CELL}/ask", {"text": MARKUP})
    assert status == 200
    assert MARKUP not in text
    assert re.search(r'class="answer">(?:good|bad) \(\d+%\)<', text)


def test_faults_are_told_as_in_the_terminal(client):
    for path, form, status, said in (
        ("/run/other", None, 404, "there is no such run"),
        (f"{CELL}x", None, 404, "no such cell"),
        (f"{CELL}/plan?to=a-toaster", None, 400, "no target of that name"),
        (f"{CELL}/ask", {"text": " "}, 400, "no text"),
        (f"{CELL}/ask", {"row": "-1"}, 400, "no such test row"),
        (f"{CELL}/ask/file", b"GIF", 400, "read texts, not files"),
        (f"{CELL}/export", {"format": "merged", "to": ""}, 400, "no folder"),
        (f"{CELL}/export", {"format": "gguf", "to": "x"}, 400, "cannot be exported"),
        ("/start", {"recipe": "/etc/passwd"}, 400, "no such recipe"),
        ("/start", {"recipe": "tiny.yaml", "settings": "--publish a/b"}, 400, "no setting"),
        ("/live/7", None, 400, "no such run was started"),
        ("/nothing", None, 404, "Not Found"),
    ):
        found, text, _ = client.ask(path, form)
        assert found == status, (path, text)
        assert said in text
        assert "Traceback" not in text


def test_a_path_in_a_name_leads_nowhere(client):
    for path in ("/run/%2e%2e", "/run/tiny/..%2f..%2f/this-machine/README.md", "/run/..%2ftiny"):
        assert client.ask(path)[0] == 404, path


def test_an_adapter_is_exported(client, run, tmp_path):
    status, text, _ = client.ask(f"{CELL}/export", {"format": "adapter", "to": str(tmp_path / "out")})
    assert status == 200, text
    assert "opened again" in text
    assert (tmp_path / "out/adapter_model.safetensors").exists()


def test_a_run_a_cell_and_a_folder_of_runs_can_be_named(run, tmp_path):
    runs = run.folder.resolve().parent
    assert placed(run.folder) == (runs, "tiny")
    assert placed(run.folder / "one/this-machine") == (runs, "tiny")
    assert placed(runs) == (runs, "")
    assert placed(tmp_path) == (tmp_path.resolve(), "")
    with pytest.raises(RequestError, match="no such folder"):
        placed(tmp_path / "none")


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    assert command("ui", "none", folder=tmp_path).code == 2
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    for name in ("hfadapt.ui.app", "hfadapt.serve.http"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    done = command("ui", folder=tmp_path)
    assert done.code == 2
    assert "pip install 'hfadapt[ui]'" in done.err


def test_a_run_that_is_not_whole_is_shown(client, run):
    folder = run.folder.parent / "half"
    (folder / "one").mkdir(parents=True)
    try:
        shutil.copytree(run.folder / "one/this-machine", folder / "one/this-machine")
        for name in ("evaluation.json", "predictions.parquet", "lock.yaml"):
            (folder / "one/this-machine" / name).unlink()
        for path in ("/", "/run/half", "/run/half/one/this-machine"):
            assert client.ask(path)[0] == 200, path
        assert client.ask("/run/half/one/this-machine/ask")[0] == 500
        assert client.ask("/run/half/report.html")[0] == 404
    finally:
        shutil.rmtree(folder)
