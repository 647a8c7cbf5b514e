"""LoRA started from the principal singular vectors of W (Meng et al. 2024, arXiv 2404.02948)."""

from hfadapt.adapters import AdapterMethod
from hfadapt.quants import Access

KIND = AdapterMethod(
    "pissa",
    needs=frozenset({Access.CHANGE}),
    reason="PiSSA changes the base's weights, which a quantised base cannot hold exactly",
    # Randomised SVD with 16 iterations: seconds instead of minutes, and the residual makes up for its error.
    options={"init_lora_weights": "pissa_niter_16"},
    changes_base=True,
    traced_as="lora",
)
