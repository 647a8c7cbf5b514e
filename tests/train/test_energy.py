"""Energy: counters are read right, also when they begin again; estimates name their figures; carbon is not made up."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pynvml
import pytest
import torch

from hfadapt.train import energy
from hfadapt.train.energy import Counter, EnergyMeter

CPU = torch.device("cpu")


class Clock:
    """Stands for the module `time`: seconds go by when somebody works or waits."""

    def __init__(self):
        self.wall = self.cpu = 0.0

    def perf_counter(self):
        return self.wall

    def process_time(self):
        return self.cpu

    def wait(self, seconds):
        self.wall += seconds

    def work(self, seconds):
        self.wall += seconds
        self.cpu += seconds


clock = Clock()


@pytest.fixture(autouse=True)
def plain(monkeypatch, tmp_path):
    """No counters, no codecarbon, nothing in the environment, and a processor that everybody knows."""
    monkeypatch.setattr(energy, "time", clock)
    monkeypatch.setattr(energy, "POWERCAP", tmp_path / "powercap")
    monkeypatch.setitem(sys.modules, "codecarbon", None)
    monkeypatch.delenv(energy.INTENSITY, raising=False)
    monkeypatch.delenv(energy.COUNTRY, raising=False)
    monkeypatch.setattr(energy.processor, "processor_name", lambda: "Intel(R) Xeon(R) Processor")


def rapl(folder, microjoules, name="package-0", number=0, most=10_000_000):
    domain = folder / f"powercap/intel-rapl:{number}"
    domain.mkdir(parents=True, exist_ok=True)
    (domain / "name").write_text(f"{name}\n")
    (domain / "energy_uj").write_text(f"{microjoules}\n")
    (domain / "max_energy_range_uj").write_text(f"{most}\n")


def test_counters_of_the_processor(tmp_path):
    rapl(tmp_path, 2_000_000)
    rapl(tmp_path, 1_000_000, "dram", 1)
    rapl(tmp_path, 9_000_000, "psys", 2)
    with EnergyMeter(CPU) as meter:
        rapl(tmp_path, 5_000_000)
        rapl(tmp_path, 1_500_000, "dram", 1)
        rapl(tmp_path, 9_900_000, "psys", 2)
    found = meter.energy()
    assert found.joules == pytest.approx(3.5), "psys holds the others again"
    assert (found.method, found.carbon_grams, found.country) == ("measured", None, None)
    assert "RAPL" in found.how


def test_a_counter_that_begins_again():
    readings = iter([9.0, 9.5, 1.0, 2.0])
    counter = Counter(lambda: next(readings), 10.0)
    counter.start()
    for _ in range(3):
        counter.update()
    assert counter.joules == pytest.approx(0.5 + 1.5 + 1.0)


def test_a_counter_that_may_not_be_read_is_no_counter(tmp_path):
    (tmp_path / "powercap/intel-rapl:0").mkdir(parents=True)
    (tmp_path / "powercap/intel-rapl:0/name").write_text("package-0\n")
    with EnergyMeter(CPU) as meter:
        clock.work(0.1)
    assert meter.energy().method == "estimated"


def test_an_estimate_names_its_figures_and_follows_the_work():
    with EnergyMeter(CPU) as idle:
        clock.wait(30)
    with EnergyMeter(CPU) as busy:
        clock.work(30)
    found = busy.energy()
    assert found.joules == pytest.approx(30 * 350 / 56)
    assert idle.energy().joules == 0, "waiting costs no processor time"
    assert found.method == "estimated"
    for said in ("350 W", "56 cores", "Intel Xeon Platinum 8480+", "stands in", "https://"):
        assert said in found.how


def test_an_unknown_processor_is_said_to_be_assumed(monkeypatch):
    monkeypatch.setattr(energy.processor, "processor_name", lambda: "Loongson")
    with EnergyMeter(CPU) as meter:
        clock.work(0.05)
    assert "assumed for Loongson" in meter.energy().how


def test_the_part_before_a_restart(tmp_path):
    rapl(tmp_path, 0)
    with EnergyMeter(CPU) as meter:
        clock.work(10)
        rapl(tmp_path, 4_000_000)
    found = meter.energy(training_seconds=meter.seconds * 4)
    assert found.joules == pytest.approx(16.0)
    assert found.method == "estimated"
    assert "75% of the time was before a restart" in found.how


def test_carbon_only_where_the_intensity_is_known(tmp_path, monkeypatch):
    monkeypatch.setenv(energy.INTENSITY, "50")
    monkeypatch.setenv(energy.COUNTRY, "FRA")
    rapl(tmp_path, 0)
    with EnergyMeter(CPU) as meter:
        rapl(tmp_path, 7_200_000)
    found = meter.energy()
    assert found.carbon_grams == pytest.approx(7.2 / 3.6e6 * 50)
    assert found.country == "FRA"
    monkeypatch.setenv(energy.INTENSITY, "much")
    assert meter.energy().carbon_grams is None


@pytest.mark.parametrize("country", [None, "FRA"])
def test_codecarbon_where_it_is_installed(monkeypatch, country):
    """A stand-in with codecarbon's names: what is passed to it, and what is taken from it."""
    asked = {}

    class Tracker:
        def __init__(self, **options):
            asked.update(options)

        def start(self):
            asked["started"] = True

        def stop(self):
            self.final_emissions_data = SimpleNamespace(energy_consumed=1e-3, emissions=2e-4)

    package, core, config = (ModuleType(f"codecarbon{name}") for name in ("", ".core", ".core.config"))
    package.OfflineEmissionsTracker = Tracker
    config.get_hierarchical_config = lambda: {"country_iso_code": country} if country else {}
    for module in (package, core, config):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "3.3.2")
    with EnergyMeter(CPU) as meter:
        pass
    found = meter.energy()
    assert asked["started"]
    assert (asked["save_to_api"], asked["save_to_file"]) == (False, False)
    assert found.joules == pytest.approx(3600)
    assert (found.method, found.how) == ("estimated", "codecarbon 3.3.2, offline")
    assert (found.carbon_grams, found.country) == ((pytest.approx(0.2), "FRA") if country else (None, None))


