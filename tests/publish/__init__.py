"""Publishing with the real client over HTTP to a small local Hub."""

from __future__ import annotations

from hub_server import USER

REPO = f"{USER}/tiny"
FILES = {
    "README.md", "adapter_config.json", "adapter_model.safetensors", "card.json", "chat_template.jinja",
    "evaluation.json", "hfadapt.json", "lock.yaml", "loss.svg", "tokenizer.json", "tokenizer_config.json",
}  # fmt: skip
