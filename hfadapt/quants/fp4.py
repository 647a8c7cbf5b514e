"""4-bit floating point in blocks of 64."""

from hfadapt.quants import Quant
from hfadapt.quants._blocks import BLOCK, GIVES, unpack

OPTIONS = {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}
KIND = Quant("fp4", 4, "Linear4bit", OPTIONS, GIVES, BLOCK, unpack=unpack)
