"""How fast this machine multiplies and copies: measured in seconds, bounded by what it can be, kept until it is old.

Plans take their times from these rates, so a rate says whether the machine was busy when it was measured.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib.metadata import version
from statistics import median
from time import perf_counter, process_time, sleep
from time import time as now
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from hfadapt.core import cache
from hfadapt.core.spec import Record, Spec

FILE = "rates.json"
"""In the cache folder: what was measured, by processor and cores."""
LASTS_SECONDS = 90 * 86_400.0
"""Drivers, firmware and cooling change within months. Another version of torch, with other kernels, ends it at once."""
BUSY_LASTS_SECONDS = 3_600.0
"""What other programs left over says nothing of tomorrow."""
FREE_SHARE = 0.8
"""Of the cores that a process may use, so much must be free while it measures; otherwise the machine is busy."""
FASTEST_HERTZ = 6.5e9
"""No core runs at more."""
FLOP_PER_CYCLE = {"avx512f": 64, "avx2": 32, "sve": 128, "asimddp": 32}
"""Of a core in float32, at most: two units with a product and a sum for each lane; of SVE at its widest."""
BFLOAT16_GAIN = {"amx_bf16": 32, "avx512_bf16": 2, "bf16": 4}
"""Products in bfloat16 for one in float32; without such units as many."""
LISTEN_SECONDS = 0.2
"""How long other programs are listened to before anything is measured."""
SIZES = (256, 512, 1024, 2048)
"""Of products on a CPU. A GPU is not busy with these, and has a larger one last."""
NEXT_SIZE = 8
"""Times the work of one size."""
SECONDS_EACH, SOON = 1.0, 0.25
"""For one rate, when it was asked for and when a plan has to know it."""
LEAST_CALLS, MOST_CALLS = 3, 9
Typical = Callable[[list[float]], float]
"""What of several measured seconds is taken."""
Tflops = Annotated[float, Field(ge=1e-6, le=1e5)]
"""From far below the slowest machine to far above the fastest: outside, something else than a product was timed."""
BytesPerSecond = Annotated[float, Field(ge=1e7, le=1e15)]


class Rates(Spec):
    """What was measured on one kind of device; empty where a measurement made no sense.

    `measured_at` is in seconds since 1970, `busy` whether other programs were using the machine.
    """

    tflops: dict[str, Tflops] = {}
    bandwidth_bytes_per_second: BytesPerSecond | None = None
    measured_at: float = 0.0
    busy: bool = False
    torch: str = ""

    @property
    def usable(self) -> bool:
        """Whether they are young enough; from the future they are not."""
        age = now() - self.measured_at
        return 0 <= age <= (BUSY_LASTS_SECONDS if self.busy else LASTS_SECONDS) and self.torch == version("torch")


class KeptRates(Record):
    """Rates by a target's title."""

    rates: dict[str, Rates] = {}


def kept(title: str) -> Rates | None:
    """Rates of a device that were measured and are not old."""
    file = cache.read(cache.folder() / FILE, KeptRates)
    found = file.rates.get(title) if file else None
    return found if found is not None and found.usable else None


def keep(title: str, measured: Rates) -> Rates:
    """Keeps measured rates for later plans; those of a busy machine do not take the place of better ones.

    Returns:
        What is kept.
    """
    path = cache.folder() / FILE
    file = cache.read(path, KeptRates) or KeptRates()
    before = file.rates.get(title)
    if measured.busy and before is not None and before.usable:
        measured = _better(before, measured)
    cache.write(path, KeptRates(rates={**file.rates, title: measured}))
    return measured


def _better(before: Rates, measured: Rates) -> Rates:
    """The higher rate of each kind, as old as the older ones."""
    names = before.tflops.keys() | measured.tflops.keys()
    tflops = {name: max(each.tflops.get(name, 0.0) for each in (before, measured)) for name in sorted(names)}
    copies = max(each.bandwidth_bytes_per_second or 0.0 for each in (before, measured))
    return before.model_copy(update={"tflops": tflops, "bandwidth_bytes_per_second": copies or None})


def most_tflops(dtype: str, features: Iterable[str]) -> float | None:
    """What all cores can do at most, by their instruction sets; None where these are not known, as on macOS."""
    here = set(features)
    each = max((flop for name, flop in FLOP_PER_CYCLE.items() if name in here), default=None)
    if each is None:
        return None
    gain = max((gain for name, gain in BFLOAT16_GAIN.items() if name in here), default=1) if dtype != "float32" else 1
    # A share of the cores' time may be all of them for a moment.
    return each * gain * FASTEST_HERTZ * (os.cpu_count() or 1) / 1e12


def plausible(tflops: dict[str, float], features: Iterable[str]) -> dict[str, float]:
    """Those rates of a CPU that it can have."""
    limits = {dtype: most_tflops(dtype, features) for dtype in tflops}
    return {dtype: rate for dtype, rate in tflops.items() if (most := limits[dtype]) is None or rate <= most}


