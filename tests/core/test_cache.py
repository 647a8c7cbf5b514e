"""Whatever stands in a cache in the place of what hfadapt wrote: it is said, ignored and made anew, never an error."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
from test_samples import offer, tar
from tiny import labelled, write_rows

from hfadapt import data
from hfadapt.core import cache, samples
from hfadapt.hardware import catalogue, rates
from hfadapt.models import load as models_of
from hfadapt.models.facts import model_facts
from hfadapt.plan.memory import predict, terms
from hfadapt.plan.memory.workload import Workload
from hfadapt.recipe.schema import Recipe

RECORDS = {
    "nothing in it": b"",
    "cut off": b"{",
    "no text": b"\xff\xfe\x00",
    "null": b"null",
    "a list": b"[]",
    "a number": b"0.0",
    "too deep": b"[" * 200_000,
    "as versions before wrote it": b'{"this machine": {"tflops": {"float32": 0.0}, "bandwidth": 0.0}}',
    "a record of another kind": b'{"record": "DataRecord", "version": 1}',
}
FOLDERS = ("an empty folder", "a file", "a link to nowhere", "a file cut off", "a file changed", "a file missing")
FOLDERS += ("a folder for a file", "a seal cut off", "a seal of zeros", "no seal")


@pytest.fixture(autouse=True)
def forgetful():
    """Every fault is said once in a process: in these tests, once in each."""
    for said in (cache._say, cache._say_unwritable):
        said.cache_clear()


def put(path: Path, content: bytes | str) -> None:
    """What stands in a record's place: bytes, `a folder` or `a link to nowhere`."""
    cache.remove(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if content == "a folder":
        (path / "inside").mkdir(parents=True)
    elif content == "a link to nowhere":
        path.symlink_to(path.with_name("nowhere"))
    else:
        path.write_bytes(content)


def spoil(folder: Path, how: str) -> None:
    """Does one of `FOLDERS` to a folder that was made."""
    seal = folder / cache.Seal.FILE
    file = max((path for path in folder.rglob("*") if path.is_file() and path != seal), key=lambda p: p.stat().st_size)
    if how in ("an empty folder", "a file", "a link to nowhere"):
        shutil.rmtree(folder)
        if how == "an empty folder":
            folder.mkdir()
        elif how == "a file":
            folder.write_text("garbage")
        else:
            folder.symlink_to(folder.with_name("nowhere"))
    elif how == "a file cut off":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif how == "a file changed":
        file.write_bytes(bytes(byte ^ 0x55 for byte in file.read_bytes()))
    elif how == "a file missing":
        file.unlink()
    elif how == "a folder for a file":
        file.unlink()
        file.mkdir()
    elif how == "no seal":
        seal.unlink()
    else:
        seal.write_bytes(b"{" if how == "a seal cut off" else bytes(100))


def written(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != cache.Seal.FILE)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


# --- the mechanism ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [*RECORDS.values(), "a folder", "a link to nowhere"], ids=[*RECORDS, "dir", "link"])
def test_a_record_that_cannot_be_used_is_said_once_and_replaced(tmp_path, caplog, content):
    path = tmp_path / "rates.json"
    put(path, content)
    assert cache.read(path, rates.KeptRates) is None
    assert cache.read(path, rates.KeptRates) is None
    (said,) = caplog.messages
    assert "rates.json in the cache is ignored and made anew: " in said
    assert "\n" not in said
    good = rates.KeptRates(rates={"a": rates.Rates(tflops={"float32": 1.0})})
    cache.write(path, good)
    assert cache.read(path, rates.KeptRates) == good


def test_a_place_where_nothing_stands_is_not_worth_a_word(tmp_path, caplog):
    assert cache.read(tmp_path / "nowhere" / "rates.json", rates.KeptRates) is None
    assert not caplog.messages


@pytest.mark.parametrize("how", FOLDERS)
def test_a_folder_that_cannot_be_used_is_said_and_made_anew(tmp_path, caplog, how):
    def make(folder: Path) -> None:
        calls.append(folder)
        (folder / "deep").mkdir()
        (folder / "deep" / "data.bin").write_bytes(b"good" * 100)
        (folder / "note.txt").write_text("good")

    calls: list[Path] = []
    place = cache.made(tmp_path / "kind" / "key", make)
    good = written(place)
    assert cache.made(place, make) == place
    assert len(calls) == 1
    assert not caplog.messages
    spoil(place, how)
    assert cache.made(place, make) == place
    assert (len(calls), written(place)) == (2, good)
    (said,) = caplog.messages
    assert f"{place} in the cache is ignored and made anew: " in said
    assert [path.name for path in place.parent.iterdir() if not path.is_symlink()] == ["key"], "nothing is left over"


def test_a_copied_cache_is_as_good(tmp_path):
    place = cache.made(tmp_path / "a", lambda folder: (folder / "data").write_text("x"))
    copied = Path(shutil.copytree(place, tmp_path / "b", copy_function=shutil.copyfile))
    os.utime(copied / "data", (0, 0))
    assert cache.made(copied, lambda folder: pytest.fail("made again")) == copied


def test_a_whole_folder_with_which_nothing_can_be_done_is_made_anew(tmp_path, caplog):
    """As a later version may read records of another version."""

    def check(folder: Path) -> None:
        if (folder / "data").read_text() != "2":
            raise ValueError("it is of version 1")

    place = cache.made(tmp_path / "a", lambda folder: (folder / "data").write_text("1"))
    assert cache.made(place, lambda folder: (folder / "data").write_text("2"), check) == place
    assert "it is of version 1" in caplog.text
    assert (place / "data").read_text() == "2"


@pytest.mark.parametrize("link", [False, True])
def test_a_file_in_the_place_of_a_folder_of_folders(tmp_path, caplog, link):
    if link:
        (tmp_path / "kind").symlink_to(tmp_path / "nowhere")
    else:
        (tmp_path / "kind").write_text("garbage")
    place = cache.made(tmp_path / "kind" / "a", lambda folder: (folder / "data").write_text("x"))
    assert place == tmp_path / "kind" / "a"
    assert (place / "data").read_text() == "x"
    assert "kind in the cache is ignored and made anew: it is no folder" in caplog.text


def test_another_process_that_was_faster_is_not_disturbed(tmp_path):
    def make(folder: Path) -> None:
        if not (tmp_path / "a").exists():
            cache.made(tmp_path / "a", lambda other: (other / "data").write_text("first"))
        (folder / "data").write_text("second")

    assert (cache.made(tmp_path / "a", make) / "data").read_text() == "first"


def test_what_cannot_be_made_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError):
        cache.made(tmp_path / "kind" / "a", lambda folder: 1 / 0)
    assert not list((tmp_path / "kind").iterdir())


