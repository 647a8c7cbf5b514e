"""The folder is the registry; packages add names through entry points."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint

import pytest

from hfadapt.core import registry
from hfadapt.core.errors import RequestError


@pytest.mark.parametrize("kind", registry.KINDS)
def test_every_file_is_a_name_and_every_name_a_kind(kind):
    folder = registry.PACKAGE / kind
    inside = {path.stem.replace("_", "-") for path in folder.iterdir() if not path.stem.startswith("_")}
    assert inside
    assert inside == set(registry.names(kind))
    for name in registry.names(kind):
        assert registry.load(kind, name).name == name


def test_an_unknown_name_gives_the_nearest():
    with pytest.raises(RequestError, match="did you mean 'lora'"):
        registry.load("adapters", "lorra")
    with pytest.raises(RequestError, match="no quant of that name"):
        registry.load("quants", "int3")


def test_a_package_can_add_a_name(monkeypatch):
    entry = EntryPoint("mine", "hfadapt.quants.none:KIND", "hfadapt.quants")
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry] if group == "hfadapt.quants" else [])
    registry.names.cache_clear()
    registry.load.cache_clear()
    try:
        assert "mine" in registry.names("quants")
        assert registry.load("quants", "mine").name == "none"
    finally:
        monkeypatch.undo()
        registry.names.cache_clear()
        registry.load.cache_clear()


def test_every_folder_of_code_is_a_package():
    """Else a wheel would lack it."""
    folders = {path.parent for path in registry.PACKAGE.rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def test_code_and_version_of_a_package_are_known(monkeypatch, tmp_path):
    def made(version, code):
        place = tmp_path / f"{version} {len(code)}"
        (place / "another_package").mkdir(parents=True)
        (place / "another_package" / "__init__.py").write_text("")
        (place / "another_package" / "method.py").write_text(code)
        about = place / f"another_package-{version}.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: another-package\nVersion: {version}\n")
        (about / "entry_points.txt").write_text("[hfadapt.adapters]\nmine = another_package.method:KIND\n")
        monkeypatch.setattr(sys, "path", [str(place), *sys.path])
        registry.made_by.cache_clear()
        try:
            return registry.made_by("adapters", "mine")
        finally:
            monkeypatch.undo()
            registry.made_by.cache_clear()

    one = made("1.0", "KIND = None")
    assert one.startswith("another-package 1.0 ")
    assert len({one, made("1.1", "KIND = None"), made("1.0", "KIND = None  # changed")}) == 3
    assert registry.made_by("adapters", "lora") == ""
