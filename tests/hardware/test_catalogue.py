"""The catalogue of targets: complete, sourced, cheap to read; and what is found on this machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hfadapt.core.errors import RequestError
from hfadapt.hardware import catalogue

NAMES = catalogue.names()[1:]


def test_at_least_thirty_targets_of_every_kind() -> None:
    kinds = {catalogue.target(name).kind for name in NAMES}
    assert len(NAMES) >= 30
    assert kinds == {"cpu", "cuda", "rocm", "xpu", "mps", "serve-only"}
    assert {"cpu-8gb", "t4", "rtx-3060", "rtx-4090", "a10g", "l4", "a100-40gb", "h100"} <= set(NAMES)
    assert {"2x-rtx-4090", "8x-h100", "apple-m2-16gb", "raspberry-pi-5", "android-8gb"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_has_a_source(name: str) -> None:
    target = catalogue.target(name)
    figures = {"memory_gib": True, "tflops": bool(target.tflops), "bandwidth_gb_s": target.bandwidth_bytes_per_second}
    figures |= {"usable_ratio": target.usable_ratio < 1, "reserved_gib": target.reserved_bytes}
    missing = [figure for figure, stated in figures.items() if stated and not target.source.get(figure)]
    assert not missing
    assert 0 < target.budget_bytes <= target.memory_bytes
    assert set(target.tflops) <= set(target.dtypes)
    assert target.trains == (target.kind != "serve-only")
    assert target.trains == (target.exports == ())
    assert target.trains or (target.most_bytes > 1e6 and target.most_seconds > 0.001)
    assert {"float32", "int8"} >= target.latency.keys()
    assert target.name in str(target)


def test_no_bfloat16_before_ampere() -> None:
    for name in NAMES:
        target = catalogue.target(name)
        if target.kind == "cuda":
            assert ("bfloat16" in target.dtypes) == (
                target.compute_capability is not None and target.compute_capability >= 8
            )


def test_two_cards_are_the_same_card_twice() -> None:
    one, two = catalogue.target("rtx-4090"), catalogue.target("2x-rtx-4090")
    assert (two.devices, two.memory_bytes, two.source) == (2, one.memory_bytes, one.source)


def test_an_unknown_name_gets_the_nearest_one() -> None:
    with pytest.raises(RequestError, match="rtx-4090"):
        catalogue.target("rtx-4009")


def test_names_are_read_without_torch() -> None:
    code = "import sys; from hfadapt.hardware import catalogue; catalogue.names(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_this_machine_is_detected() -> None:
    machine = catalogue.target("this-machine")
    assert machine.memory_bytes > 1 << 30
    assert 0 < machine.budget_bytes <= machine.memory_bytes
    assert machine.cores is not None
    assert machine.cores >= 1
    assert "float32" in machine.dtypes


def test_the_control_group_limit_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "_control_groups", lambda: [(3 << 30, 1 << 30)])
    total, free = catalogue.memory_limits()
    assert total == 3 << 30
    assert free <= 2 << 30


def test_a_group_that_cannot_be_read_is_ignored(tmp_path: Path) -> None:
    assert catalogue._number(tmp_path / "memory.max") is None
    (tmp_path / "memory.max").write_text("max\n")
    assert catalogue._number(tmp_path / "memory.max") is None
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 7\n")
    assert catalogue._inactive_cache(tmp_path) == 7


def test_a_detected_card_gets_the_catalogued_rates() -> None:
    found = catalogue._same_card("NVIDIA A100-SXM4-80GB", int(79.3 * 2**30))
    assert found is not None
    assert found.name == "a100-80gb"
    assert catalogue._same_card("NVIDIA GeForce RTX 4090", int(23.6 * 2**30)).name == "rtx-4090"  # type: ignore[union-attr]
    assert catalogue._same_card("Some other card", 8 << 30) is None
