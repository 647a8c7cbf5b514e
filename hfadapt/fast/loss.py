"""The loss of a language model on its labelled positions alone, with the gradient made on the way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from hfadapt.fast import kernels
from hfadapt.fast.limits import LOSS_LOGITS

Labels = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class _LabelledLoss(torch.autograd.Function):
    """The weighted cross-entropy of L positions from their hidden states (L, D) and the frozen output layer (V, D).

    The gradient is made in the forward pass, in pieces, so that logits never exist as a whole and are made once.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, head: Any, targets: torch.Tensor, weights: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        needed = ctx.needs_input_grad[0]
        rows = max(1, LOSS_LOGITS // head.weight.shape[0])
        gradient = torch.empty_like(hidden) if needed else None
        losses = []
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            logits = hidden[part] @ head.weight.t()
            if head.bias is not None:
                logits += head.bias
            losses.append(kernels.cross_entropy(logits, targets[part], needed))
            if gradient is not None:
                torch.mm(logits, head.weight, out=gradient[part])
        if gradient is not None:
            ctx.save_for_backward(gradient.mul_(weights[:, None].to(gradient.dtype)))
        each = torch.cat(losses) if losses else weights.new_zeros(0)
        ctx.mark_non_differentiable(each)
        return (each * weights).sum(), each

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[Any, ...]:
        (gradient,) = ctx.saved_tensors
        assert gradients[0] is not None
        return gradient * gradients[0].to(gradient.dtype), None, None, None


def labelled_loss(
    model: Any, inputs: Mapping[str, torch.Tensor], labels: Labels, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The weighted loss of a language model over its labelled positions.

    Args:
        inputs: input_ids (B, T) and, for packed rows, position_ids.
        labels: The places of the L labels in B·T, the labels and their rows (`Task.targets`), asked before the forward
            pass: how many there are is asked of a GPU, which then has nothing to finish first.
        weights: Of each row's losses.

    Returns:
        The weighted sum, the L losses and the row of each, in float32.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    places, targets, rows = labels
    given = {name: inputs[name] for name in ("input_ids", "position_ids", "attention_mask") if name in inputs}
    head = base.get_output_embeddings()
    hidden = getattr(base, base.base_model_prefix)(**given, use_cache=False).last_hidden_state
    chosen = hidden.flatten(0, 1).index_select(0, places).to(head.weight.dtype)
    total, losses = _LabelledLoss.apply(chosen, head, targets, weights[rows])
    return total, losses, rows


def plain_head(model: Any) -> bool:
    """Whether the output layer is a frozen linear layer, so that `labelled_loss` can stand for it."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = base.get_output_embeddings()
    linear = type(head) is torch.nn.Linear and not head.weight.requires_grad
    return linear and hasattr(base, base.base_model_prefix) and base.base_model_prefix != ""
