"""NF4 whose scales are quantised too (Dettmers et al. 2023, arXiv 2305.14314)."""

from hfadapt.quants import Quant
from hfadapt.quants._blocks import unpack

KIND = Quant(
    "nf4-double",
    4,
    "Linear4bit",
    {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    block=64,
    unpack=unpack,
)
