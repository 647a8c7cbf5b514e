"""What the commands in Slurm's place know of tasks, as files in $FAKE_SLURM: the script of each array, and of each task
the process that does it. While `hold` is there, tasks wait in the queue; those that were cancelled there are gone."""

import os
import re
import subprocess
from pathlib import Path

STATE = Path(os.environ["FAKE_SLURM"])


def asked(script: str) -> dict[str, str]:
    """The options in a script."""
    return dict(re.findall(r"^#SBATCH --([a-z-]+)=(.*)$", script, re.M))


def start_waiting() -> None:
    """What a scheduler does: starts all that wait, unless it holds them back."""
    if (STATE / "hold").exists():
        return
    for waiting in sorted(STATE.glob("*.waiting")):
        number, _, task = waiting.stem.partition("_")
        script = STATE / f"{number}.array"
        options = asked(script.read_text())
        variables = {**os.environ, "SLURM_ARRAY_TASK_ID": task, "SLURM_CPUS_PER_TASK": options["cpus-per-task"]}
        with open(options["output"].replace("%a", task), "ab") as out:
            process = subprocess.Popen(
                ["bash", str(script)],
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        waiting.with_suffix(".pid").write_text(str(process.pid))
        waiting.unlink()


def listed() -> list[str]:
    """The tasks that wait, or whose processes are there."""
    found = [path.stem for path in STATE.glob("*.waiting")]
    for path in STATE.glob("*.pid"):
        # A process that has ended has a parent that never asks for its end.
        try:
            status = Path(f"/proc/{path.read_text()}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if status != "Z":
            found.append(path.stem)
    return sorted(found)
