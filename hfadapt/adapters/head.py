"""Only the task's head is trained; the base stays as it is (a linear probe, where the head is linear)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hfadapt.adapters import DEFAULT, AdapterMethod, Context, Trains

if TYPE_CHECKING:
    from peft import PeftModel

    from hfadapt.recipe.schema import LockedAdapter


@dataclass(frozen=True)
class Head(AdapterMethod):
    """A peft adapter that holds whole modules and no low-rank layer."""

    def attach(self, model: Any, settings: LockedAdapter, context: Context, name: str = DEFAULT) -> PeftModel:
        """Freezes everything but the head."""
        from peft import LoraConfig, get_peft_model
        from peft.utils.constants import DUMMY_TARGET_MODULES

        config = LoraConfig(
            r=1,
            target_modules=DUMMY_TARGET_MODULES,
            modules_to_save=sorted({*context.fresh_modules, *context.head_modules}),
            task_type=context.peft_task_type,
            base_model_name_or_path=context.model_path,
        )
        return get_peft_model(model, config, adapter_name=name)


KIND = Head("head", trains=Trains.HEAD, low_rank=False, convolves=True)
