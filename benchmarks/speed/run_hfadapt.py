"""hfadapt: `train_cell` on the cell whose rows and plan were prepared, as the command line starts it."""

import os

from hfadapt.hardware.allocator import restart

restart()
# As the command line sets them.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import json  # noqa: E402 - the allocator is set before anything heavy is imported
import shutil  # noqa: E402
import time  # noqa: E402
from typing import Any  # noqa: E402

from measure import STARTED, Clock, job, save_snapshot, write_result  # noqa: E402

from hfadapt.core.progress import Event, Silent, Stepped, Validated, quiet_libraries  # noqa: E402

JOB = job()


class Watch(Silent):
    """A Progress that notes when steps and validations end; hfadapt calls it outside of its own step clock."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.steps: list[float] = []
        self.validations: dict[int, tuple[float, float]] = {}
        self.model: Any = None

    def tell(self, event: Event) -> None:
        """A step has ended, or a validation, which began when the step ended. The adapter is kept as it is then."""
        if isinstance(event, Stepped):
            self.steps.append(time.perf_counter())
        elif isinstance(event, Validated):
            self.snapshot(event.step)
            self.validations[event.step] = (event.loss, time.perf_counter() - self.steps[-1])

    def snapshot(self, step: int) -> None:
        """The adapter on disk, to be scored by the program that scores all tools."""
        from peft import get_peft_model_state_dict

        save_snapshot(JOB, step, get_peft_model_state_dict(self.model, save_embedding_layers=False))

    def say(self, message: str) -> None:
        """Into the log."""
        print(message)


def watch_model(watch: Watch) -> None:
    """Hands the adapted model to the watch and checks that its start is the stored one, before training."""
    import torch
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    from hfadapt.train import cells

    attach = cells.attach_adapters

    def attach_adapters(*args: Any, **kwargs: Any) -> Any:
        watch.model = attach(*args, **kwargs)
        stored = load_file(JOB.init / "adapter_model.safetensors")
        own = get_peft_model_state_dict(watch.model, save_embedding_layers=False)
        if own.keys() != stored.keys() or not all(torch.equal(own[name].cpu(), stored[name]) for name in stored):
            raise SystemExit("hfadapt's start is not the stored one")
        return watch.model

    cells.attach_adapters = attach_adapters
    # The head of all tools is the stored one, which has learned nothing; hfadapt's own would be a linear probe.
    cells.head_start = lambda *_: 0.0


@quiet_libraries()
def main() -> None:
    """Trains."""
    from hfadapt.hardware.processes import World
    from hfadapt.recipe.reading import save_recipe
    from hfadapt.run_folder import Run
    from hfadapt.train import train_cell

    shutil.copytree(JOB.folder / "run", JOB.out / "run")
    cell = Run(JOB.out / "run").cell(JOB.prepared["domain"], JOB.prepared["target"])
    lock = cell.lock
    save_recipe(
        lock.model_copy(update={"train": lock.train.model_copy(update={"seed": JOB.seed})}),
        cell.folder / "lock.yaml",
        full=True,
    )
    watch = Watch()
    watch_model(watch)
    record = train_cell(cell, World(), progress=watch)
    lines = [json.loads(line) for line in (cell.folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    # From the start of step 1 to the end of the last, without the validations between; a step's own clock leaves out
    # what happens between steps, which is the loop's as well.
    ends, validated = [steps[0]["seconds"]], 0.0
    for number in range(1, len(watch.steps)):
        if number in watch.validations:
            validated += watch.validations[number][1]
        ends.append(steps[0]["seconds"] + watch.steps[number] - watch.steps[0] - validated)
    watch.clock.ended = ends
    watch.clock.overhead = sum(seconds for _, seconds in watch.validations.values())
    shutil.copy(cell.adapter / "adapter_model.safetensors", JOB.out / f"adapter-{len(steps)}.safetensors")
    (JOB.out / "metrics.jsonl").write_bytes((cell.folder / "metrics.jsonl").read_bytes())
    expected = [[sum(len(JOB.prepared["train"][row]["input_ids"]) for row in batch)] for batch in JOB.batches]
    same = [[step["tokens"]] for step in steps] == expected
    write_result(
        JOB,
        watch.clock,
        losses=[step["loss"] for step in steps],
        grad_norms=[step["grad_norm"] for step in steps],
        load_seconds=time.perf_counter() - STARTED - ends[-1] - watch.clock.overhead,
        first_batch_loss=steps[0]["loss"] if same else None,
        remarks=[
            f"{lock.quant if lock.quant != 'none' else lock.dtype}, micro-batch {lock.train.micro_batch_rows}",
            f"tokens of every step {'are' if same else 'are NOT'} those of the prepared batches",
            f"trained {record.tokens} tokens, {record.labelled_tokens} labels",
        ],
    )


main()