def test_the_cards_that_are_counted(monkeypatch):
    """A stand-in for the driver: three cards, of which one is too old to count and one is unknown to it."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=f"u{index}"))
    millijoules = {"GPU-u0": 5_000, "GPU-u2": 7_000}

    def handle(uuid):
        if uuid == "GPU-u1":
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return uuid

    def consumption(handle):
        if handle == "GPU-u2":
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return millijoules[handle]

    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", handle)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetTotalEnergyConsumption", consumption)
    assert [counter.read() for counter in energy._nvml(torch.device("cuda", 0), 3)] == [5.0]
    assert not list(energy._nvml(torch.device("cuda", 2), 1))


def test_no_card_is_counted_without_a_driver(monkeypatch):
    def without():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", without)
    assert not list(energy._nvml(torch.device("cuda", 0), 1))


def test_a_card_by_its_counter_and_by_its_name(monkeypatch):
    cuda = torch.device("cuda", 0)
    readings = iter([100.0, 100.0, 350.0])
    monkeypatch.setattr(energy, "_nvml", lambda device, processes: [Counter(lambda: next(readings))])
    with EnergyMeter(cuda) as meter:
        next(readings)
    assert meter._card().joules == pytest.approx(250.0)
    assert meter.energy().method == "estimated", "the processor beside it is not measured"
    monkeypatch.setattr(energy, "_nvml", lambda device, processes: [])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-40GB")
    with EnergyMeter(cuda) as meter:
        clock.wait(50)
    assert meter.seconds == pytest.approx(50)
    assert meter._card().joules == pytest.approx(meter.seconds * 400)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Card of tomorrow")
    assert "not counted" in meter._card().how
