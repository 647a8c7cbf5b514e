"""LoRA started from the QR decomposition of W (Büyükakyüz 2024, arXiv 2406.01775)."""

from hfadapt.adapters import AdapterMethod
from hfadapt.quants import Access

KIND = AdapterMethod(
    "olora",
    needs=frozenset({Access.CHANGE}),
    reason="OLoRA changes the base's weights, which a quantised base cannot hold exactly",
    options={"init_lora_weights": "olora"},
    changes_base=True,
    traced_as="lora",
)
