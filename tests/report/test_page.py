"""The report page: well-formed, complete in itself, readable without scripts, and drawn by a real browser."""

from __future__ import annotations

import html.parser
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree
from pathlib import Path

import chromium
import evidence_records
import pytest

from hfadapt.records.report import CellReport, Report
from hfadapt.records.stages import CellState, Metric, StageError
from hfadapt.report import plots, svg
from hfadapt.report.page import write_page
from hfadapt.report.run_view import Run

EXAMPLES = Path(__file__).parents[2] / "cards" / "examples"
VOID = {"meta", "br", "hr", "img", "input", "link"}
BROWSER = chromium.BROWSER


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
        for name in ("security.json", "drift.json", "transfer.json"):
            (folder / domain / target / name).unlink(missing_ok=True)
        CellState(status="done").write(folder / domain / target / "cell.json")
    evaluation = folder / "tweets" / "t4" / "evaluation.json"
    payload = json.loads(evaluation.read_text())
    payload["metrics"][0] |= {"delta": -0.2, "low": -0.3, "high": -0.1}
    payload["metrics"][1] |= {"delta": 0.0, "low": -0.1, "high": 0.1}
    evaluation.write_text(json.dumps(payload))
    (folder / "news" / "this-machine").mkdir(parents=True)
    errors = (StageError(stage="train", message="out of <memory>"),)
    CellState(status="failed", errors=errors).write(folder / "news" / "this-machine" / "cell.json")
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
    assert len([link for link in links if not (link or "").startswith("#")]) == 3
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


