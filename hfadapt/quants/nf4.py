"""4-bit NormalFloat in blocks of 64 (Dettmers et al. 2023, QLoRA, arXiv 2305.14314)."""

from hfadapt.quants import Quant
from hfadapt.quants._blocks import BLOCK, GIVES, unpack

OPTIONS = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
KIND = Quant("nf4", 4, "Linear4bit", OPTIONS, GIVES, BLOCK, automatic=True, unpack=unpack)
