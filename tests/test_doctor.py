"""The doctor says what is here and how to get what is not, without the network and without secrets."""

from __future__ import annotations

from pathlib import Path

import pytest

from hfadapt.cli import doctor
from hfadapt.cli.doctor import DoctorReport, examine
from hfadapt.hardware import catalogue


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


def test_rates_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "SECONDS_EACH", 0.02)
    monkeypatch.setattr(doctor, "MATRIX", 128)
    monkeypatch.setattr(catalogue, "_accelerator", lambda: None)
    report = examine()
    assert report.float32_tflops is not None
    assert report.float32_tflops > 0
    assert report.bandwidth_bytes_per_second is not None
    assert "TFLOP/s" in str(report)


def test_a_missing_core_package_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "CORE", (*doctor.CORE, "no-such-package"))
    report = examine(measure=False)
    assert report.verdict == "broken"
    assert "no-such-package" in str(report)


def test_measured_rates_are_kept_for_plans(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HFADAPT_CACHE", str(tmp_path))
    monkeypatch.setattr(catalogue, "_accelerator", lambda: None)
    before = catalogue.this_machine()
    assert "estimated" in before.source["tflops"]
    catalogue.keep_rates(before, {"float32": 0.5, "bfloat16": 4.0}, 2e10)
    after = catalogue.this_machine()
    assert after.tflops == {"float32": 0.5, "bfloat16": 4.0}
    assert after.bandwidth_bytes_per_second == 2e10
    assert "measured" in after.source["tflops"]
    (tmp_path / catalogue.RATES_FILE).write_text("not JSON")
    assert catalogue.this_machine().tflops == before.tflops
