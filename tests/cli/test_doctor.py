"""The doctor says what is here and how to get what is not, without the network and without secrets."""

from __future__ import annotations

from pathlib import Path

import pytest

from hfadapt.cli import doctor
from hfadapt.cli.doctor import DoctorReport, examine
from hfadapt.hardware import catalogue, rates


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


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch, cache_folder: Path) -> None:
    monkeypatch.setattr(rates, "SIZES", (128,))
    monkeypatch.setattr(catalogue, "_accelerator", lambda: None)


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("busy", [False, True])
def test_rates_are_measured_and_kept_for_plans(monkeypatch: pytest.MonkeyPatch, busy: bool) -> None:
    monkeypatch.setattr(rates.Others, "disturb", lambda self, cores: busy)
    before = catalogue.this_machine()
    assert "estimated" in before.source["tflops"]
    report = examine()
    assert report.float32_tflops is not None
    assert report.bandwidth_bytes_per_second is not None
    assert "TFLOP/s" in str(report)
    assert ("busy: rates may be low" in str(report)) == busy
    kept = catalogue.this_machine()
    assert kept.tflops["float32"] == report.float32_tflops
    assert kept.bandwidth_bytes_per_second == report.bandwidth_bytes_per_second
    assert kept.busy == busy
    assert kept.source["tflops"].startswith("measured")
    assert ("busy" in kept.source["tflops"]) == busy


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("seconds", [0.0, 1e-30, 1e9])
def test_what_no_machine_can_be_is_not_measured(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """A clock that stands still, or a process that was stopped: the estimate stays, and nothing is divided by zero."""
    monkeypatch.setattr(rates, "_call_seconds", lambda call, device, end, typical: seconds)
    before = catalogue.this_machine()
    report = examine()
    assert (report.float32_tflops, report.bfloat16_tflops) == (None, None)
    assert catalogue.this_machine().tflops == before.tflops


def test_a_missing_core_package_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "CORE", (*doctor.CORE, "no-such-package"))
    report = examine(measure=False)
    assert report.verdict == "broken"
    assert "no-such-package" in str(report)
