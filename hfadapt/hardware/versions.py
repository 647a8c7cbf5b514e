"""Which software and machine made a record."""

from __future__ import annotations

import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from hfadapt import __version__
from hfadapt.hardware import processor
from hfadapt.records.stages import Versions

PACKAGES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "datasets", "evaluate", "huggingface_hub")


def installed(package: str) -> str | None:
    """The version of a package; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@cache
def versions(device: str) -> Versions:
    """Versions of hfadapt, Python and the core packages, and the machine, without host or user names."""
    return Versions(
        hfadapt=__version__,
        python=platform.python_version(),
        packages={name: text for name in PACKAGES if (text := installed(name)) is not None},
        platform=f"{platform.system()} {platform.machine()}",
        processor=processor.processor_name(),
        device=device,
    )
