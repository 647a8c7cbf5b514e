"""Outputs of linear layers scaled by learned factors (Liu et al. 2022, arXiv 2205.05638): no LoRA at all."""

from dataclasses import dataclass

from hfadapt.adapters import AdapterMethod, Saved


@dataclass(frozen=True)
class Ia3(AdapterMethod):
    """peft's IA3 on the outputs."""

    def layer_parameters(self, in_features, out_features, rank):
        return out_features

    def peft_config(self, settings, **common):
        from peft import IA3Config

        return IA3Config(feedforward_modules=[], **common)


KIND = Ia3(
    "ia3",
    low_rank=False,
    additive=False,
    saved=Saved("IA3", frozenset({"feedforward_modules"}), r".+\.ia3_l"),
)
