"""LoRA scaled by alpha / sqrt(R), stable at high rank (Kalajdzievski 2023, arXiv 2312.03732)."""

from hfadapt.adapters import AdapterMethod

KIND = AdapterMethod("rslora", options={"use_rslora": True}, traced_as="lora", convolves=True)
