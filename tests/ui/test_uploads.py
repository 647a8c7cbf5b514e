"""Recordings and pictures: uploaded, or of the test rows, with what a browser needs to show or play them."""

from __future__ import annotations

import io
import re

import pytest
from tiny_images import marked
from tiny_sounds import run_of_sounds, tone, wav
from ui_client import Client, serving

from hfadapt.run_folder import Run

SOUNDS, PICTURES = "/run/sounds/one/this-machine/ask", "/run/pictures/one/this-machine/ask"


@pytest.fixture(scope="module")
def sound_run(hearing, tmp_path_factory):
    return Run(run_of_sounds(tmp_path_factory.mktemp("sounds"), hearing, "train"))


@pytest.fixture(scope="module")
def heard(sound_run):
    with serving(sound_run) as port:
        yield Client(port)


@pytest.fixture(scope="module")
def seen(picture_run):
    with serving(Run(picture_run)) as port:
        yield Client(port)


def test_an_uploaded_recording_is_answered_by_both(heard):
    status, page, _ = heard.ask(f"{SOUNDS}/file", wav(tone("high", 5000)))
    assert status == 200, page
    assert len(re.findall(r'class="answer">(?:low|high) \(\d+%\)<', page)) == 2
    status, page, _ = heard.ask(f"{SOUNDS}/file", b"RIFF, but no sound")
    assert (status, "Traceback" in page) == (400, False)


def test_a_test_row_is_seen_and_played(heard, sound_run):
    status, page, headers = heard.ask(SOUNDS, {"row": "2"})
    assert status == 200, page
    assert 'alt="spectrogram of test row 3"' in page
    address = re.search(r'<audio controls src="([^"]+)"', page)[1]
    assert "media-src 'self' blob:" in headers["content-security-policy"]
    status, sound, headers = heard.ask(address, text=False)
    assert (status, headers["content-type"]) == (200, "audio/wav")
    assert sound == bytes(sound_run.cell("one", "this-machine").read_split("test")[2]["audio"])


def test_pictures_are_not_played(seen):
    status, page, _ = seen.ask(f"{PICTURES.removesuffix('/ask')}/row/0")
    assert (status, "not played" in page) == (404, True)
    assert "<audio" not in seen.ask(PICTURES, {"row": "0"})[1]


def test_an_uploaded_picture_is_answered_by_both(seen):
    file = io.BytesIO()
    marked("bar", 700).save(file, "PNG")
    status, page, _ = seen.ask(f"{PICTURES}/file", file.getvalue())
    assert (status, len(re.findall(r'class="answer">\w+ \(\d+%\)<', page))) == (200, 2), page