def test_a_cache_that_cannot_be_written_is_said_and_things_last_as_long_as_the_process(tmp_path, caplog):
    place = tmp_path / "file"
    place.write_text("where the folder should be")
    calls: list[Path] = []

    def make(folder: Path) -> None:
        calls.append(folder)
        (folder / "data").write_text("x")

    one, two = (cache.made(place / "kind" / "a", make) for _ in range(2))
    assert one == two
    assert (len(calls), (one / "data").read_text()) == (1, "x")
    cache.write(place / "rates.json", rates.KeptRates())
    assert all("cannot be written" in said and "HFADAPT_CACHE" in said for said in caplog.messages)
    assert caplog.messages
    code = f"""
from pathlib import Path
from hfadapt.core import cache
print(cache.made(Path({str(place)!r}) / "kind" / "a", lambda folder: (folder / "data").write_text("x")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "cannot be written" in done.stderr
    assert not Path(done.stdout.strip()).exists(), "temporary folders go with the process"


def test_a_user_without_a_home_has_a_temporary_cache(monkeypatch):
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("HFADAPT_CACHE")
    assert cache.folder() == Path.home() / ".cache" / "hfadapt"
    monkeypatch.setattr(Path, "home", no_home)
    assert cache.folder().is_dir()


# --- every cache -----------------------------------------------------------------------------------------------------

RATES = {
    **RECORDS,
    "zeros": b'{"float32": 0.0}',
    "negative": b'{"float32": -1.0}',
    "not a number": b'{"float32": NaN}',
    "without bounds": b'{"float32": 1e999}',
    "words": b'{"float32": "fast"}',
    "nothing": b'{"float32": null}',
    "a list of rates": b"[0.5]",
}


@pytest.mark.parametrize("what", [*RATES, "a folder"])
def test_rates(cache_folder, monkeypatch, caplog, what):
    monkeypatch.setattr(catalogue, "_accelerator", lambda: None)
    before = catalogue.this_machine()
    content = RATES.get(what, what)
    if what not in RECORDS and what in RATES:
        here = b'{"%s": {"tflops": %s, "bandwidth_bytes_per_second": 1e10}}' % (before.title.encode(), content)
        content = b'{"record": "KeptRates", "version": 1, "rates": %s}' % here
    put(cache_folder / rates.FILE, content)
    assert catalogue.this_machine().tflops == before.tflops
    assert "rates.json in the cache is ignored" in caplog.text
    now = {"measured_at": time.time(), "torch": version("torch")}
    catalogue.keep_rates(before, rates.Rates(tflops={"float32": 0.25}, bandwidth_bytes_per_second=2e10, **now))
    assert catalogue.this_machine().tflops == {**before.tflops, "float32": 0.25}


TRACES = {
    **RECORDS,
    "other marks": b'{"record": "TracedStep", "version": 1, "terms": {"forward_end": [[0, 0, 0], [0, 0, 0]]}}',
    "too few figures": None,
    "not a number": None,
    "words": None,
}


@pytest.mark.parametrize("what", [*TRACES, "a folder"])
def test_traces(models, cache_folder, caplog, what):
    facts, workload = model_facts(str(models / "lm"), "causal-lm"), Workload(length_tokens=32)
    terms.known_terms.cache_clear()
    found = predict.predict(facts, workload)
    (path,) = (cache_folder / "traces").iterdir()
    content = TRACES.get(what, what)
    if content is None:
        record = json.loads(path.read_text())
        bad = {"too few figures": [[0.0], [0.0]], "not a number": [[0, 0, float("nan")], [0, 0, 0]], "words": "x"}
        content = json.dumps({**record, "terms": {**record["terms"], "forward_end": bad[what]}}).encode()
    good = path.read_bytes()
    put(path, content)
    terms.known_terms.cache_clear()
    assert predict.predict(facts, workload) == found
    assert f"{path.name} in the cache is ignored" in caplog.text
    assert path.read_bytes() == good
    terms.known_terms.cache_clear()


@pytest.mark.parametrize("how", [*FOLDERS, "a record of another version"])
@pytest.mark.parametrize("streaming", [False, True])
def test_prepared_data(tmp_path, cache_folder, caplog, how, streaming):
    write_rows(tmp_path / "a.jsonl", labelled(60))
    asked = {"name": "r", "model": "none", "task": "text-classification", "domains": {"d": "a.jsonl"}}
    recipe = Recipe(**asked, data={"streaming": streaming})
    first = data.prepare(recipe, recipe_folder=tmp_path)["d"]
    rows = first.rows("train")
    if how in FOLDERS:
        spoil(first.folder.parent, how)
    else:
        record = json.loads((first.folder / "data.json").read_text())
        (first.folder / "data.json").write_text(json.dumps({**record, "version": 99}))
        (first.folder.parent / cache.Seal.FILE).unlink()
        cache._seal(first.folder.parent)
    again = data.prepare(recipe, recipe_folder=tmp_path)["d"]
    assert (again.folder, again.rows("train")) == (first.folder, rows)
    assert again.record.files == first.record.files
    assert "in the cache is ignored and made anew" in caplog.text


@pytest.mark.parametrize("how", FOLDERS)
def test_samples(cache_folder, monkeypatch, caplog, how):
    text = "conversations:\n- [hi, hello]\n- [a, b, c, d]\n"
    archive = tar({"p-1/PKG-INFO": b"", "p-1/talk.yml": text.encode()})
    offer(
        monkeypatch, cache_folder, "datasets", "c", archive, archive="sdist", files=["talk.yml"], prepare="chatterbot"
    )
    path = samples.dataset("c").path
    good = path.read_bytes()
    spoil(path.parent, how)
    assert samples.dataset("c").path == path
    assert path.read_bytes() == good
    assert "in the cache is ignored and made anew" in caplog.text


@pytest.mark.parametrize("how", ["empty", "cut off", "a folder", "a link to nowhere"])
def test_package_files_of_samples(tmp_path, cache_folder, monkeypatch, caplog, how):
    """A good one is fetched in its place, by pip from a folder: nothing leaves this machine."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as wheel:
        wheel.writestr("talk.yml", "conversations: []")
        wheel.writestr("p-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: p\nVersion: 1\n")
        wheel.writestr("p-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("p-1.dist-info/RECORD", "")
    content = made.getvalue()
    entry = {"archive": "wheel", "files": ["talk.yml"], "prepare": "copy"}
    kept = offer(monkeypatch, cache_folder, "datasets", "c", content, **entry)
    put(kept, {"empty": b"", "cut off": content[:100]}.get(how, how))
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "p-1-py3-none-any.whl").write_bytes(content)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    assert (samples._cached(samples.dataset_entry("c")).path / "talk.yml").read_text() == "conversations: []"
    assert kept.read_bytes() == content
    assert f"{kept.name} in the cache is ignored and made anew" in caplog.text


