"""The doctor says what is here and how to get what is not, without the network and without secrets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from hfadapt.cli import doctor
from hfadapt.cli.doctor import DoctorReport, examine, matrix_rate
from hfadapt.hardware import catalogue
from hfadapt.hardware.catalogue import Rates


def test_the_report_reads_back_and_shows_itself(tmp_path: Path) -> None:
    report = examine(measure=False)
    again = DoctorReport.read(report.write(tmp_path / "doctor.json"))
    assert again == report
    text = str(report)
    assert report.packages["torch"] in text
    assert "not measured" in text
    assert all(c.fix for c in report.capabilities if not c.available)


def test_tokens_are_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_verysecretvalue")
    report = examine(measure=False)
    assert "verysecret" not in report.model_dump_json()
    assert "a token is configured" in report._repr_markdown_()


def test_offline_switches_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub = next(c for c in examine(measure=False).capabilities if c.name == "Hugging Face Hub")
    assert not hub.available
    assert "HF_HUB_OFFLINE" in (hub.fix or "")


def test_rates_are_measured(monkeypatch: pytest.MonkeyPatch, cache_folder: Path) -> None:
    monkeypatch.setattr(doctor, "SIZES", (128,))
    monkeypatch.setattr(catalogue, "_accelerator", lambda: None)
    report = examine()
    assert report.float32_tflops is not None
    assert report.float32_tflops > 0
    assert report.bandwidth_bytes_per_second is not None
    assert "TFLOP/s" in str(report)
    kept = catalogue.this_machine()
    assert kept.tflops["float32"] == report.float32_tflops
    assert kept.bandwidth_bytes_per_second == report.bandwidth_bytes_per_second


class Machine:
    """Products whose seconds are said by `seconds(size, call)`; stands for the module `time` too."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: Callable[[int, int], float]) -> None:
        self.now, self.sizes, self.seconds = 0.0, list[int](), seconds
        monkeypatch.setattr(doctor, "time", self)
        monkeypatch.setattr(torch, "matmul", self.matmul)

    def perf_counter(self) -> float:
        return self.now

    def matmul(self, a: torch.Tensor, b: torch.Tensor) -> None:
        self.sizes.append(len(a))
        self.now += self.seconds(len(a), len(self.sizes))

    def rate(self) -> float | None:
        return matrix_rate("float32", catalogue.target("cpu-8gb"))


def test_a_slow_machine_is_measured_with_small_products_and_soon_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """300 million operations per second, as bfloat16 on some processors: a product of 2,048 takes a minute."""
    machine = Machine(monkeypatch, lambda size, call: 2 * size**3 / 3e8)
    assert machine.rate() == pytest.approx(3e-4)
    assert set(machine.sizes) == {256}
    assert machine.now < 5


def test_a_fast_machine_is_measured_with_large_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small ones are slow everywhere."""
    machine = Machine(monkeypatch, lambda size, call: 2 * size**3 / 1e12 + 1e-3)
    assert machine.rate() == pytest.approx(1, rel=0.1)
    assert machine.sizes[-1] == 2048


@pytest.mark.parametrize("busy", [1, 2, 4, 15])
def test_a_busy_moment_does_not_count(monkeypatch: pytest.MonkeyPatch, busy: int) -> None:
    """Neither before the first product nor later: what is left of the time is not the rate."""
    rate = Machine(monkeypatch, lambda size, call: 2 * size**3 / 1e11 + 100 * (call == busy)).rate()
    assert rate == pytest.approx(0.1)


@pytest.mark.parametrize("seconds", [0.0, 1e-30, 1e9])
def test_what_no_machine_can_be_is_not_measured(
    monkeypatch: pytest.MonkeyPatch, cache_folder: Path, seconds: float
) -> None:
    """A clock that stands still, or a process that was stopped: the estimate stays, and nothing is divided by zero."""
    machine = Machine(monkeypatch, lambda size, call: seconds)
    assert machine.rate() is None
    monkeypatch.setattr(catalogue, "_accelerator", lambda: None)
    before = catalogue.this_machine()
    report = examine()
    assert (report.float32_tflops, report.bfloat16_tflops) == (None, None)
    assert catalogue.this_machine().tflops == before.tflops


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_rates_that_cannot_be_are_no_rates(rate: float) -> None:
    with pytest.raises(ValidationError):
        Rates(tflops={"float32": rate})
    with pytest.raises(ValidationError):
        Rates(bandwidth_bytes_per_second=rate)


def test_a_missing_core_package_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "CORE", (*doctor.CORE, "no-such-package"))
    report = examine(measure=False)
    assert report.verdict == "broken"
    assert "no-such-package" in str(report)


def test_measured_rates_are_kept_for_plans(monkeypatch: pytest.MonkeyPatch, cache_folder: Path) -> None:
    monkeypatch.setattr(catalogue, "_accelerator", lambda: None)
    before = catalogue.this_machine()
    assert "estimated" in before.source["tflops"]
    catalogue.keep_rates(before, Rates(tflops={"float32": 0.5, "bfloat16": 4.0}, bandwidth_bytes_per_second=2e10))
    after = catalogue.this_machine()
    assert after.tflops == {"float32": 0.5, "bfloat16": 4.0}
    assert after.bandwidth_bytes_per_second == 2e10
    assert "measured" in after.source["tflops"]
