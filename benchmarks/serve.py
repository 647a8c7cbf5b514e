"""`hfadapt serve` under load: many clients on this machine, each with one short text for one of four domains.

    python benchmarks/serve.py                               trains what is not there yet, serves it, prints the figures
    python benchmarks/serve.py --seconds 120 --clients 32    the same in full; figures go to serve.json

A request is an error unless it is answered within a minute, with the label that the adapter gives alone. Memory is the
resident set: of the server at its largest, against a process with the base alone that has answered some of these texts
one by one.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import re
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).parent
RESULTS = HERE / "serve.json"
LONE_REQUESTS = 200
WARM_REQUESTS = 20
DOMAINS = 4
TEXTS = 200
"""Of each domain."""
BASE_ALONE = """
import json, sys, psutil
from pathlib import Path
from hfadapt.models.load import default_device
from hfadapt.models.manifest import load_base_of
from hfadapt.run_folder import Run
from hfadapt.serve.adapted import answers, from_cell
cell = Run(Path(sys.argv[1])).cells()[0]
base = load_base_of({cell.adapter: cell.data.labels}, cell.lock, default_device())
base.model.requires_grad_(False).eval()
for text in json.load(sys.stdin):
    answers([from_cell(cell, base)], [text], 1)
print(psutil.Process().memory_info().rss)
"""


def trained(folder: Path, settings: list[str]) -> Path:
    """The run of recipes/sentiment.yaml, made if it is not there."""
    run = folder / "sentiment"
    if len(list(run.glob("*/this-machine/train.json"))) < DOMAINS:
        command = [sys.executable, "-m", "hfadapt", "train", "recipes/sentiment.yaml", *settings]
        subprocess.run([*command, "--runs", str(folder)], cwd=HERE.parent, check=True, stdout=subprocess.DEVNULL)
    return run


def base_alone(run: Path, texts: list[str]) -> int:
    """Bytes of a process that has answered texts with the base."""
    from hfadapt.hardware.allocator import environment

    command = [sys.executable, "-c", BASE_ALONE, str(run)]
    done = subprocess.run(
        command, input=json.dumps(texts), capture_output=True, text=True, check=True, env=environment()
    )
    return int(done.stdout)


class Client:
    """One connection that is kept."""

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def ask(self, domain: str, text: str) -> tuple[float, str | None]:
        """Seconds that an answer took, and its label, or None."""
        body = json.dumps({"domain": domain, "inputs": [text]})
        start = time.perf_counter()
        try:
            self.connection.request("POST", "/predict", body, {"Content-Type": "application/json"})
            response = self.connection.getresponse()
            said = response.read()
            label = json.loads(said)["answers"][0]["label"] if response.status == 200 else None
        except (OSError, http.client.HTTPException):
            self.connection.close()
            label = None
        return time.perf_counter() - start, label


def load(port: int, asked: list[tuple[str, str, str]], clients: int, seconds: float) -> tuple[list[float], int]:
    """Seconds of every request, and how many had no answer or a wrong one; clients ask without a pause."""
    end, times, errors = time.monotonic() + seconds, [], []

    def one(seed: int) -> None:
        draw, client = random.Random(seed), Client(port)
        while time.monotonic() < end:
            domain, text, label = draw.choice(asked)
            took, found = client.ask(domain, text)
            times.append(took)
            if found != label:
                errors.append(found)

    threads = [threading.Thread(target=one, args=(seed,)) for seed in range(clients)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    return times, len(errors)


def questions(run: Path) -> list[tuple[str, str, str]]:
    """(domain, text, label) of test rows, with the label that each adapter gives alone."""
    from hfadapt import load_adapted
    from hfadapt.run_folder import Run

    found = []
    for cell in Run(run).cells():
        texts = [row["text"] for row in list(cell.read_split("test"))[:TEXTS]]
        answers = load_adapted(cell.folder).predict(texts)
        found += [(cell.domain, text, str(answer.label)) for text, answer in zip(texts, answers, strict=True)]
    return found


def quantile(times: list[float], share: float) -> float:
    """In milliseconds."""
    return round(1000 * sorted(times)[min(len(times) - 1, int(share * len(times)))], 2)


def measure(run: Path, clients: int, seconds: float) -> dict[str, Any]:
    """Starts a server, asks it alone and all at once, and stops it."""
    asked, draw = questions(run), random.Random(0)
    first = [draw.choice(asked)[:2] for _ in range(WARM_REQUESTS + LONE_REQUESTS)]
    alone = base_alone(run, [text for _, text in first])
    adapters = sum(path.stat().st_size for path in run.glob("*/this-machine/adapter/adapter_model.safetensors"))
    command = [sys.executable, "-m", "hfadapt", "serve", str(run), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        line = next(each for each in server.stderr if "http://" in each)
        port = int(re.search(r":(\d+) ", line)[1])  # type: ignore[index]
        process, resident, stop = psutil.Process(server.pid), [0], threading.Event()

        def watch() -> None:
            while not stop.wait(0.2):
                resident[0] = max(resident[0], process.memory_info().rss)

        watcher = threading.Thread(target=watch)
        watcher.start()
        client = Client(port)
        lone = [client.ask(*each)[0] for each in first][WARM_REQUESTS:]
        client.connection.close()
        start = time.perf_counter()
        times, errors = load(port, asked, clients, seconds)
        took = time.perf_counter() - start
        stop.set()
        watcher.join()
        server.terminate()
        code = server.wait(60)
    each = statistics.median(lone)
    return {
        "clients": clients,
        "seconds": round(took, 1),
        "requests": len(times),
        "errors": errors,
        "requests_per_second": round(len(times) / took, 1),
        "p50_ms": quantile(times, 0.5),
        "p95_ms": quantile(times, 0.95),
        "p99_ms": quantile(times, 0.99),
        "lone_p50_ms": round(1000 * each, 2),
        "lone_p95_ms": quantile(lone, 0.95),
        "p95_over_lone_times_queue": round(quantile(times, 0.95) / (1000 * each * clients), 3),
        "memory_bytes": resident[0],
        "base_alone_bytes": alone,
        "adapters_bytes": adapters,
        "memory_over_base_and_adapters": round(resident[0] / (alone + adapters), 3),
        "stopped_with": code,
    }


def main() -> None:
    """Reads the command line."""
    from hfadapt.hardware.versions import versions

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--runs", type=Path, default=HERE / ".work" / "serve")
    parser.add_argument("settings", nargs="*", help="of the training, such as train.max_steps=60")
    wanted = parser.parse_args()
    found = measure(trained(wanted.runs, wanted.settings), wanted.clients, wanted.seconds)
    found |= {"cores": os.cpu_count(), "versions": versions("cpu").model_dump(mode="json", exclude_none=True)}
    print(json.dumps(found, indent=1))
    if wanted.seconds >= 120:
        RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
