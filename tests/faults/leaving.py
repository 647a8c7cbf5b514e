"""Faults of what leaves: merged models, the Hub, uploads, cards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hub_server import TOKEN, Fault, Hub, hub_server
from machine import Ended
from place import Outcome, Place, judged

REPO = "somebody/tiny"
SECRET = "hf_" + "x" * 34


def merge_differs(place: Place) -> Outcome:
    place.copy(place.shared.trained)
    limits = "evaluate.drift_limits={kl_nats: 0, points: 0}"
    measured = place.run("run", "tiny.yaml", "evaluate.drift=true", limits)
    done = place.run("export", place.cell.folder, "--format", "merged", "--to", "out", "--variant", "merged-bfloat16")
    kept = {"no merged model leaves": not (place.folder / "out").exists(), "the adapter": place.as_uninterrupted}
    return judged(done, code=1, says="refused", kept=kept, also=[measured])


SENDING = ("--repo", REPO, "--yes", "--license", "mit", "--no-verify-load")


def reaching(hub: Hub, folder: Path) -> dict[str, Any]:
    """How a command is run (`Machine.run`) that reaches a Hub of this machine and keeps what it gets in a folder."""
    first = (
        "from huggingface_hub import constants as c; "
        f"c.HF_HUB_OFFLINE = False; c.ENDPOINT = {hub.endpoint!r}; "
        "c.HUGGINGFACE_CO_URL_TEMPLATE = c.ENDPOINT + '/{repo_id}/resolve/{revision}/{filename}'; "
        "import time; time.sleep = lambda seconds: None"
    )
    variables = {"HF_TOKEN": TOKEN, "HF_HOME": str(folder / "hf"), "HF_ENDPOINT": hub.endpoint}
    return {"first": first, "variables": variables}


def _sent(place: Place, *faults: Fault) -> tuple[Ended, Hub]:
    with hub_server() as hub:
        hub.faults = list(faults)
        return place.run("publish", place.cell.folder, *SENDING, **reaching(hub, place.folder)), hub


def hub_fails(place: Place) -> Outcome:
    place.copy(place.shared.trained)
    passing = [Fault("POST .*/commit/", how="lost"), Fault("GET .*/resolve/.*safetensors", how="corrupt")]
    survived, hub = _sent(place, *passing)
    once = len(hub.made(REPO)) == 1 and len(hub.repos[REPO].tags) == 1
    lasting, hub = _sent(place, Fault("POST .*/commit/", 403, times=99))
    kept = {"a lost answer: one commit, one tag": once, "no half repository": not hub.made(REPO)}
    return judged(lasting, code=1, says="the token may not write here", kept=kept, also=[survived])


def secrets(place: Place) -> Outcome:
    place.copy(place.shared.trained)
    for card in (place.cell.folder / "README.md", place.cell.adapter / "README.md"):
        card.write_text(card.read_text().replace("<!-- user:begin -->", f"<!-- user:begin -->\nmy token {SECRET}\n"))
    done = place.run("publish", place.cell.folder, "--to", "out")
    kept = {"nothing leaves": not (place.folder / "out").exists(), "the secret": SECRET not in done.out + done.err}
    return judged(done, code=1, says="secret", kept=kept)


def unfinished_card(place: Place) -> Outcome:
    place.copy(place.shared.trained)
    for card in (place.cell.folder / "README.md", place.cell.adapter / "README.md"):
        card.write_text(card.read_text().replace("<!-- user:begin -->", "<!-- user:begin -->\nTODO: 99.9 accuracy\n"))
    done = place.run("publish", place.cell.folder, "--to", "out")
    return judged(
        done,
        code=1,
        says="a placeholder is left in the card",
        kept={"nothing leaves": not (place.folder / "out").exists()},
    )
