"""`hfadapt` and `python -m hfadapt`, also for torchrun: `torchrun --nproc_per_node 2 -m hfadapt run RECIPE`."""

import sys

from hfadapt.cli.app import HEAVY, main
from hfadapt.hardware.allocator import restart


def start() -> None:
    """The command line, with the memory allocator set for training where that matters."""
    if sys.argv[1:2] and sys.argv[1] in HEAVY:
        restart()
    main()


if __name__ == "__main__":
    start()
