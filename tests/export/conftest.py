"""Trained cells to export."""

from __future__ import annotations

import pytest
from cells import trained
from tiny import labelled


@pytest.fixture(scope="session")
def classifier(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cls")
    return trained(folder, models / "encoder", "text-classification", labelled(100), dtype="float32")
