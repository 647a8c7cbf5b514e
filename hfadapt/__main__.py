"""`python -m hfadapt`, also for torchrun: `torchrun --nproc_per_node 2 -m hfadapt run RECIPE`."""

from hfadapt.cli import main

main()
