"""A Space: a folder whose app answers as the card says, from plain transformers and peft."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml
from tiny import INSTRUCTIONS, command, run_of_chats
from tiny_sounds import run_of_sounds, tone, wav

from hfadapt import load_adapted
from hfadapt.card.snippet import example_file
from hfadapt.core import registry, resources
from hfadapt.core.errors import RequestError, RunError
from hfadapt.publish import space
from hfadapt.records.stages import CardRecord
from hfadapt.run_folder import Cell, Run

SPACE_TOKENS = 24
"""As many does the snippet of a card write."""


def needs_gradio(test):
    """For tests that start a Space."""
    without = importlib.util.find_spec("gradio") is None
    return pytest.mark.slow(pytest.mark.skipif(without, reason="no Gradio here")(test))


LOADED = 'import os\n\nimport torch\n\nadapter = "adapter"\nmodel = load(adapter)\n\n'


@pytest.fixture
def on_the_hub(monkeypatch):
    """The base has a name there; BASE says where it is here."""
    monkeypatch.setattr(space, "base_of", lambda cell: "somebody/encoder")


@pytest.fixture
def written(cell, tmp_path, sound_card, on_the_hub):
    space.write_space(Cell(cell), tmp_path / "space", license="mit")
    return tmp_path / "space"


def test_the_folder_holds_what_is_published_and_a_program(written, cell):
    names = {path.relative_to(written).as_posix() for path in written.rglob("*") if path.is_file()}
    assert {"README.md", "app.py", "requirements.txt", "SHA256SUMS", "adapter/README.md"} <= names
    weights = (written / "adapter/adapter_model.safetensors").read_bytes()
    assert weights == (cell / "adapter/adapter_model.safetensors").read_bytes()
    for line in (written / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((written / name).read_bytes()).hexdigest() == digest


def test_its_metadata_is_that_of_a_space(written):
    fields = yaml.safe_load((written / "README.md").read_text().split("---\n")[1])
    assert fields["sdk"] == "gradio"
    assert re.fullmatch(r"\d+\.\d+\.\d+", fields["sdk_version"])
    assert (fields["app_file"], fields["license"], fields["models"]) == ("app.py", "mit", ["somebody/encoder"])
    wanted = (written / "requirements.txt").read_text().split()
    assert all(re.fullmatch(r"[\w-]+==[\d.]+", each) for each in wanted)
    assert {each.partition("==")[0] for each in wanted} == {"accelerate", "peft", "torch", "transformers"}


def test_its_program_answers_as_the_card_says(written, cell, models, monkeypatch):
    monkeypatch.chdir(written)
    monkeypatch.setenv("BASE", str(models / "encoder"))
    text = (written / "app.py").read_text()
    assert "hfadapt" not in text
    # What stands before the page needs no Gradio.
    code = text.replace("import gradio as gr\n", "").partition("page = gr.Interface")[0]
    inside = {}
    exec(compile(code, "app.py", "exec"), inside)
    (example,) = ast.literal_eval(re.search(r"examples=(\[.*\]),\n", text)[1])
    assert inside["answer"](*example) == CardRecord.read(cell / "card.json").output


def test_secrets_stop_it(cell, tmp_path, sound_card, on_the_hub):
    card = cell / "README.md"
    card.write_text(card.read_text() + "\nhf_" + "a1B2c3D4e5F6g7H8i9J0kLmN\n")
    with pytest.raises(RunError, match="Hugging Face token found"):
        space.write_space(Cell(cell), tmp_path / "space", license="mit")
    assert not (tmp_path / "space").exists()


def test_a_base_that_is_not_on_the_hub_is_refused(cell, tmp_path):
    done = command("publish", str(cell), "--space", "--license", "mit", "--to", str(tmp_path / "space"))
    assert done.code == 1
    assert "loads its base from the Hub" in done.err
    # What loads no base is a whole model.
    assert "adapter.method=full" in done.err
    assert not (tmp_path / "space").exists()


def test_what_sends_something_is_refused(cell):
    done = command("publish", str(cell), "--space", "--repo", "somebody/name", "--yes")
    assert done.code == 2
    assert "--repo, --yes" in done.err


@pytest.mark.parametrize(
    ("asking", "inputs", "examples", "body"),
    [
        ('text = "a b"\nprint(f(text))', ("text",), ("a b",), "    return f(text)"),
        ('query = "q"\ndocument = "d"\nprint(f(query, document))', ("query", "document"), ("q", "d"), None),
        (
            'words = "a b".split(" ")\nprint(words)',
            ("text",),
            ("a b",),
            '    words = text.split(" ")\n    return words',
        ),
        ('words = ["a", "b"]\nfor w in words:\n    print(w, sep="\\t")', ("text",), ("a b",), None),
        (
            'x = Image.open("e.png").convert("RGB")  # ü\nprint(x)',
            ("image",),
            ("",),
            '    x = Image.open(image).convert("RGB")  # ü\n    return x',
        ),
        (
            'messages = [{"role": "user", "content": "hi"}]\nprint(messages)',
            ("text",),
            ("hi",),
            "    messages = chat([], history, text)\n    return messages",
        ),
        (
            'messages = [{"role": "system", "content": "{} be kind"}, {"role": "user", "content": "hi"}]\n'
            "print(messages)",
            ("text",),
            ("hi",),
            "    messages = chat([{'role': 'system', 'content': '{} be kind'}], history, text)\n    return messages",
        ),
        ('tokenizer.side = "left"\nprompt = """a\nb"""\nprint(prompt)', ("prompt",), ("a\nb",), "    return prompt"),
    ],
)
def test_snippets_become_functions(asking, inputs, examples, body):
    loading, found = space.split(LOADED + asking + "\n", "e.png", "image")
    assert loading.startswith(LOADED.rstrip())
    assert (found.inputs, found.examples) == (inputs, examples)
    assert body is None or found.body == body
    ast.parse(f"def answer({', '.join(inputs)}):\n{found.body}")
    assert ", file=said)" in found.body if "for " in asking else "return " in found.body


FACTS = {
    "turns": '[{"role": "user", "content": "hi"}]',
    "words": '["a", "b"]',
    "plain": "64",
    "literal": '"a b"',
    "start": '"a b"',
}


def fact(pointer, how=""):
    """Something of the kind that stands there in a card."""
    return '""' if "settings" in pointer else FACTS.get(how, "float32")


@pytest.mark.parametrize("task", registry.names("tasks"))
def test_the_snippet_of_every_task_becomes_a_function(task):
    kind = registry.task(task)
    template = resources.templates(kind.folder).get_template("snippet.py.j2")
    for form in sorted(kind.schemas):
        schema = registry.schema(form)
        file = example_file(schema)
        code = template.render(
            fact=fact, peft=True, base='"somebody/base"', schema=schema,
            example=0, file=file, settings={"pooling": "mean", "include_prompt": True}, arguments={},
            sample=False, quant="", quant_class="", other_head=False, long_rows=False,
        )  # fmt: skip
        loading, asking = space.split(code, file, registry.modality(kind.modality).noun)
        assert "from_pretrained" in loading
        assert asking.inputs
        compile(f"def answer({', '.join(asking.inputs)}):\n{asking.body}", "app.py", "exec")


def test_a_snippet_of_another_shape_is_refused():
    with pytest.raises(RequestError, match="asks about more"):
        space.split(LOADED + 'texts = ["a b", "c d"]\nprint(texts)\n', "", "text")


def test_a_template_goes_around_what_is_typed():
    template = "Text: {text}\nSentiment:"
    assert space.inside(template, "Text: a day\nSentiment:") == "a day"
    assert space.inside(template, "Something else") == ""


@contextlib.contextmanager
def started(folder, base):
    """The address of a Space that has been started."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {"BASE": str(base), "GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_SERVER_PORT": str(port)}
    with (folder / "log").open("wb") as log:
        program = subprocess.Popen(
            [sys.executable, "app.py"], cwd=folder, env=os.environ | settings, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        while "Running on local URL" not in (said := Path(log.name).read_text()):
            assert program.poll() is None, said
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/gradio_api"
    finally:
        program.kill()
        program.wait()


def asked(address, *data, session=None):
    """What the Space answers by its API."""
    body = {"data": data, **({"session_hash": session} if session else {})}
    sent = urllib.request.Request(
        f"{address}/call/answer", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    number = json.load(urllib.request.urlopen(sent))["event_id"]
    said = urllib.request.urlopen(f"{address}/call/answer/{number}").read().decode()
    assert "event: complete" in said, said
    return json.loads(said.rpartition("data: ")[2].splitlines()[0])


def uploaded(address, path):
    """A file as an input of the API, sent as a browser sends it."""
    edge = b"--an-edge"
    head = f'Content-Disposition: form-data; name="files"; filename="{path.name}"\r\nContent-Type: audio/wav'
    body = b"".join((edge, b"\r\n", head.encode(), b"\r\n\r\n", path.read_bytes(), b"\r\n", edge, b"--\r\n"))
    kind = {"Content-Type": f"multipart/form-data; boundary={edge[2:].decode()}"}
    (name,) = json.load(urllib.request.urlopen(urllib.request.Request(f"{address}/upload", body, kind)))
    return {"path": name, "meta": {"_type": "gradio.FileData"}}


@needs_gradio
def test_it_answers_over_http(written, cell, models):
    card = CardRecord.read(cell / "card.json")
    example = ast.literal_eval(re.search(r'^text = (".*")$', card.snippet, re.MULTILINE)[1])
    with started(written, models / "encoder") as address:
        assert asked(address, example) == [card.output]


@needs_gradio
def test_a_space_hears(hearing, tmp_path, sound_card, on_the_hub):
    cell = Run(run_of_sounds(tmp_path, hearing)).cell("one", "this-machine")
    space.write_space(cell, tmp_path / "space", license="mit")
    adapted = load_adapted(cell.folder)
    with started(tmp_path / "space", hearing / "whisper") as address:
        for number, label in enumerate(("low", "high", "low")):
            path = tmp_path / f"{number}.wav"
            # At another rate, which app.py brings to the model's.
            path.write_bytes(wav(tone(label, 7000 + number, rate=22_050), 22_050))
            (said,) = asked(address, uploaded(address, path))
            (own,) = adapted.predict([path])
            found, share = re.fullmatch(r"(\w+) \((\d\.\d+)\)", said).groups()
            assert (found, float(share)) == (own.label, pytest.approx(own.probability, abs=0.02))


@needs_gradio
def test_a_space_goes_on_with_a_chat(models, tmp_path, sound_card, on_the_hub):
    cell = Run(run_of_chats(tmp_path, models)).cell("one", "this-machine")
    space.write_space(cell, tmp_path / "space", license="mit")
    adapted = load_adapted(cell.folder)
    chat = [{"role": "system", "content": INSTRUCTIONS}]
    with started(tmp_path / "space", models / "lm") as address:
        for message in ("a light morning", "and then?"):
            chat.append({"role": "user", "content": message})
            said = asked(address, message, session="one")[0]
            assert said == adapted.reply(chat, SPACE_TOKENS)
            chat.append({"role": "assistant", "content": said})
        # Somebody else begins anew.
        (other, *_) = asked(address, "a light morning", session="two")
        assert other == chat[2]["content"]
