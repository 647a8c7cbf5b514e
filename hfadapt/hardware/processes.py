"""The processes of a run: that the world is the one that was asked for, and work that only one of them does."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hfadapt.core import stopping
from hfadapt.core.errors import HfadaptError, RequestError, RunError

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

Result = TypeVar("Result")
PROCESS_FLAGS = ("--num_processes", "--num-processes", "--nproc_per_node", "--nproc-per-node")
LAUNCHERS = {"torchrun", "torch.distributed.run", "accelerate-launch", "accelerate.commands.launch"}
ACCELERATE = {"accelerate", "accelerate.commands.accelerate_cli"}
ALONE = timedelta(hours=2)
"""How long processes wait for the first one, which prepares data alone, and for each other's share of an evaluation."""
TOGETHER = timedelta(minutes=15)
"""How long they wait for each other in a step, where all do the same; HFADAPT_STEP_SECONDS gives another time."""


def processes_asked(ancestors: Sequence[Sequence[str]]) -> int | None:
    """How many processes a launcher among the ancestors' command lines was told to start; None without a launcher."""
    for command in ancestors:
        words = [Path(word).name for word in command]
        launched = not LAUNCHERS.isdisjoint(words) or ("launch" in words and not ACCELERATE.isdisjoint(words))
        if not launched:
            continue
        for i, word in enumerate(command):
            name, _, value = word.partition("=")
            if name in PROCESS_FLAGS:
                text = value or (command[i + 1] if i + 1 < len(command) else "")
                if text.isdigit():
                    return int(text)
            if name == "--config_file":
                return _config_processes(Path(value or command[i + 1]))
    return None


def _config_processes(path: Path) -> int | None:
    import yaml

    try:
        return int(yaml.safe_load(path.read_text(encoding="utf-8")).get("num_processes"))
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def _ancestors() -> list[list[str]]:
    import psutil

    try:
        return [parent.cmdline() for parent in psutil.Process().parents()[:4]]
    except psutil.Error:
        return []


def check_world(recipe_processes: int, started: int | None = None, asked: int | None = None) -> None:
    """Refuses to start when fewer processes run than the launcher or the recipe asked for.

    `accelerate launch --cpu --num_processes 2` starts one process and says nothing (accelerate 1.15).

    Raises:
        RequestError: the numbers differ.
    """
    world = started if started is not None else int(os.environ.get("WORLD_SIZE", "1"))
    launcher = asked if asked is not None else processes_asked(_ancestors())
    nodes = machines()
    for wanted, who in (
        (launcher and launcher * (nodes if nodes > 1 else 1), "the launcher"),
        (recipe_processes, "the recipe"),
    ):
        # A launcher that counts all nodes' processes (accelerate) asks for `launcher`, one that counts a node's
        # (torchrun) for `launcher` times nodes: either is right.
        if wanted and wanted > 1 and world not in (wanted, launcher if who == "the launcher" else wanted):
            raise RequestError(
                f"{world} process{'es' if world != 1 else ''} started, but {who} asked for {wanted}",
                place="launch",
                got=str(world),
                allowed=str(wanted),
                fix=f"on CPUs start them with: torchrun --nproc_per_node {wanted} -m hfadapt run RECIPE",
            )


def machines() -> int:
    """How many machines the processes are on."""
    return int(os.environ.get("GROUP_WORLD_SIZE", "1"))


def step_time() -> timedelta:
    """How long processes wait for each other in a step."""
    said = os.environ.get("HFADAPT_STEP_SECONDS", "")
    return timedelta(seconds=int(said)) if said.isdigit() and int(said) else TOGETHER


def meeting() -> str:
    """Where processes find each other, for `torch.distributed.init_process_group`.

    A launcher that starts them again (`--max-restarts`) keeps one store for all starts, with the addresses of processes
    that are gone: one that is quicker than another would wait for its predecessor (pytorch issue 135712). So each start
    has names of its own there.

    Raises:
        RequestError: a launcher of several machines would start them again with the same store: its counts of starts
            differ between machines.
    """
    started = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return "env://"
    if machines() > 1 and os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0":
        raise RequestError(
            "processes of several machines cannot be started again with the launcher's store",
            place="launch",
            got=f"--max-restarts {os.environ['TORCHELASTIC_MAX_RESTARTS']}",
            fix="set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 where torchrun is started, or leave --max-restarts",
        )
    if started == "0":
        return "env://"
    import torch

    def found(url: str, **how: Any) -> Iterator[tuple[torch.distributed.Store, int, int]]:
        for store, rank, size in torch.distributed.rendezvous("env://", **how):
            yield torch.distributed.PrefixStore(f"start-{started}", store), rank, size

    with suppress(RuntimeError):  # registered before
        torch.distributed.register_rendezvous_handler("hfadapt", found)
    return "hfadapt://"


