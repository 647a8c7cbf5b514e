"""What a recipe says of the adapter and the training loop: the recipe's `adapter` and `train`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from hfadapt.core.spec import Section
from hfadapt.recipe.fast import AnyFast, Fast
from hfadapt.recipe.names import (
    AUTO,
    Auto,
    AutoMethod,
    AutoOptimizer,
    AutoSchedule,
    Duration,
    Find,
    LearningRate,
    Objective,
    Positive,
    Share,
    Tracker,
)


class Adapter(Section):
    """What is trained on top of the frozen base."""

    method: AutoMethod = AUTO
    """How the base is adapted; `hfadapt list adapters`.

    Auto: lora.
    Cost: methods that train all weights need memory for gradients and optimizer states of all.
    """
    rank: Annotated[int, Field(ge=1, le=1024)] | Auto = AUTO
    """Rank of the low-rank update.

    Auto: 16.
    Cost: trained weights, optimizer states and the adapter's file grow in proportion.
    Example: 8
    """
    alpha: Annotated[float, Field(gt=0.0)] | Auto = AUTO
    """Scale of the update, which is multiplied by alpha / rank.

    Auto: twice the rank.
    Example: 16
    """
    dropout: Share | Auto = AUTO
    """Share of a LoRA layer's inputs that are left out in a step.

    Auto: 0.
    Example: 0.05
    """
    modules: tuple[str, ...] | Auto = AUTO
    """Name endings of the linear layers that are adapted; `*` is the number of any layer.

    Auto: all linear layers that the method can adapt.
    Cost: fewer layers take less memory and time.
    Example: [q_proj, v_proj]
    """
    layers: Positive | Auto = AUTO
    """Adapts the last so many layers only; those below stay as they are and have no backward pass.

    Auto: all layers.
    Cost: fewer layers take less memory and time.
    Example: 8
    """


class Train(Section):
    """The training loop."""

    objective: Objective = "supervised"
    """What is minimised; by default what the task learns by."""
    objective_options: dict[str, str | bool | float] = {}
    """Options of the objective; `hfadapt explain objectives.NAME` names them.

    Example: {beta: 0.1}
    """
    epochs: Annotated[float, Field(gt=0.0)] | Auto = AUTO
    """Passes over the training rows.

    Auto: the plan, by task and model; more of few rows.
    Cost: time grows in proportion.
    Example: 3
    """
    max_steps: Positive | None = None
    """The most optimizer steps, in the place of epochs.

    Cost: time grows in proportion.
    Example: 200
    """
    time: Duration | None = None
    """How long training may take, as text with a unit; as many steps are done as fit.

    Example: 10m
    """
    learning_rate: LearningRate | Auto | Find = AUTO
    """Highest learning rate; `find` tries some around that of `auto` while training begins.

    Auto: the plan, by task and size of the model: 2e-4 to 2e-3.
    Cost: `find` takes up to `search.budget` trainings.
    Example: 5.0e-4
    """
    schedule: AutoSchedule = AUTO
    """How the learning rate falls after the warm-up.

    Auto: linear.
    """
    warmup_ratio: Share | Auto = AUTO
    """Share of the steps in which the learning rate rises from zero.

    Auto: 0.06.
    Example: 0.1
    """
    hold_ratio: Share = 0.0
    """Share of the steps before the learning rate decays.

    Example: 0.5
    """
    batch_rows: Positive | Auto = AUTO
    """Rows of an optimizer step, over all processes and accumulation steps.

    Auto: the plan, by task: usually 16.
    Cost: none in memory, as rows are accumulated; larger batches make fewer steps of as many rows.
    Example: 32
    """
    micro_batch_rows: Positive | Auto = AUTO
    """Rows that go through the model at once; the rest of `batch_rows` is accumulated.

    Auto: the plan: about the fastest that fits into memory.
    Cost: memory of activations grows in proportion.
    Example: 4
    """
    weight_decay: Annotated[float, Field(ge=0.0)] | Auto = AUTO
    """Weight decay of the optimizer.

    Auto: 0 for most tasks: low-rank adapters are small already.
    Example: 0.01
    """
    max_grad_norm: Annotated[float, Field(gt=0.0)] = 1.0
    """Longer gradients are cut to this norm."""
    evaluate_every_steps: Positive | Auto = AUTO
    """Steps between validations; the best validated weights are kept.

    Auto: the plan: about four validations a run.
    Cost: each takes the time of a forward pass over the validation rows.
    Example: 50
    """
    checkpoint_every_steps: Positive | Auto = AUTO
    """Steps between checkpoints, from which an interrupted training goes on.

    Auto: the plan: with a validation, about once a minute.
    Cost: about a second each.
    Example: 100
    """
    patience: Positive | None = None
    """Validations without a gain after which training stops; by default it does not.

    Example: 3
    """
    seed: int = 17
    """Start of the trained weights, and the order of the rows."""
    optimizer: AutoOptimizer = AUTO
    """The optimizer, and how its states are stored.

    Auto: adamw, whose states are small where few weights are trained.
    Cost: adamw keeps 8 bytes for each trained weight, those of 8 bits 2.
    """
    checkpointing: bool | Auto = AUTO
    """Computes activations again in the backward pass instead of keeping them.

    Auto: the plan, where all activations do not fit at this speed.
    Cost: less memory, about a third more time.
    """
    resident_layers: Annotated[int, Field(ge=0)] | Auto = AUTO
    """Linear layers of a quantised base that are also kept unpacked while training, so that no step unpacks them.

    Auto: the plan: as many as fit.
    Cost: memory for their unpacked weights; saves time.
    Example: 4
    """
    fast: AnyFast = Fast()
    """hfadapt's own path for the passes of a step; `false` leaves all to the libraries.

    Example: {norms: false}
    """
    shard: bool | Auto = AUTO
    """Divides the frozen layers of the base over the processes, each of which then holds only its share of them.

    Auto: the plan, where several processes train and the base does not fit into the memory of each as a whole.
    Cost: layers are gathered from all processes whenever they run, so steps are slower; saves memory of weights.
    Example: true
    """
    together: bool | Auto = AUTO
    """Trains the domains of a target at the same time on one base; every adapter is what it would be alone.

    Auto: the plan, where that is faster and fits.
    Cost: memory for the activations and states of all adapters.
    """
    trackers: tuple[Tracker, ...] = ()
    """Programs that get the training's settings and curves and, at its end, evaluation, card and plots.

    Example: [tensorboard]
    """
