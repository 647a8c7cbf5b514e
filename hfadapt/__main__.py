"""`hfadapt` and `python -m hfadapt`, also for torchrun: `torchrun --nproc_per_node 2 -m hfadapt run RECIPE`."""

import os
import sys


def start() -> None:
    """The command line, with the memory allocator set for training where that matters."""
    open_standard_streams()
    try:
        from hfadapt.cli.app import HEAVY, main
        from hfadapt.hardware import peak_memory
        from hfadapt.hardware.allocator import restart

        if sys.argv[1:2] and sys.argv[1] in HEAVY and "--help" not in sys.argv:
            restart()
            peak_memory.own_process = True
    except KeyboardInterrupt:
        sys.exit(130)
    main()


def open_standard_streams() -> None:
    """Closed ones (`>&-`, daemons) lead nowhere: otherwise the next file that is opened would take their place."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is the one that is closed; the process that `restart` makes inherits it.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8", closefd=False))  # noqa: SIM115


if __name__ == "__main__":
    start()
