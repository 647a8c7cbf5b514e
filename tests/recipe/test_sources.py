"""Where sources lie, and which columns a file shows in its head."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from hfadapt.files import folders
from hfadapt.files.reading import column_names
from hfadapt.recipe.sources import resolve_source


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("data.csv", "empty.csv", "test.csv", ".hidden.csv"):
        (tmp_path / name).write_text("text\n")
    (tmp_path / "nothing").mkdir()
    return tmp_path


def test_resolve_source(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(elsewhere)
    (elsewhere / "data.csv").write_text("a\n")
    (elsewhere / "only.csv").write_text("a\n")
    assert resolve_source("data.csv", folder) == folder / "data.csv"
    assert resolve_source("only.csv", folder) == elsewhere / "only.csv"
    assert resolve_source("gone.csv", folder) is None
    assert resolve_source("imdb", folder) is None
    assert resolve_source("sample:vader/news", folder) is None
    assert resolve_source("x" * 5000, folder) is None
    found = resolve_source("*.csv", folder)
    assert found is not None
    assert [path.name for path in folders.find(found).data] == ["data.csv", "empty.csv", "test.csv"]
    assert folders.find(folder / "nothing").data == ()


def test_column_names(folder: Path) -> None:
    from pyarrow import Table, parquet

    def columns(name: str, content: str | bytes) -> tuple[str, ...] | None:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return column_names(folder / name)

    parquet.write_table(Table.from_pydict({"p": [1], "q": [2]}), folder / "x.parquet")
    assert column_names(folder / "x.parquet") == ("p", "q")
    assert columns("a.csv", '\ufeff"a,b";c;d\n1;2;3\n') == ("a,b", "c", "d")
    assert columns("a.tsv", "a b\tc\n") == ("a b", "c")
    assert columns("a.json", json.dumps({"data": [{"a": 1}, {"b": 2}]})) == ("a", "b")
    assert columns("a.jsonl.gz", gzip.compress(b'{"a": "\xe2\x80\xa8"}\n')) == ("a",)
    assert columns("b.jsonl", '{"a": 1}\nbroken\n') is None
    assert columns("c.csv", b"\xff\xfe\n") is None
    assert columns("d.parquet", "not parquet") is None
    assert columns("e.jsonl", '{"a": 1}\n' + '{"b": 1}\n' * 200_000) == ("a", "b")
