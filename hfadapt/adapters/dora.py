"""LoRA on the direction of W, with a learned magnitude (Liu et al. 2024, arXiv 2402.09353)."""

from hfadapt.adapters import AdapterMethod

KIND = AdapterMethod(
    "dora",
    quants=frozenset({"none", "nf4", "fp4"}),
    reason="DoRA needs the norm of W, which peft cannot read from an int8 layer",
    options={"use_dora": True},
)