# --- measured --------------------------------------------------------------------------------------------------------


def measure(
    dtypes: Iterable[str], kind: str, features: Iterable[str] = (), cores: int = 1, *, seconds: float, copies: bool
) -> Rates:
    """The rates of a device.

    Args:
        dtypes: Those whose products are timed.
        kind: The target's, `cpu` or one of the accelerators.
        features: A CPU's instruction sets, which bound its rates.
        cores: Those that this process may use.
        seconds: About how long each rate is measured.
        copies: Whether the bandwidth of memory is measured too.
    """
    others = Others()
    sleep(LISTEN_SECONDS if kind == "cpu" else 0.0)
    beside = kind == "cpu" and others.disturb(cores)
    typical = min if beside else median
    # Beside others several threads wait for the one that has no core, a hundred times as long as the product takes. The
    # fastest product of one thread is what a core can do. Else as many threads as there are cores, whatever
    # OMP_NUM_THREADS says now: rates are kept for plans of other days.
    with _threads(1 if beside else cores) if kind == "cpu" else nullcontext():
        found = {dtype: matrix_rate(dtype, kind, seconds, typical) for dtype in dtypes}
        bandwidth = copy_rate(kind, seconds, typical) if copies else None
    times = cores if beside else 1
    tflops = {dtype: times * rate for dtype, rate in found.items() if rate is not None}
    return Rates(
        tflops=plausible(tflops, features) if kind == "cpu" else tflops,
        bandwidth_bytes_per_second=bandwidth,
        measured_at=now(),
        busy=beside or (kind == "cpu" and others.disturb(cores)),
        torch=version("torch"),
    )


@contextmanager
def _threads(count: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Others:
    """What other programs have used of the machine's cores since this was made."""

    def __init__(self) -> None:
        self._start = self._now()

    @staticmethod
    def _now() -> tuple[float, float, float]:
        """Seconds of the clock, of all cores' work, and of this process's share of it."""
        import psutil

        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        # Linux counts guests twice.
        twice = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
        return perf_counter(), sum(times) - idle - twice, process_time()

    def cores(self) -> float:
        """Cores that others kept at work on average."""
        clock, all_work, own = (later - start for later, start in zip(self._now(), self._start, strict=True))
        return max(0.0, all_work - own) / clock if clock > 0 else 0.0

    def disturb(self, cores: int) -> bool:
        """Whether too little was left of the cores that this process may use."""
        return (os.cpu_count() or cores) - self.cores() < FREE_SHARE * cores


def matrix_rate(dtype: str, kind: str, seconds: float = SECONDS_EACH, typical: Typical = median) -> float | None:
    """Measured TFLOP/s of square products: of larger and larger ones, for as long as there is time for the next."""
    import torch

    device, rate, end = _device(kind), None, perf_counter() + seconds
    for size in SIZES if kind == "cpu" else (*SIZES, 4 * SIZES[-1]):
        a, b = (torch.randn(size, size, device=device).to(getattr(torch, dtype)) for _ in range(2))
        flop = 2 * size**3
        each = _call_seconds(partial(torch.matmul, a, b), device, end, typical)
        found = _per_second(flop / 1e12, each, Tflops)
        rate = max(rate or 0.0, found or 0.0) or None if typical is min else found or rate
        if perf_counter() + NEXT_SIZE * LEAST_CALLS * each > end:
            break
    return rate


def copy_rate(kind: str, seconds: float = SECONDS_EACH, typical: Typical = median) -> float | None:
    """Measured bytes per second read and written by copying blocks larger than the caches."""
    import torch

    device = _device(kind)
    source = torch.ones(32 << 20, dtype=torch.float32, device=device)
    copy = torch.empty_like(source)
    each = _call_seconds(lambda: copy.copy_(source), device, perf_counter() + seconds, typical)
    return _per_second(2 * source.numel() * source.itemsize, each, BytesPerSecond)


def _call_seconds(call: Callable[[], object], device: str, end: float, typical: Typical) -> float:
    """Of one call, after a first that is not counted: the median of some, and of more while `end` has not come, so that
    a busy moment does not count."""
    call()
    _wait(device)
    taken: list[float] = []
    while len(taken) < LEAST_CALLS or (perf_counter() < end and len(taken) < MOST_CALLS):
        started = perf_counter()
        call()
        _wait(device)
        taken.append(perf_counter() - started)
    return typical(taken)


def _per_second(work: float, seconds: float, allowed: Any) -> float | None:
    """Work per second, or None where no machine is like that: a clock that stood still, a process that was stopped."""
    try:
        rate: float = TypeAdapter(allowed, config={"allow_inf_nan": False}).validate_python(work / seconds)
    except (ZeroDivisionError, ValidationError):
        return None
    return rate


def _device(kind: str) -> str:
    return {"rocm": "cuda"}.get(kind, kind)


def _wait(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "xpu":
        torch.xpu.synchronize()
    elif device == "mps":
        torch.mps.synchronize()
