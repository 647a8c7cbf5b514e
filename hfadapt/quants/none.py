"""No quantisation: the base keeps its dtype."""

from hfadapt.quants import Quant

KIND = Quant("none", 0, "Linear", {})
