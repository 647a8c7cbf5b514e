"""LLM.int8(): row-wise int8 weights (Dettmers et al. 2022, arXiv 2208.07339)."""

from hfadapt.quants import Quant

KIND = Quant("int8", 8, "Linear8bitLt", {"load_in_8bit": True})
