"""How fast this machine is: never by a busy moment, never what it cannot be, and not for longer than it holds."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from hfadapt.hardware import catalogue, rates
from hfadapt.hardware.rates import Others, Rates


class Machine:
    """Products whose seconds are said by `seconds(size, call)`; stands for the clock too."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: Callable[[int, int], float]) -> None:
        self.now, self.sizes, self.seconds = 0.0, list[int](), seconds
        monkeypatch.setattr(rates, "perf_counter", self.perf_counter)
        monkeypatch.setattr(torch, "matmul", self.matmul)

    def perf_counter(self) -> float:
        return self.now

    def matmul(self, a: torch.Tensor, b: torch.Tensor) -> None:
        self.sizes.append(len(a))
        self.now += self.seconds(len(a), len(self.sizes))

    def rate(self) -> float | None:
        return rates.matrix_rate("float32", "cpu")


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


def test_beside_other_programs_the_fastest_product_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most wait for a thread that has no core."""
    machine = Machine(monkeypatch, lambda size, call: 2 * size**3 / 1e11 + 0.02 * (call % 3 > 0))
    assert rates.matrix_rate("float32", "cpu") < 0.07
    machine.sizes.clear()
    assert rates.matrix_rate("float32", "cpu", typical=min) == pytest.approx(0.1)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_rates_that_cannot_be_are_no_rates(rate: float) -> None:
    with pytest.raises(ValidationError):
        Rates(tflops={"float32": rate})
    with pytest.raises(ValidationError):
        Rates(bandwidth_bytes_per_second=rate)


def made(float32: float, *, days: float = 0.0, busy: bool = False, by: str | None = None) -> Rates:
    """Rates that were measured so many days ago."""
    tflops = {"float32": float32}
    return Rates(tflops=tflops, measured_at=time.time() - 86_400 * days, busy=busy, torch=by or version("torch"))


@pytest.mark.parametrize(
    ("before", "later", "left"),
    [
        (made(2.0), made(1.0), 1.0),
        (made(2.0), made(1.0, busy=True), 2.0),
        (made(2.0), made(3.0, busy=True), 3.0),
        (made(2.0, days=89), made(1.0, busy=True), 2.0),
        (made(2.0, days=91), made(1.0, busy=True), 1.0),
        (made(2.0, by="0.1"), made(1.0, busy=True), 1.0),
        (made(2.0, busy=True), made(1.0), 1.0),
        (made(2.0, busy=True, days=0.01), made(1.0, busy=True), 2.0),
        (made(2.0, busy=True, days=1), made(1.0, busy=True), 1.0),
    ],
)
def test_rates_of_a_busy_machine_do_not_replace_better_ones(
    cache_folder: Path, before: Rates, later: Rates, left: float
) -> None:
    rates.keep("here", before)
    rates.keep("here", later)
    found = rates.kept("here")
    assert found is not None
    assert found.tflops == {"float32": left}


def test_better_rates_stay_as_old_as_they_are(cache_folder: Path) -> None:
    first = made(2.0, days=80)
    rates.keep("here", first)
    kept = rates.keep("here", made(1.0, busy=True))
    assert (kept.measured_at, kept.busy) == (first.measured_at, False)


@pytest.mark.parametrize(
    "old", [made(1.0, days=91), made(1.0, days=-1), made(1.0, by="0.1"), made(1.0, days=1, busy=True)]
)
def test_old_rates_are_not_used(cache_folder: Path, old: Rates) -> None:
    """Nor those of another torch, from the future, or of a machine that was busy yesterday."""
    rates.keep("here", old)
    assert rates.kept("here") is None
    rates.keep("here", made(1.0))
    assert rates.kept("here") is not None


@pytest.mark.parametrize(
    ("features", "float32", "bfloat16"),
    [
        (("avx2",), 0.208, 0.208),
        (("avx2", "avx512f"), 0.416, 0.416),
        (("avx2", "avx512f", "avx512_bf16"), 0.416, 0.832),
        (("avx2", "avx512f", "avx512_bf16", "amx_bf16"), 0.416, 13.3),
    ],
)
def test_no_rate_above_what_cores_and_instructions_allow(
    monkeypatch: pytest.MonkeyPatch, features: tuple[str, ...], float32: float, bfloat16: float
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    most = {dtype: rates.most_tflops(dtype, features) for dtype in ("float32", "bfloat16")}
    assert most == pytest.approx({"float32": float32, "bfloat16": bfloat16}, rel=1e-2)
    asked = {"float32": float32 * 1.1, "bfloat16": bfloat16 * 0.9}
    assert list(rates.plausible(asked, features)) == ["bfloat16"]
    assert rates.plausible(asked, ()) == asked, "instruction sets are not known everywhere"


def test_kept_rates_that_this_machine_cannot_have_are_not_used(
    cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "_accelerator", lambda: None)
    before = catalogue.this_machine()
    monkeypatch.setattr(rates, "most_tflops", lambda dtype, features: 1.0)
    catalogue.keep_rates(before, made(50.0))
    assert catalogue.this_machine().tflops == before.tflops
    catalogue.keep_rates(before, made(0.5))
    assert catalogue.this_machine().tflops == {**before.tflops, "float32": 0.5}


@pytest.mark.parametrize(
    ("all_work", "own", "cores", "busy"),
    [(20.0, 19.0, 2, False), (20.0, 5.0, 2, True), (30.0, 10.0, 2, False), (38.0, 2.0, 2, True), (0.0, 1.0, 4, False)],
)
def test_other_programs_disturb_where_they_leave_too_few_cores(
    monkeypatch: pytest.MonkeyPatch, all_work: float, own: float, cores: int, busy: bool
) -> None:
    """In ten seconds on a machine of four cores, or of two where all may be used."""
    monkeypatch.setattr("os.cpu_count", lambda: 2 if all_work == 20.0 else 4)
    marks = iter([(0.0, 0.0, 0.0), (10.0, all_work, own)])
    monkeypatch.setattr(Others, "_now", staticmethod(lambda: next(marks)))
    assert Others().disturb(cores) == busy


def test_work_of_this_process_is_not_that_of_others() -> None:
    others, end = Others(), time.process_time() + 0.3
    while time.process_time() < end:
        pass
    start, now = others._start, others._now()
    assert now[2] - start[2] >= 0.3
    assert now[1] - start[1] >= 0.2, "the system counts it too"


def test_a_plan_measures_once_where_nothing_is_known(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "_accelerator", lambda: None)
    monkeypatch.setattr(rates, "SIZES", (128,))
    monkeypatch.setattr(Others, "disturb", lambda self, cores: False)
    catalogue.measure_rates()
    found = catalogue.this_machine()
    assert found.source["tflops"] == "measured on this machine"
    monkeypatch.setattr(rates, "measure", None)
    catalogue.measure_rates()
    assert catalogue.this_machine().tflops == found.tflops


def test_beside_other_programs_one_core_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several threads would wait for the one that has no core; the caller has his threads again afterwards."""
    monkeypatch.setattr(Others, "disturb", lambda self, cores: True)
    monkeypatch.setattr(rates, "LISTEN_SECONDS", 0.0)
    before, seen = torch.get_num_threads(), []

    def one_core(dtype: str, kind: str, seconds: float, typical: rates.Typical) -> float:
        seen.append((torch.get_num_threads(), typical))
        return 0.01

    monkeypatch.setattr(rates, "matrix_rate", one_core)
    torch.set_num_threads(2)
    try:
        found = rates.measure(["float32"], "cpu", cores=4, seconds=0.1, copies=False)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == [(1, min)]
    assert found.tflops == {"float32": 0.04}
    assert found.busy


def test_rates_are_those_of_all_cores_whatever_threads_this_process_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Others, "disturb", lambda self, cores: False)
    monkeypatch.setattr(rates, "LISTEN_SECONDS", 0.0)
    before, seen = torch.get_num_threads(), []
    monkeypatch.setattr(rates, "matrix_rate", lambda *_: seen.append(torch.get_num_threads()) or 0.01)
    torch.set_num_threads(1)
    try:
        rates.measure(["float32"], "cpu", cores=3, seconds=0.1, copies=False)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    assert seen == [3]
