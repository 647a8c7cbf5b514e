"""Energy of training: from the counters of processor and cards where they can be read, else by codecarbon where that
is installed, else estimated from thermal design power. Carbon is stated only where somebody says what power costs.

RAPL and NVML count for the whole machine, so what else runs there is in the figure. Memory, fans, power supply and
cooling are not in any of them, except for memory where RAPL has a domain for it.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from hfadapt.core import resources
from hfadapt.hardware import processor
from hfadapt.records.evidence import Energy

if TYPE_CHECKING:
    import torch

POWERCAP = Path("/sys/class/powercap")
POWER = Path(processor.__file__).with_name("power.toml")
INTENSITY, COUNTRY = "HFADAPT_CARBON_INTENSITY", "HFADAPT_COUNTRY"
"""Environment variables: grams of CO2 equivalent per kWh; country as three letters of ISO 3166."""
JOULES_PER_KWH = 3.6e6
SAMPLE_SECONDS = 30.0
"""RAPL counters begin again after minutes at full power, so they are read more often than that."""
ASSUMED_WATTS_PER_CORE = 10.0


@dataclass
class Counter:
    """A counter that only grows, until it begins again at `range_joules`."""

    read: Callable[[], float]
    range_joules: float | None = None
    joules: float = 0.0
    last: float = 0.0

    def start(self) -> None:
        """Takes the first reading."""
        self.last = self.read()

    def update(self) -> None:
        """Adds what was used since the last reading."""
        now = self.read()
        used = now - self.last
        if used < 0:
            used += self.range_joules or 0.0
        self.joules += max(0.0, used)
        self.last = now


@dataclass(frozen=True)
class Part:
    """Energy of one part of the machine, and where it is from."""

    joules: float
    measured: bool
    how: str


class EnergyMeter:
    """Context manager around training; `energy(...)` afterwards. Nothing that fails in it stops training.

    Args:
        device: Where the model is trained.
        processes: Processes that train on this machine.
    """

    def __init__(self, device: torch.device, processes: int = 1) -> None:
        self.device, self.processes = device, processes
        self.seconds = self.cpu_seconds = 0.0
        self._cpu = list(_rapl())
        self._gpu = list(_nvml(device, processes)) if device.type == "cuda" else []
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._tracker: Any = None
        self._country: str | None = None
        self._carbon: tuple[float, float] | None = None

    @property
    def _counted(self) -> bool:
        """Whether counters see all of the machine."""
        return bool(self._cpu) and (bool(self._gpu) or self.device.type != "cuda")

    def __enter__(self) -> Self:
        if not self._counted:
            self._country, self._tracker = _codecarbon(self.processes)
        self._began, self._cpu_began = time.perf_counter(), time.process_time()
        for counter in (*self._cpu, *self._gpu):
            counter.start()
        if self._cpu:
            self._thread = threading.Thread(target=self._sample, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.seconds = time.perf_counter() - self._began
        self.cpu_seconds = time.process_time() - self._cpu_began
        self._stop.set()
        if self._thread:
            self._thread.join()
        self._update()
        if self._tracker is not None:
            with suppress(Exception):  # it is a report beside the training
                self._tracker.stop()
                data = self._tracker.final_emissions_data
                self._carbon = (data.energy_consumed * JOULES_PER_KWH, data.emissions * 1000)

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            self._update()

    def _update(self) -> None:
        for counter in (*self._cpu, *self._gpu):
            with suppress(Exception):  # so is this
                counter.update()

    def energy(self, training_seconds: float | None = None) -> Energy:
        """What training used.

        Args:
            training_seconds: Of the whole training, where an earlier process did a part of it; that part is taken to
                have used the same power.
        """
        joules, measured, how = self._found()
        grams: float | None = None
        if self._carbon and self._country:
            grams = self._carbon[1]
        if training_seconds is not None and training_seconds > self.seconds * 1.05 and self.seconds:
            scale = training_seconds / self.seconds
            joules, measured = joules * scale, False
            grams = grams * scale if grams is not None else None
            how += f"; {1 - 1 / scale:.0%} of the time was before a restart and is taken to have used the same power"
        intensity = _intensity()
        if intensity is not None:
            grams = joules / JOULES_PER_KWH * intensity
            how += f"; {intensity:g} g CO2 equivalent per kWh as {INTENSITY} says"
        return Energy(
            joules=joules,
            method="measured" if measured else "estimated",
            how=how,
            carbon_grams=grams,
            country=self._country or os.environ.get(COUNTRY) or None,
        )

    def _found(self) -> tuple[float, bool, str]:
        if self._carbon is not None:
            from importlib.metadata import version

            return self._carbon[0], False, f"codecarbon {version('codecarbon')}, offline"
        parts = [self._processor()]
        if self.device.type != "cpu":
            parts.append(self._card())
        return (
            sum(part.joules for part in parts),
            all(part.measured for part in parts),
            "; ".join(part.how for part in parts),
        )

    def _processor(self) -> Part:
        if self._cpu:
            return Part(sum(c.joules for c in self._cpu), True, "RAPL counters of the whole processor")
        name = processor.processor_name()
        entry = _listed("cpu", name)
        seconds = self.cpu_seconds * self.processes
        watts = entry["watts"] / entry["cores"] if entry else ASSUMED_WATTS_PER_CORE
        source = (
            f"thermal design power {entry['watts']} W over {entry['cores']} cores of {entry['stand_in']}, which stands "
            f"in for {name} ({entry['source']})"
            if entry
            else f"assumed for {name}"
        )
        return Part(seconds * watts, False, f"{seconds:.0f} s of processor time x {watts:.3g} W per core: {source}")

    def _card(self) -> Part:
        if self._gpu:
            return Part(sum(c.joules for c in self._gpu), True, f"NVML counters of {len(self._gpu)} card(s)")
        import torch

        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        entry = _listed("gpu", name)
        if entry is None:
            return Part(0.0, False, f"{name} not counted, since its power is not known")
        joules = self.seconds * entry["watts"] * self.processes
        how = f"{self.seconds:.0f} seconds x thermal design power {entry['watts']} W of {name} ({entry['source']})"
        return Part(joules, False, how + (f" x {self.processes}" if self.processes > 1 else ""))


def _listed(kind: str, name: str) -> dict[str, Any] | None:
    entries = resources.toml(POWER)[kind]
    return next((entry for entry in entries if re.search(entry["pattern"], name, re.I)), None)


def _intensity() -> float | None:
    with suppress(ValueError):
        found = float(os.environ.get(INTENSITY, ""))
        return found if 0 <= found < float("inf") else None
    return None


def _rapl() -> Iterator[Counter]:
    """Packages and their memory; `psys` holds both again. Only root may read them on most systems."""
    for folder in sorted(POWERCAP.glob("intel-rapl:*")):
        with suppress(OSError, ValueError):
            name = (folder / "name").read_text().strip()
            if not (name.startswith("package") or name == "dram"):
                continue
            counter = Counter(_microjoules(folder / "energy_uj"), _microjoules(folder / "max_energy_range_uj")())
            counter.read()
            yield counter


def _microjoules(path: Path) -> Callable[[], float]:
    return lambda: int(path.read_text()) / 1e6


def _millijoules(handle: Any) -> Callable[[], float]:
    import pynvml

    return lambda: float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3


def _nvml(device: torch.device, processes: int) -> Iterator[Counter]:
    """The cards that this process uses, or all where several processes do; on Volta and later."""
    import pynvml
    import torch

    own = torch.cuda.current_device() if device.index is None else device.index
    for index in range(torch.cuda.device_count()) if processes > 1 else (own,):
        with suppress(pynvml.NVMLError):
            pynvml.nvmlInit()
            # By its name for all: CUDA_VISIBLE_DEVICES changes the numbers.
            handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(index).uuid}")
            counter = Counter(_millijoules(handle))
            counter.read()
            yield counter


def _codecarbon(processes: int) -> tuple[str | None, Any]:
    """The country that codecarbon knows, and its tracker, started, which asks no network; None and None without it."""
    try:
        from codecarbon import OfflineEmissionsTracker
        from codecarbon.core.config import get_hierarchical_config

        logging.getLogger("codecarbon").setLevel(logging.CRITICAL)
        country = os.environ.get(COUNTRY) or get_hierarchical_config().get("country_iso_code")
        tracker = OfflineEmissionsTracker(
            # Without a country it does not start; what it then says about carbon is not used.
            country_iso_code=country or "USA",
            save_to_file=False,
            save_to_api=False,
            log_level="critical",
            tracking_mode="process" if processes == 1 else "machine",
            allow_multiple_runs=True,
        )
        tracker.start()
    except Exception:  # not installed, or not able to: it is a report beside the training
        return None, None
    return country, tracker