class World:
    """The processes of this run, seen from one of them."""

    def __init__(self, trackers: Sequence[str] = (), folder: Path | None = None) -> None:
        import torch
        from accelerate import Accelerator
        from accelerate.utils import InitProcessGroupKwargs

        cpu = not (torch.cuda.is_available() or torch.backends.mps.is_available())
        self.accelerator: Accelerator = Accelerator(
            cpu=cpu,
            log_with=list(trackers) or None,
            project_dir=str(folder) if folder else None,
            kwargs_handlers=[InitProcessGroupKwargs(init_method=meeting(), timeout=step_time())],
        )
        self.size: int = self.accelerator.num_processes
        # Of its own, so that a step need not wait as long as work that one process does alone.
        self._patient = torch.distributed.new_group(backend="gloo", timeout=ALONE) if self.size > 1 else None
        self.is_main: bool = self.accelerator.is_main_process
        # Beside others a process is on "cpu:0", which safetensors does not know.
        self.device: torch.device = torch.device("cpu") if cpu else self.accelerator.device
        check_world(1, started=self.size)

    def max_memory(self, budget_bytes: int) -> dict[int, int] | None:
        """Room per device for spreading one model over several GPUs, when one process has them all; else None."""
        import torch

        devices = torch.cuda.device_count() if self.accelerator.device.type == "cuda" else 0
        return dict.fromkeys(range(devices), budget_bytes) if self.size == 1 and devices > 1 else None

    def divides(self, shard: bool) -> bool:
        """Whether the base is divided over the processes, where that is wanted: one alone has all of it."""
        return shard and self.size > 1

    def on_main(self, work: Callable[[], Result]) -> Result:
        """Does the work in the main process; every process gets its result or its error. Results are pickled between
        the processes of this run only."""
        if self.size == 1:
            return work()
        from torch.distributed import broadcast_object_list

        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome[0] = work()
            except (HfadaptError, KeyboardInterrupt) as error:
                outcome[1] = error
            except Exception as error:
                failed = [None, RunError("the main process failed", got=repr(error))]
                broadcast_object_list(failed, src=0, group=self._patient)
                raise
        broadcast_object_list(outcome, src=0, group=self._patient)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def shared(self, count: int, work: Callable[[range], Result]) -> list[tuple[range, Result]]:
        """Divides numbered items among the processes; every process gets what was made of all of them, in the same
        order, or the first error. All processes must call it, with the same count.

        Args:
            count: How many items there are.
            work: Called once, with the numbers of this process.
        """
        if self.size == 1:
            return [(range(count), work(range(count)))]
        own = range(self.accelerator.process_index, count, self.size)
        outcome: list[Any] = [own, None, None]
        unknown = None
        try:
            outcome[1] = work(own)
        except (HfadaptError, KeyboardInterrupt) as error:
            outcome[2] = error
        except Exception as error:
            unknown, outcome[2] = error, RunError("a process failed", got=repr(error))
        found: list[Any] = [None] * self.size
        from torch.distributed import all_gather_object

        all_gather_object(found, outcome, group=self._patient)
        if unknown is not None:
            raise unknown
        for _, _, failed in found:
            if failed is not None:
                raise failed
        return [(numbers, result) for numbers, result, _ in found]

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        if self.size == 1:
            return flag
        import torch

        value = torch.tensor(int(flag), device=self.accelerator.device)
        return bool(self.accelerator.reduce(value, "sum") > 0)


class Interrupt:
    """Set by the first signal that stops; a second one ends the process at once."""

    def __init__(self) -> None:
        self.asked = False

    def __bool__(self) -> bool:
        return self.asked


@contextmanager
def interruptible() -> Iterator[Interrupt]:
    """While inside, the first signal only sets the flag, so that a step can end and be saved."""
    interrupt = Interrupt()

    def handle() -> None:
        if interrupt.asked:
            raise KeyboardInterrupt
        interrupt.asked = True

    with stopping.handled(handle):
        yield interrupt
