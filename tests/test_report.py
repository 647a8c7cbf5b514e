"""The report page: well-formed, complete in itself, readable without scripts, and drawn by a real browser."""

from __future__ import annotations

import html.parser
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree
from pathlib import Path

import pytest

from hfadapt import svg
from hfadapt.records import CellReport, CellState, Metric, Report
from hfadapt.report import verdict, write_page
from hfadapt.run_folder import Run

EXAMPLES = Path(__file__).parent.parent / "cards" / "examples"
VOID = {"meta", "br", "hr", "img", "input", "link"}
BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)


class Reader(html.parser.HTMLParser):
    """Notes tags, links and text, and whether every tag is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def read(path: Path) -> Reader:
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    reader.close()
    assert reader.open == []
    return reader


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two finished cells, one of them on a second target, and one that failed."""
    folder = tmp_path_factory.mktemp("run") / "sentiment"
    run = Run(folder)
    for domain, target in (("tweets", "this-machine"), ("a <b> & 'c'", "this-machine"), ("tweets", "t4")):
        shutil.copytree(EXAMPLES / "text-classification", folder / domain / target)
        CellState(status="done").write(folder / domain / target / "cell.json")
    evaluation = folder / "tweets" / "t4" / "evaluation.json"
    payload = json.loads(evaluation.read_text())
    payload["metrics"][0] |= {"delta": -0.2, "low": -0.3, "high": -0.1}
    payload["metrics"][1] |= {"delta": 0.0, "low": -0.1, "high": 0.1}
    evaluation.write_text(json.dumps(payload))
    (folder / "news" / "this-machine").mkdir(parents=True)
    CellState(status="failed", error="out of <memory>").write(folder / "news" / "this-machine" / "cell.json")
    return run


@pytest.fixture(scope="module")
def page(run: Run) -> Path:
    report = Report(
        recipe="sentiment",
        model="sample:minilm-l6",
        task="text-classification",
        cells=tuple(cell.report() for cell in run.cells()),
        next_commands=("hfadapt predict X",),
    )
    return write_page(run, report)


def test_the_page_is_well_formed_and_needs_nothing_else(page: Path) -> None:
    reader = read(page)
    assert not {tag for tag, _ in reader.tags} & {"script", "link", "img", "iframe", "object"}
    for _, attributes in reader.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            assert name != "href" or not re.match(r"\w+:", value or "")
    text = page.read_text(encoding="utf-8")
    assert "@import" not in text
    assert not re.search(r"url\(|https?://", text)
    assert "prefers-color-scheme:dark" in text
    assert not re.search(r"\bnan\b|\binf\b", text, re.I)


def test_the_page_shows_every_cell_and_links_its_card(run: Run, page: Path) -> None:
    reader = read(page)
    links = [attributes["href"] for tag, attributes in reader.tags if tag == "a"]
    assert "tweets/t4/README.md" in links
    assert len(links) == 3
    words = " ".join(reader.words)
    for wanted in ("a <b> & 'c'", "out of <memory>", "Recall by class", "Gain with its interval", "hfadapt predict X"):
        assert wanted in words
    assert sum(tag == "svg" for tag, _ in reader.tags) >= 8
    classes = {attributes.get("class") for _, attributes in reader.tags}
    assert {"n better", "n worse", "n open", "failed"} <= classes


def test_the_same_records_give_the_same_page(run: Run, page: Path) -> None:
    before = page.read_bytes()
    report = Report(
        recipe="sentiment",
        model="sample:minilm-l6",
        task="text-classification",
        cells=tuple(cell.report() for cell in run.cells()),
        next_commands=("hfadapt predict X",),
    )
    assert write_page(run, report).read_bytes() == before


def test_a_run_without_results_has_a_page(tmp_path: Path) -> None:
    cells = (CellReport(domain="tweets", target="t4", status="pending"),)
    path = write_page(Run(tmp_path), Report(recipe="r", model="m", task="causal-lm", cells=cells))
    assert "pending" in " ".join(read(path).words)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_a_browser_draws_the_page_without_errors(page: Path, tmp_path: Path) -> None:
    picture = tmp_path / "page.png"
    assert BROWSER is not None
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    options += ["--disable-component-update", "--disable-sync", "--enable-logging=stderr", "--window-size=1200,1600"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={picture}"]
    done = subprocess.run([BROWSER, *options, page.as_uri()], capture_output=True, text=True, timeout=60)
    assert "CONSOLE" not in done.stderr
    assert picture.exists(), done.stderr[-2000:]
    assert picture.stat().st_size > 30_000


# --- charts ----------------------------------------------------------------------------------------------------------


def test_charts_are_xml_without_a_page() -> None:
    steps = [{"step": n, "loss": 1 / n, "validation_loss": 0.5 if n == 3 else None} for n in range(1, 6)]
    root = xml.etree.ElementTree.fromstring(svg.loss_chart(steps))
    assert root.tag.endswith("svg")
    assert svg.loss_chart(steps) == svg.loss_chart(steps)


@pytest.mark.parametrize(
    "steps", [[], [{"step": 1, "loss": 0.0}], [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 2.0}]]
)
def test_charts_of_little_data_are_finite(steps: list[dict[str, float]]) -> None:
    drawn = svg.loss_chart(steps)
    xml.etree.ElementTree.fromstring(drawn)
    assert "nan" not in drawn
    assert "inf" not in drawn.replace("sans-serif", "")


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [(0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]), (0.0, 100.0, [0, 20, 40, 60, 80, 100]), (3.0, 3.0, [3.0])],
)
def test_ticks_are_round(low: float, high: float, wanted: list[float]) -> None:
    assert svg.ticks(low, high) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("low", "high", "higher", "wanted"),
    [(0.1, 0.2, True, "better"), (-0.2, -0.1, True, "worse"), (-0.2, -0.1, False, "better"), (-0.1, 0.1, True, "open")],
)
def test_verdicts_follow_the_interval_and_the_direction(low: float, high: float, higher: bool, wanted: str) -> None:
    metric = Metric(name="m", base=1.0, adapter=1.0, delta=0.0, low=low, high=high, rows=9, higher_is_better=higher)
    assert verdict(metric) == wanted