@pytest.mark.parametrize("how", FOLDERS)
def test_gguf_models(models, tmp_path, cache_folder, caplog, monkeypatch, how):
    """Of which weights were unpacked. What reads GGUF is the library's; here a model's folder is copied."""
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF")
    monkeypatch.setattr(
        models_of.gguf, "dequantise", lambda _, folder: shutil.copytree(models / "lm", folder, dirs_exist_ok=True)
    )
    first = Path(models_of.resolve_model(str(gguf)).path)
    good = written(first)
    spoil(first, how)
    again = Path(models_of.resolve_model(str(gguf)).path)
    assert (again, written(again)) == (first, good)
    assert "in the cache is ignored and made anew" in caplog.text


@pytest.fixture(scope="module")
def kernels(tmp_path_factory) -> Path:
    """A cache in which the kernels were compiled."""
    from hfadapt.fast import compiled

    if compiled.passes() is None:
        pytest.skip("no C++ compiler here, or kernels are switched off")
    folder = tmp_path_factory.mktemp("kernels")
    assert load_kernels(folder).stderr == ""
    return folder


def load_kernels(folder: Path) -> subprocess.CompletedProcess[str]:
    """In a process of its own, which a bad library could end."""
    code = "import torch; from hfadapt.fast import kernels; x = torch.ones(4, 8); assert kernels.available(x)\n"
    code += "print(kernels.rms_norm(x, x[0], 0.0, 1.0)[0].sum().item())"
    environment = {**os.environ, "HFADAPT_CACHE": str(folder), "HFADAPT_KERNELS": "passes"}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    "how",
    ["a file cut off", *(pytest.param(how, marks=pytest.mark.slow) for how in ("a file changed", "a file", "no seal"))],
)
def test_compiled_kernels(kernels, how):
    (folder,) = (kernels / "kernels").iterdir()
    spoil(folder, how)
    done = load_kernels(kernels)
    assert (done.returncode, done.stdout.strip()) == (0, "64.0"), done.stderr
    assert "in the cache is ignored and made anew" in done.stderr
    assert load_kernels(kernels).stderr == "", "it is whole again"


# --- tests themselves ------------------------------------------------------------------------------------------------


def test_tests_and_what_they_start_have_a_home_and_caches_of_their_own():
    session = os.environ["HFADAPT_TEST_SESSION"]
    code = "from pathlib import Path; from hfadapt.core import cache; from huggingface_hub import constants\n"
    code += "print(Path.home(), cache.folder(), constants.HF_HOME, constants.HF_TOKEN_PATH, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    places = [*done.stdout.split(), str(Path.home()), str(cache.folder())]
    assert len(places) == 6
    assert all(place.startswith(session) for place in places), places