# --- a page with all evidence ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["text-classification", "causal-lm"])
def proved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Three domains on one target, with every record of evidence."""
    folder = tmp_path_factory.mktemp("proved") / "run"
    return Run(evidence_records.put_run(folder, EXAMPLES / request.param))


@pytest.fixture(scope="module")
def full_page(proved: Run) -> Path:
    report = report_of(proved)
    proved.write_report(report)
    return write_page(proved, report)


def report_of(run: Run) -> Report:
    return Report(
        recipe="sentiment",
        model="sample:minilm-l6",
        task="text-classification",
        cells=tuple(cell.report() for cell in run.cells()),
        transfer=transfer.targets if (transfer := run.transfer) else (),
        next_commands=("hfadapt predict X",),
    )


def test_every_kind_of_evidence_is_drawn(full_page: Path) -> None:
    reader = read(full_page)
    words = " ".join(reader.words)
    for heading in (
        "Baseline and adapter", "Every adapter on every domain", "Where the adapters are weakest", "Reliability",
        "Robustness", "What the adapters give away", "Merging, and bases in other precision", "Peak memory by phase",
        "Time and speed", "Loss",
    ):  # fmt: skip
        assert heading in words
    assert "refused: its answers differ by 0.0634 nats per label" in words
    assert "limit 0.02" in words
    assert "Not measured" not in words
    ids = {attributes.get("id") for _, attributes in reader.tags}
    for tag, attributes in reader.tags:
        if tag == "a" and (attributes["href"] or "").startswith("#"):
            assert (attributes["href"] or "")[1:] in ids


def test_slices_are_drawn_the_worst_first(full_page: Path) -> None:
    words = read(full_page).words
    lines = [word for word in words if ": length over" in word or ": length up to" in word]
    assert lines[0].endswith("length over 22 tokens")
    assert lines[-1].endswith("length up to 22 tokens")


def test_what_was_not_measured_is_said_with_its_command(page: Path) -> None:
    words = " ".join(read(page).words)
    assert "hfadapt evaluate RECIPE evaluate.security=true" in words
    assert "hfadapt evaluate RECIPE evaluate.drift=true" in words


def test_a_terminal_markdown_and_a_notebook_show_the_same_evidence(
    proved: Run, full_page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    text, markdown, notebook = str(proved), (proved.folder / "report.md").read_text(), proved._repr_html_()
    for words in (
        "every adapter on every domain",
        "Merging, and bases in other precision",
        "What the adapters give away",
    ):
        assert words in text
        assert words in markdown
        assert words in notebook
    for number in ("0.750 (+0.150*)", "0.063 (-0.021) REFUSED", "LEAKS"):
        assert number in text
        assert number in markdown
        assert number in notebook
    assert markdown == proved._repr_markdown_()
    assert "<svg" not in text + markdown
    assert notebook.count("<svg") == notebook.count("<figure>") == 5
    assert text.rstrip().endswith("hfadapt predict X")
    reader = Reader()
    reader.feed(notebook)
    assert reader.open == []


# --- in a browser ----------------------------------------------------------------------------------------------------


def faults_in_a_browser(page: Path, folder: Path, width: int = 1200) -> list[str]:
    """What a browser complains about, and whether it read the page as it was written."""
    picture = folder / "page.png"
    assert BROWSER is not None
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    options += ["--disable-component-update", "--disable-sync", "--enable-logging=stderr", "--dump-dom"]
    options += [f"--screenshot={picture}", f"--window-size={width},1600", f"--user-data-dir={folder / 'profile'}"]
    done = subprocess.run([BROWSER, *options, page.as_uri()], capture_output=True, text=True)
    found = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    if not picture.exists() or picture.stat().st_size < 20_000:
        found.append(f"nothing was drawn: {done.stderr[-500:]}")
    text = page.read_text(encoding="utf-8")
    seen, written = tags(done.stdout), tags(text)
    found += [
        f"<{tag}> was read {seen.count(tag)} times, written {written.count(tag)} times"
        for tag in sorted({*seen, *written})
        if seen.count(tag) != written.count(tag)
    ]
    if depths(done.stdout) != depths(text):
        found.append("a part of the page lies in another")
    return found


def tags(text: str) -> list[str]:
    """Every opening tag."""
    reader = Reader()
    reader.handle_endtag = lambda tag: None  # type: ignore[method-assign]
    reader.feed(text)
    return [tag for tag, _ in reader.tags]


def depths(text: str) -> list[int]:
    """How deep each section lies."""
    depth, found = 0, []
    for close, tag in re.findall(r"<(/?)(section|div|main|svg)\b", text):
        if tag == "section" and not close:
            found.append(depth)
        depth += -1 if close else 1
    return found


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
@pytest.mark.parametrize("width", [360, 1400])
def test_a_browser_draws_the_page_without_errors(full_page: Path, tmp_path: Path, width: int) -> None:
    assert faults_in_a_browser(full_page, tmp_path, width) == []


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_a_browser_draws_a_page_without_evidence(page: Path, tmp_path: Path) -> None:
    assert faults_in_a_browser(page, tmp_path) == []


SPOILT = {
    "a script that fails": ("</main>", "<script>document.nothing.here()</script></main>", "CONSOLE"),
    "a script that cannot be read": ("</main>", "<script>let = = 3</script></main>", "CONSOLE"),
    "a section that is not closed": ("</section>", "", "lies in another"),
    "a table without a body": ("<tbody>", "", "<tbody> was read"),
}


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
@pytest.mark.parametrize("name", SPOILT)
def test_a_seeded_fault_of_the_page_is_found(page: Path, tmp_path: Path, name: str) -> None:
    old, new, wanted = SPOILT[name]
    text = page.read_text(encoding="utf-8")
    assert old in text
    spoilt = tmp_path / "spoilt.html"
    spoilt.write_text(text.replace(old, new, 1), encoding="utf-8")
    found = faults_in_a_browser(spoilt, tmp_path)
    assert any(wanted in fault for fault in found), found


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


def drawings() -> dict[str, str]:
    """Every kind of plot, with odd names and with little in it."""
    effect = plots.Effect("a <b>", 0.1, "open", "+0.1", 0.0, 0.2, (0.05, 0.0, 0.1))
    names = ["x & y", "z"]
    return {
        "heat map": plots.heat_map(names, names, {("z", "z"): 0.5}, title="t", show=str, corner="r ↓ c →"),
        "heat map of gains": plots.heat_map(
            names, names, {("z", "z"): 0.5}, title="t", show=str, gains={("z", "z"): -0.1}
        ),
        "empty heat map": plots.heat_map([], [], {}, title="t", show=str),
        "forest": plots.forest([effect], title="t", axis="a"),
        "empty forest": plots.forest([], title="t", axis="a"),
        "dumbbell": plots.dumbbell(
            [plots.Move("m", 0.5, "better", "0.5", None), plots.Move("n", 0.5, "open", "0.5", 0.5)], title="t", axis="a"
        ),
        "empty dumbbell": plots.dumbbell([], title="t", axis="a"),
        "reliability": plots.reliability([("base", 1, [(0.5, 0.4, 3)]), ("adapter", 0, [(0.9, 1.0, 0)])], title="t"),
        "dots": plots.log_dots([plots.Line("d", 0.0, "better", "0"), plots.Line("e", 40.0, "worse", "40")], limit=0.02,
                               lowest=1e-6, title="t", axis="a"),
        "dots without a limit": plots.log_dots([plots.Line("d", 0.0, "better", "0")], limit=0.0, lowest=1e-6, title="t",
                                               axis="a"),
        "bars": plots.bars([("g", [plots.Bar(0.0, "0", "var(--c0)")])], [("l", "var(--c0)")], title="t"),
    }  # fmt: skip


def test_the_legend_of_reliability_stands_on_no_other_words() -> None:
    curves = [("linear probe 0.173", 1, [(0.5, 0.4, 3)]), ("adapter 0.124", 0, [(0.9, 1.0, 2)])]
    texts = xml.etree.ElementTree.fromstring(plots.reliability(curves, title="t")).findall(".//{*}text")
    heights = {each.text: float(each.get("y", "nan")) for each in texts}
    assert abs(heights["share right"] - heights["linear probe 0.173"]) >= 14


@pytest.mark.parametrize("name", drawings())
def test_every_plot_is_xml_and_finite(name: str) -> None:
    drawn = drawings()[name]
    root = xml.etree.ElementTree.fromstring(drawn)
    assert root.tag.endswith("svg")
    assert not re.search(r"nan|inf\b", drawn.replace("system-ui", ""))
    assert xml.etree.ElementTree.fromstring(svg.alone(drawn)).find(".//style") is not None
    assert drawn == drawings()[name]


def test_dots_lie_where_a_log_axis_has_them() -> None:
    dots = [
        plots.Line("a", 1e-4, "better", ""),
        plots.Line("b", 1e-3, "better", ""),
        plots.Line("c", 1e-2, "better", ""),
    ]
    drawn = plots.log_dots(dots, limit=0.02, lowest=1e-6, title="t", axis="a")
    places = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', drawn)]
    assert places[1] - places[0] == pytest.approx(places[2] - places[1], abs=0.05)


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
    assert metric.verdict == wanted


@pytest.mark.parametrize(
    ("low", "high", "higher", "said"),
    [
        (0.05, 0.2, True, []),
        (-0.01, 0.2, True, ["not better than the baseline beyond chance: mails"]),
        (0.05, 0.2, False, ["worse than the baseline: mails"]),
        (None, None, True, []),
    ],
)
def test_an_adapter_that_is_not_better_gets_advice(
    low: float | None, high: float | None, higher: bool, said: list[str]
) -> None:
    metric = Metric(name="m", base=0.8, adapter=0.9, delta=0.1, low=low, high=high, rows=9, higher_is_better=higher)
    cell = CellReport(domain="mails", target="this-machine", status="done", metrics=(metric,))
    report = str(Report(recipe="r", model="m", task="t", cells=(cell,)))
    assert [line.split(".")[0] for line in report.splitlines() if "than the baseline" in line] == said


@pytest.mark.parametrize(
    ("best", "delta", "said"), [(20, -0.1, True), (100, -0.1, False), (0, -0.1, False), (20, 0.1, False)]
)
def test_what_was_best_before_the_end_can_be_kept(best: int, delta: float, said: bool) -> None:
    """Where no validation was made, no step was best."""
    metric = Metric(name="m", base=0.8, adapter=0.8 + delta, delta=delta, low=delta, high=delta, rows=9)
    about = {"status": "done", "metrics": (metric,), "steps": 100, "best_step": best}
    report = str(Report(recipe="r", model="m", task="t", cells=(CellReport(domain="mails", target="t", **about),)))
    assert ("lowest before the end: mails at step 20 of 100. train.patience: 2" in " ".join(report.split())) == said


@pytest.mark.parametrize(("base", "higher"), [(1.0, True), (0.0, False)])
def test_a_baseline_without_mistakes_leaves_nothing_to_try(base: float, higher: bool) -> None:
    values = {"base": base, "adapter": base, "delta": 0.0, "low": 0.0, "high": 0.0, "higher_is_better": higher}
    cell = CellReport(domain="mails", target="t", status="done", metrics=(Metric(name="m", rows=9, **values),))
    report = str(Report(recipe="r", model="m", task="t", cells=(cell,)))
    assert "leaves nothing to gain: mails" in " ".join(report.split())
    assert "To try" not in report


def test_classes_without_a_test_row_are_named(tmp_path: Path) -> None:
    cells = tuple(
        CellReport(domain="mails", target=target, status="done", unscored=("odd", "rare")) for target in ("t4", "a100")
    )
    report = Report(recipe="r", model="m", task="text-classification", cells=cells)
    said = "mails: no test row of 'odd', 'rare': how well they are told is not measured"
    assert " ".join(str(report).split()).count(said) == 1
    assert said in " ".join(read(write_page(Run(tmp_path), report)).words)


def test_every_cell_of_a_table_has_the_name_of_its_column_for_narrow_pages(full_page: Path) -> None:
    text = full_page.read_text(encoding="utf-8")
    tables = re.findall(r"<table.*?</table>", text, re.DOTALL)
    assert len(tables) == 3
    for table in tables:
        columns = re.findall(r"<th(?: [^>]*)?>(.*?)</th>", table)
        for row in re.findall(r"<tr>(.*?)</tr>", table.partition("</thead>")[2], re.DOTALL):
            assert re.findall(r'<td data-name="([^"]*)"', row) == columns


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_tables_are_not_cut_at_any_width(full_page: Path, tmp_path: Path) -> None:
    with chromium.page(tmp_path) as tab:
        tab.open(full_page.as_uri())
        for width in (360, 768, 1100, 1440):
            tab.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
            # On a telephone charts may be moved; tables are read as they are everywhere.
            places = ".scroll" if width >= 768 else ".scroll:has(table)"
            wide = f"[...document.querySelectorAll('{places}')].filter((one) => one.scrollWidth > one.clientWidth + 1)"
            assert tab.run(f"{wide}.map((one) => one.getAttribute('aria-label'))") == []
