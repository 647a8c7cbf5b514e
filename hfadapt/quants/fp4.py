"""4-bit floating point in blocks of 64."""

from hfadapt.quants import Quant

KIND = Quant("fp4", 4, "Linear4bit", {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"})
