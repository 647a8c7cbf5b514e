"""What counts as a linear layer, and what is read of configurations whose layers differ."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoConfig
from transformers.pytorch_utils import Conv1D

from hfadapt.models.facts import adapted_modules, first, is_linear


class Router(nn.Linear):
    """As of Llama 4: two tensors come out."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = super().forward(x)
        return found, found.topk(1).values


def test_layers_that_answer_otherwise_get_no_adapter():
    model = nn.ModuleDict({"a": nn.Linear(4, 4), "b": Conv1D(4, 4), "c": Router(4, 4)})
    model["d"] = nn.MultiheadAttention(4, 2)
    assert [*adapted_modules(model)] == ["a", "b"]
    assert not is_linear(model["d"].out_proj)


@pytest.mark.parametrize(("name", "expected"), [("head_dim", 512), ("hidden_size", 64)])
def test_of_layers_that_differ_the_largest_counts(name, expected):
    config = AutoConfig.for_model("gemma4_text", hidden_size=64, num_hidden_layers=6)
    assert first(config, name, default=0) == expected


def test_of_a_list_the_largest_counts():
    config = AutoConfig.for_model("gemma3n_text", num_hidden_layers=2, intermediate_size=[96, 128])
    assert first(config, "intermediate_size", default=0) == 128
