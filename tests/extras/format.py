"""One file of tensors under another name, which transformers does not open."""

import shutil

from hfadapt.formats.merged import Merged


class Flat(Merged):
    """A merged model whose weights are in flat.safetensors; for Llama-like models and BERT."""

    name = "flat"
    packages = ("safetensors",)

    def unfit(self, task, config):
        return None if config["model_type"] in ("llama", "bert") else f"architecture {config['model_type']}"

    def refusal(self, cell):
        return None

    def holds(self, name, whole):
        return name in self.needed(whole)

    def needed(self, whole):
        return frozenset({"flat.safetensors", "config.json"})

    def write(self, cell, form, folder, device):
        model = super().write(cell, form, folder, device)
        (folder / "model.safetensors").rename(folder / "flat.safetensors")
        (folder / "generation_config.json").unlink(missing_ok=True)
        return model

    def reopen(self, cell, folder, device):
        return self._as_merged(folder, lambda plain: super(Flat, self).reopen(cell, plain, device))

    def open(self, folder, manifest, lock, device):
        return self._as_merged(folder, lambda plain: super(Flat, self).open(plain, manifest, lock, device))

    def _as_merged(self, folder, use):
        plain = folder.parent / f".{folder.name}-plain"
        shutil.copytree(folder, plain)
        (plain / "flat.safetensors").rename(plain / "model.safetensors")
        try:
            return use(plain)
        finally:
            shutil.rmtree(plain)


KIND = Flat()
