"""Which software and machine made a record."""

from __future__ import annotations

import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from hfadapt import __version__
from hfadapt.hardware import catalogue
from hfadapt.records.stages import Versions

PACKAGES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "datasets", "evaluate", "huggingface_hub")


@cache
def versions(device: str) -> Versions:
    """Versions of hfadapt, Python and the core packages, and the machine, without host or user names."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return Versions(
        hfadapt=__version__,
        python=platform.python_version(),
        packages=found,
        platform=f"{platform.system()} {platform.machine()}",
        processor=catalogue.processor_name(),
        device=device,
    )
