"""How much the fast path works on at once, which its memory follows from, and its switch; for who needs no torch."""

SWITCH = "HFADAPT_KERNELS"
"""Set to `off`, nothing is compiled and plain torch is used; `passes` leaves out the tiles only."""

QUERY_BLOCK = 512
"""Queries of one row that are worked on at once; with a causal mask later keys are then left out."""
MOST_SCORES = 8_000_000
"""Attention scores held at once: 16 MB in 16 bits."""
LOSS_LOGITS = 16_000_000
"""Logits made at once: 32 MB in 16 bits."""
