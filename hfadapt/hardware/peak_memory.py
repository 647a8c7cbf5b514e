"""Measured peaks: how much memory a phase held at most above what the process held before.

On a CUDA device the allocator knows. On Linux the kernel keeps the high-water mark of the resident set, which can be
reset (proc(5), clear_refs 5). Elsewhere a thread samples the resident set.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

    import torch

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
SAMPLE_SECONDS = 0.02


def resident_bytes() -> int:
    """The process's resident set now."""
    import psutil

    return int(psutil.Process().memory_info().rss)


NO_MEMORY = (
    *("can't allocate memory", "annot allocate memory", "not enough memory", "std::bad_alloc"),
    *("CUDA out of memory", "OutOfMemoryError in replica", "CUBLAS_STATUS_ALLOC_FAILED"),
)
"""What libraries say in errors that have other causes too."""


def held_bytes(device: torch.device, floor_bytes: int) -> int:
    """What the process holds now: on a GPU its allocator's tensors, else the resident set above `floor_bytes`."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.memory_allocated(device))
    return max(0, resident_bytes() - floor_bytes)


own_process = False
"""Whether no objects but hfadapt's are in this process: set by the command line."""


class OneOfSeveral(MemoryError):
    """Memory ran out in one of several processes, which has to end, as the others wait for it; says what comes then."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, of the device or of the system, was not enough."""
    return (
        isinstance(error, MemoryError)
        or getattr(error, "errno", None) == errno.ENOMEM
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, (RuntimeError, OSError)) and any(words in str(error) for words in NO_MEMORY))
    )


def load_libraries() -> None:
    """Imports what every cell needs, so that the first one is not measured with the libraries' own memory.

    Where the process is hfadapt's own, the millions of objects that they made are not looked at again whenever memory
    is released.
    """
    import bitsandbytes  # noqa: F401
    import peft  # noqa: F401
    import sklearn.linear_model  # noqa: F401

    if own_process and not gc.get_freeze_count():
        gc.collect()
        gc.freeze()


def release_memory() -> None:
    """Gives freed memory back to the system, so that the next phase is measured from a clean start."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class PeakMemory:
    """Context manager: `peak_bytes` afterwards is the peak inside it above `floor_bytes`.

    Args:
        device: Where the model is; on a CPU the resident set is watched.
        floor_bytes: What to subtract, usually the resident set before the base was loaded.
    """

    def __init__(self, device: torch.device, floor_bytes: int) -> None:
        self.device = device
        self.floor_bytes = floor_bytes
        self.peak_bytes = 0
        self._sampled = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        if self.device.type == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats(self.device)
        elif not self._reset_high_water():
            self._thread = threading.Thread(target=self._sample, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.device.type == "cuda":
            import torch

            self.peak_bytes = torch.cuda.max_memory_allocated(self.device)
            return
        if self._thread:
            self._stop.set()
            self._thread.join()
            peak = max(self._sampled, resident_bytes())
        else:
            line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
            peak = int(line.split()[1]) * 1024
        self.peak_bytes = max(0, peak - self.floor_bytes)

    def _reset_high_water(self) -> bool:
        try:
            CLEAR_REFS.write_text("5")
        except OSError:
            return False
        return STATUS.exists()

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            self._sampled = max(self._sampled, resident_bytes())
