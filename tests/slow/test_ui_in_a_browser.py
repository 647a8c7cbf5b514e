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
from tiny import NO_CHECKS, command, labelled, recipe_fields, write_recipe, write_rows
from tiny_images import marked

import hfadapt

ROOT = Path(hfadapt.__file__).parents[1]
AXE = Path(os.environ.get("AXE") or ROOT / "build/axe/node_modules/axe-core/axe.min.js")
CELL = "/run/tiny/one/this-machine"
PAGES = ("/", "/run/tiny", "/run/tiny/report.html", CELL, f"{CELL}/ask", f"{CELL}/plan?to=t4", "/run/nothing")
SIZES = (1280, 360)
BAD = ("serious", "critical")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(chromium.BROWSER is None, reason="no Chromium here")]
KEYS = {"Tab": 9, "Enter": 13}


@pytest.fixture(scope="module")
def folder(models, tmp_path_factory):
    """A finished run, with everything that a report can show."""
    folder = tmp_path_factory.mktemp("browser")
    write_rows(folder / "one.jsonl", labelled(120))
    fields = recipe_fields(models / "encoder", dtype="float32", train={"max_steps": 6, "learning_rate": 2e-2})
    done = command("run", write_recipe(folder / "tiny.yaml", fields), folder=folder)
    assert done.code == 0, done.out + done.err
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


@pytest.mark.skipif(not AXE.exists(), reason="no axe-core here")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(page, scheme):
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    try:
        for width in SIZES:
            resize(page, width)
            for path in PAGES:
                page.open(page.origin + path)
                page.run(AXE.read_text(encoding="utf-8") + ";1")
                found = page.run("axe.run(document).then((found) => JSON.stringify(found.violations))")
                bad = [
                    (each["id"], [node["html"][:200] for node in each["nodes"]])
                    for each in json.loads(found)
                    if each["impact"] in BAD
                ]
                assert bad == [], (path, width)
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


def test_a_file_of_the_user_is_asked_about(page, folder, picture_run):
    shutil.copytree(picture_run, folder / "runs/seen")
    marked("bar", 700).save(folder / "a.png")
    (folder / "words.png").write_text("words")
    page.open(page.origin + "/run/seen/one/this-machine/ask")
    document = page.call("DOM.getDocument")["root"]["nodeId"]
    node = page.call("DOM.querySelector", nodeId=document, selector="#file")["nodeId"]
    page.call("DOM.setFileInputFiles", nodeId=node, files=[str(folder / "a.png")])
    tab_to(page, "form.file button")
    press(page, "Enter")
    page.until("document.querySelector('#answers .answer')")
    assert re.search(r"\(\d+%\)", page.run("document.querySelector('#answers').innerText"))
    # What is no picture is told, and the page goes on.
    page.call("DOM.setFileInputFiles", nodeId=node, files=[str(folder / "words.png")])
    tab_to(page, "form.file button")
    press(page, "Enter")
    page.until("document.querySelector('#answers pre')")
    assert page.run("document.activeElement.textContent") == "This did not work"
