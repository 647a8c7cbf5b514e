"""The pages and the report in a real Chromium: with the keyboard alone, in a narrow window, and as axe-core finds them.

axe-core comes with `npm install --prefix build/axe axe-core`, or AXE names its axe.min.js.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import chromium
import pytest
from tiny import INSTRUCTIONS, NO_CHECKS, command, labelled, recipe_fields, run_of_chats, write_recipe, write_rows
from tiny_images import marked
from tiny_sounds import run_of_sounds, tone, wav

import hfadapt

ROOT = Path(hfadapt.__file__).parents[1]
AXE = Path(os.environ.get("AXE") or ROOT / "build/axe/node_modules/axe-core/axe.min.js")
CELL = "/run/tiny/one/this-machine"
CHAT, SOUND = "/run/chats/one/this-machine/ask", "/run/sounds/one/this-machine/ask"
PAGES = (
    "/", "/run/tiny", "/run/tiny/report.html", CELL, f"{CELL}/ask", f"{CELL}/plan?to=t4", "/run/nothing", CHAT, SOUND,
)  # fmt: skip
SIZES = (1280, 360)
BAD = ("serious", "critical")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(chromium.BROWSER is None, reason="no Chromium here")]
KEYS = {"Tab": 9, "Enter": 13}


@pytest.fixture(scope="module")
def folder(models, hearing, tmp_path_factory):
    """A finished run, with everything that a report can show; and what was trained on chats, and on sounds."""
    folder = tmp_path_factory.mktemp("browser")
    write_rows(folder / "one.jsonl", labelled(120))
    fields = recipe_fields(models / "encoder", dtype="float32", train={"max_steps": 6, "learning_rate": 2e-2})
    done = command("run", write_recipe(folder / "tiny.yaml", fields), folder=folder)
    assert done.code == 0, done.out + done.err
    for made, learned in ((run_of_chats, models), (run_of_sounds, hearing)):
        (place := folder / made.__name__).mkdir()
        run = made(place, learned, "train")
        shutil.move(run, folder / "runs" / run.name)
    return folder


@pytest.fixture(scope="module")
def page(folder):
    """A tab that has opened the address that `hfadapt ui` has printed."""
    program = subprocess.Popen(
        [sys.executable, "-m", "hfadapt", "ui", "runs/tiny", "--port", "0"],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        address = re.search(r"http://\S+", program.stderr.readline())[0]
        with chromium.page(folder) as tab:
            tab.origin = address.partition("/run")[0]
            tab.call("Page.navigate", url=address)
            arrive(tab, f"location.href === '{tab.origin}/run/tiny'")
            yield tab
    finally:
        program.terminate()
        program.wait()


def press(page, key):
    text = {"text": "\r"} if key == "Enter" else {}
    for kind, more in (("keyDown", text), ("keyUp", {})):
        page.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=KEYS[key], **more)


def resize(page, width):
    page.call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False)


def tab_to(page, selector):
    """Presses Tab until an element has the focus, and checks that whoever looks can see where it is."""
    page.run("document.activeElement.blur()")
    for _ in range(80):
        press(page, "Tab")
        seen = page.run("getComputedStyle(document.activeElement).outlineStyle")
        if page.run(f"document.activeElement.matches({json.dumps(selector)})"):
            assert seen != "none"
            return
        assert seen != "none" or page.run("document.activeElement === document.body")
    raise AssertionError(f"Tab does not lead to {selector}")


def arrive(page, condition):
    """Waits for another page, on which a condition holds; what is asked of a page that goes is no answer."""
    whole = f"Boolean({condition}) && document.readyState === 'complete'"
    found = False
    while not found:
        with suppress(AssertionError):
            found = page.run(whole)


def serious(page):
    """What axe finds on the page that is shown, of what is serious; nothing without axe."""
    if not AXE.exists():
        return []
    page.run(AXE.read_text(encoding="utf-8") + ";1")
    found = page.run("axe.run(document).then((found) => JSON.stringify(found.violations))")
    return [
        (each["id"], [node["html"][:200] for node in each["nodes"]])
        for each in json.loads(found)
        if each["impact"] in BAD
    ]


@pytest.mark.skipif(not AXE.exists(), reason="no axe-core here")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(page, scheme):
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    try:
        for width in SIZES:
            resize(page, width)
            for path in PAGES:
                page.open(page.origin + path)
                assert serious(page) == [], (path, width)
    finally:
        page.call("Emulation.setEmulatedMedia", features=[])


def test_no_page_is_wider_than_its_window_or_asks_elsewhere(page):
    for width in SIZES:
        resize(page, width)
        for path in PAGES:
            page.open(page.origin + path)
            assert page.run("document.documentElement.scrollWidth") <= width, path
    assert [each for each in page.requests if not each.startswith((page.origin, "data:"))] == []


def test_a_question_is_asked_with_the_keyboard_alone(page):
    resize(page, 360)
    page.open(page.origin + "/run/tiny")
    tab_to(page, f"a[href='{CELL}/ask']")
    press(page, "Enter")
    arrive(page, "document.querySelector('#text')")
    tab_to(page, "#text")
    page.write("a superb and charming film")
    press(page, "Tab")
    press(page, "Enter")
    arrive(page, "document.querySelector('#answers h2')")
    # The answers are read next.
    assert page.run("document.activeElement.textContent") == "Answers"
    assert re.search(r"adapter\s+(good|bad) \(\d+%\)", page.run("document.querySelector('#answers').innerText"))


def test_a_run_is_started_and_watched_to_its_end(page, folder):
    model = hfadapt.load_recipe(folder / "tiny.yaml").model
    fields = recipe_fields(model, name="again", train={"max_steps": 3}, evaluate=NO_CHECKS)
    write_recipe(folder / "again.yaml", fields)
    resize(page, 1280)
    page.open(page.origin + "/")
    page.run("document.querySelector('#recipe').value = 'again.yaml'")
    tab_to(page, "#settings")
    page.write("train.max_steps=4")
    press(page, "Enter")
    arrive(page, "document.querySelector('[data-status]')")
    page.until("document.querySelector('[data-status]').dataset.status")
    shown = page.run("document.querySelector('#state').innerText")
    assert "train: done" in shown, shown
    assert page.run("document.querySelectorAll('#state svg').length") == 1
    assert page.run("document.querySelector('#said').textContent") == "done"
    assert (folder / "runs/again/one/this-machine/adapter/adapter_model.safetensors").exists()


def choose(page, path):
    """A file, as its dialogue gives it to the page."""
    document = page.call("DOM.getDocument")["root"]["nodeId"]
    node = page.call("DOM.querySelector", nodeId=document, selector="#file")["nodeId"]
    page.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])


def fits(page):
    """Whether nothing is wider than the window."""
    return page.run("document.documentElement.scrollWidth <= innerWidth")


def test_a_chat_goes_on_with_the_keyboard_alone(page):
    resize(page, 360)
    page.open(page.origin + CHAT)
    assert page.run("document.querySelector('#system').value") == INSTRUCTIONS
    for turn, message in enumerate(("a light morning", "and then?"), 1):
        tab_to(page, "#text")
        page.write(message)
        if turn == 1:
            press(page, "Tab")
            press(page, "Enter")
        else:
            page.call("Input.dispatchKeyEvent", type="keyDown", key="Enter", code="Enter", windowsVirtualKeyCode=13,
                      modifiers=2)  # fmt: skip
        arrive(page, f"document.querySelectorAll('#answers h2').length === {turn}")
        assert page.run("document.activeElement === [...document.querySelectorAll('#answers h2')].at(-1)")
        assert fits(page)
        assert serious(page) == []
    shown = page.run("document.querySelector('#answers').innerText")
    assert [shown.count(each) for each in (INSTRUCTIONS, "a light morning", "and then?")] == [1, 1, 1]


def test_a_sound_is_heard_before_and_beside_its_answers(page, folder):
    resize(page, 360)
    (folder / "high.wav").write_bytes(wav(tone("high", 900)))
    (folder / "words.wav").write_text("words")
    page.open(page.origin + SOUND)
    choose(page, folder / "high.wav")
    page.until("document.querySelector('form audio.shown').duration > 0.3")
    tab_to(page, "form.file button")
    press(page, "Enter")
    page.until("document.querySelector('#answers .answer')")
    assert page.run("document.querySelectorAll('#answers .answer').length") == 2
    page.until("document.querySelector('#answers audio.shown').duration > 0.3")
    assert page.run("document.activeElement.textContent") == "Answers"
    assert fits(page)
    assert serious(page) == []
    # What no browser plays is not shown, and told when it is asked about.
    choose(page, folder / "words.wav")
    page.until("!document.querySelector('form audio.shown')")
    # A test row.
    tab_to(page, "#row")
    press(page, "Tab")
    press(page, "Enter")
    arrive(page, "document.querySelector('#answers img') && document.querySelector('#answers audio').duration > 0")
    assert page.run("document.querySelector('#answers img').alt").startswith("spectrogram of test row")
    assert serious(page) == []


def test_a_file_of_the_user_is_asked_about(page, folder, picture_run):
    shutil.copytree(picture_run, folder / "runs/seen")
    marked("bar", 700).save(folder / "a.png")
    (folder / "words.png").write_text("words")
    page.open(page.origin + "/run/seen/one/this-machine/ask")
    choose(page, folder / "a.png")
    page.until("document.querySelector('form img.shown').naturalWidth > 0")
    tab_to(page, "form.file button")
    press(page, "Enter")
    page.until("document.querySelector('#answers .answer')")
    assert re.search(r"\(\d+%\)", page.run("document.querySelector('#answers').innerText"))
    # What is no picture is told, and the page goes on.
    assert page.run("document.querySelector('#answers img').naturalWidth") > 0
    choose(page, folder / "words.png")
    tab_to(page, "form.file button")
    press(page, "Enter")
    page.until("document.querySelector('#answers pre')")
    assert page.run("document.activeElement.textContent") == "This did not work"
