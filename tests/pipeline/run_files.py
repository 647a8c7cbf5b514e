"""Where the files of a run with a cell or two lie, and what stands in them."""

from __future__ import annotations

import json

DOMAINS = {"one": {"source": "one.jsonl"}, "two": {"source": "two.jsonl"}}


def cell(folder, domain="one", name="tiny"):
    return folder / "runs" / name / domain / "this-machine"


def record(folder, name, domain="one"):
    return json.loads((cell(folder, domain) / name).read_text())


def stamps(folder):
    return {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in folder.rglob("*") if path.is_file()}


def weights(folder, domain="one", name="tiny"):
    return (cell(folder, domain, name) / "adapter/adapter_model.safetensors").read_bytes()
