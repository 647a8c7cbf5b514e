"""How glibc's malloc is set for a run on a CPU, so that freed memory is used again.

torch asks for aligned blocks, and glibc keeps the slivers left and right of them in per-thread caches, where they never
join the block again when it is freed; the next request of the same size does not fit the hole, and the resident set
grows to 1.7 to 5 times what is alive. Without these caches it stays at 1.2 to 2 times, at the same speed. And glibc
gives the top of its memory back as soon as 128 KiB are free there: every step then asks for it again, page by page,
which is 3 to 6 % of the time of a small model. Both can be changed only when a process starts, by GLIBC_TUNABLES;
`restart` does that.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from contextlib import suppress

VARIABLE = "GLIBC_TUNABLES"
CACHES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64", "LRU_CACHE_CAPACITY": "64"}
"""oneDNN and torch's layer above it (ideep) each keep compiled products for 1,024 shapes; as rows differ in length, a
run meets new shapes in every batch and holds hundreds of MiB of them: 6 MiB more with each step of MiniLM. With 64 the
training step is as fast."""
TUNABLES = (
    "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0:"
    f"glibc.malloc.mmap_threshold={32 << 20}:glibc.malloc.trim_threshold={64 << 20}"
)


def malloc_tuned() -> bool:
    """Whether this process runs with the settings, or on a system whose allocator does not need them."""
    return platform.libc_ver()[0] != "glibc" or TUNABLES in os.environ.get(VARIABLE, "")


def environment() -> dict[str, str]:
    """The environment of this process with the settings added, for starting another one."""
    others = [part for part in os.environ.get(VARIABLE, "").split(":") if part and "glibc.malloc." not in part]
    return {**CACHES, **os.environ, VARIABLE: ":".join([*others, TUNABLES])}


def restart() -> None:
    """Starts this program again with the settings, in the same process; call it before anything heavy is imported.

    Does nothing when they are in force already, are not needed, or the command line is unknown (embedded Python).
    """
    for name, value in CACHES.items():
        os.environ.setdefault(name, value)
    arguments = getattr(sys, "orig_argv", [])
    if malloc_tuned() or not arguments or not sys.executable:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *arguments[1:]], environment())


MMAP_THRESHOLD = -3
"""`M_MMAP_THRESHOLD` of glibc's malloc.h."""
MATRIX_BYTES = 2 << 20


def give_back_matrices() -> None:
    """From now on blocks of 2 MiB and more go back to the system when they are freed.

    Layers of a divided base come and go, and activations that stay would be put into the room that they leave, so that
    the next layer does not fit there: a pass would end with half of the model's size in such holes.
    """
    if platform.libc_ver()[0] == "glibc":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, MATRIX_BYTES)
