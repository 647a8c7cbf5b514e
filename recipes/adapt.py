"""Entry for launchers that want a script: `accelerate launch recipes/adapt.py RECIPE [FIELD=VALUE]…` on GPUs.

It is `hfadapt run` with the same arguments. On CPUs use `torchrun --nproc_per_node 2 -m hfadapt run RECIPE`.
"""

import sys

from hfadapt.__main__ import start

if __name__ == "__main__":
    sys.argv.insert(1, "run")
    start()
