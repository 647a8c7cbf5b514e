"""LoRA with its usual start: A random, B zero (Hu et al. 2021, arXiv 2106.09685)."""

from hfadapt.adapters import AdapterMethod

KIND = AdapterMethod("lora", convolves=True)
