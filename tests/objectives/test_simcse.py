"""Contrasts of texts."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from transformers import CanineTokenizer

from hfadapt.objectives.simcse import KIND


def test_a_tokenizer_written_in_python_does():
    """It does not say which word a token belongs to, which nothing here asks for."""
    learner = KIND.learner(SimpleNamespace(model=torch.nn.Identity()), 0)
    rows = [{"text": "a short text"}, {"text": "another one, which is longer"}]
    (group,) = learner.encode(rows, CanineTokenizer(), max_length=16)
    assert sorted(map(len, group.inputs["texts"])) == [14, 16]
