"""No quantisation: the base keeps its dtype."""

from hfadapt.quants import Access, Quant

KIND = Quant("none", 0, "Linear", gives=frozenset({Access.TRAIN, Access.CHANGE, Access.READ}))
