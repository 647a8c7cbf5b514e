"""From sources to trustworthy splits: load, clean, de-duplicate, split, format, audit. No heavy import at the top."""

from hfadapt.data import augment, canaries
from hfadapt.data.audit.findings import CUT_OFF, Asked
from hfadapt.data.audit.report import DataReport
from hfadapt.data.audit.supervision import (
    audit,
    augmented,
    drop_cut_off,
    drop_too_long,
    lengths,
    require_clean,
    token_lengths,
)
from hfadapt.data.fit import fit
from hfadapt.data.measured import keep_lengths
from hfadapt.data.mistaken_columns import named_in
from hfadapt.data.prepared import PreparedDomain, prepare
from hfadapt.data.split_files import read_split

__all__ = [
    "CUT_OFF",
    "Asked",
    "DataReport",
    "PreparedDomain",
    "audit",
    "augment",
    "augmented",
    "canaries",
    "drop_cut_off",
    "drop_too_long",
    "fit",
    "keep_lengths",
    "lengths",
    "named_in",
    "prepare",
    "read_split",
    "require_clean",
    "token_lengths",
]
