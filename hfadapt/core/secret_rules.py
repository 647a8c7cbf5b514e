"""What secrets and addresses look like: for published files, cards, quotes in cards and personal data in texts."""

from __future__ import annotations

import re

_WORDS = {
    "Hugging Face token": r"(?:hf|api_org)_[A-Za-z0-9]{16,}",
    "AWS key": r"(?:AKIA|ASIA|AROA|AIDA|AGPA)[A-Z0-9]{16}\b",
    "GitHub token": r"gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}",
    "GitLab token": r"glpat-[A-Za-z0-9_-]{16,}",
    "Slack token": r"xox[abposr]-[A-Za-z0-9-]{10,}",
    "Google key": r"AIza[A-Za-z0-9_-]{35}",
    "API key": r"sk-[A-Za-z0-9_-]{20,}",
    "package index token": r"pypi-AgE[A-Za-z0-9_-]{16,}|npm_[A-Za-z0-9]{30,}",
    "JSON web token": r"eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}",
}
_OTHERS = {
    "private key": r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?:-----)?",
    "AWS secret key": r"(?i)(?<![a-z])aws.{0,30}?[\"'=:\s][A-Za-z0-9/+]{40}(?![A-Za-z0-9/+=])",
    "password in an address": r"\b[a-z][a-z0-9+.-]*://[^/\s:@\"']+:[^/\s:@\"']+@[\w.-]",
    "named secret": r"(?i)(?<![a-z0-9])"
    r"(?:api[_-]?key|client[_-]?secret|secret|passw(?:or)?d|(?:access|auth|hf|hub)[_-]?token)"
    r"[\\\"']{0,2}\s*[:=]\s*[\\\"']{0,2}(?=[A-Za-z+/_-]*\d)[A-Za-z0-9+/_-]{16,}",
}
EMAIL = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
KEY = re.compile(rf"\b(?:{'|'.join(_WORDS.values())})|{_OTHERS['private key']}")
"""A secret that is known by its own shape, wherever it stands."""

RULES = tuple((name, re.compile(rf"\b(?:{shape})")) for name, shape in _WORDS.items()) + tuple(
    (name, re.compile(pattern)) for name, pattern in _OTHERS.items()
)
"""All kinds of secrets by name, also those that only the words beside them give away."""
