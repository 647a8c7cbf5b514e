"""`hfadapt serve` and `hfadapt ui`: what is wrong is said before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from hfadapt.core.errors import RequestError


def serve_run(
    run: Path,
    domains: Sequence[str],
    target: str | None,
    place: tuple[str, int],
    say: Callable[[str], None],
    **most: int,
) -> None:
    """Serves the adapters of a run until it is stopped.

    Args:
        place: Host and port.
        most: Of `Limits`.

    Raises:
        RequestError: a package is missing, the port is taken, or the run has no such adapters.
    """
    try:
        from hfadapt.serve.http import listening, serve
    except ModuleNotFoundError as error:
        raise RequestError(
            "serving needs packages that are not installed", got=error.name, fix="pip install 'hfadapt[serve]'"
        ) from None
    from hfadapt.serve.bank import load_bank
    from hfadapt.serve.batching import Limits

    with listening(*place) as at:
        say(f"loading {run}")
        serve(load_bank(run, domains, target), at, Limits(**most), say)


def show_pages(place: Path, port: int, say: Callable[[str], None]) -> None:
    """Shows a run, or a folder of runs, as pages on this machine until it is stopped.

    Raises:
        RequestError: a package is missing, the port is taken, or there is no such folder.
    """
    try:
        from hfadapt.serve.http import listening
        from hfadapt.ui.app import HOST, serve
    except ModuleNotFoundError as error:
        raise RequestError(
            "the pages need packages that are not installed", got=error.name, fix="pip install 'hfadapt[ui]'"
        ) from None
    with listening(HOST, port) as at:
        serve(place, at, say)
