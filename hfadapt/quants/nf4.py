"""4-bit NormalFloat in blocks of 64 (Dettmers et al. 2023, QLoRA, arXiv 2305.14314)."""

from hfadapt.quants import Quant

KIND = Quant("nf4", 4, "Linear4bit", {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"})
