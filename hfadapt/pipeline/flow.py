"""The flow: plan → data → train → evaluate → card for every cell; what is done and unchanged is kept.

A failed cell is noted and the others go on; an interrupted one continues from its checkpoint the next time.
"""

from __future__ import annotations

import shutil
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfadapt import __version__
from hfadapt.core import registry
from hfadapt.core.errors import DataError, HfadaptError, RequestError
from hfadapt.core.progress import Progress
from hfadapt.core.show import show_bytes
from hfadapt.hardware.peak_memory import is_out_of_memory
from hfadapt.plan.make import lock as lock_cell
from hfadapt.plan.make import make_plan
from hfadapt.recipe.schema import Lock, Recipe
from hfadapt.records.plan import CellPlan
from hfadapt.records.report import Report
from hfadapt.records.stages import DataRecord
from hfadapt.report.run_view import Run
from hfadapt.run_folder import Cell

if TYPE_CHECKING:
    from hfadapt.data import PreparedDomain
    from hfadapt.hardware.processes import World

STAGES = ("data", "plan", "train", "evaluate", "card")


@dataclass
class Flow:
    """One recipe on its way through the stages.

    Args:
        recipe: What was asked for.
        domains: The domains to do; all when empty. The others are prepared all the same where rows are compared across
            domains, so that a cell has the same rows whichever others are done with it.
        recipe_folder: Relative sources are looked for here first.
        folder: The run folder.
        until: The last stage to do.
        fresh: Start the cells over.
    """

    recipe: Recipe
    recipe_folder: Path
    folder: Path
    world: World
    progress: Progress
    until: str = "card"
    fresh: bool = False
    domains: Sequence[str] = ()
    _begun: set[Path] = field(default_factory=set)
    _beside: set[Path] = field(default_factory=set)  # cells that another one's training has just done

    def run(self) -> Report:
        """Every cell; returns the report that was written.

        Raises:
            KeyboardInterrupt: after the interrupted cell's checkpoint and the report were written.
        """
        run = Run(self.folder)
        asked = narrow(self.recipe, self.domains)
        self.world.on_main(lambda: make_plan(asked, processes=self.world.size))
        self._asked, self._prepared = asked, self.world.on_main(self._prepare)
        try:
            for domain, target in asked.cells():
                self._cell(run.cell(domain, target), self._prepared[domain])
            self.world.on_main(lambda: self._transfer(run))
        finally:
            report = self.world.on_main(lambda: write_report(run, self.recipe))
        return report

    def _prepare(self) -> Mapping[str, PreparedDomain]:
        from hfadapt.data import prepare

        recipe = compared(self.recipe, self.domains)
        return prepare(recipe, recipe_folder=self.recipe_folder, progress=self.progress.say)

    def _cell(self, cell: Cell, prepared: PreparedDomain) -> None:
        hashes = stage_hashes(self.recipe, cell, prepared)
        on_main = self.world.on_main
        on_main(lambda: self._start(cell, hashes))
        if all(self._done(cell, stage, hashes) for stage in self._wanted()):
            if cell.folder not in self._beside:
                self.progress.say(f"{cell.domain} on {cell.target}: done already, kept (--fresh starts over)")
            return
        work: dict[str, Callable[[], Any]] = {
            "data": lambda: on_main(lambda: prepared.deliver(cell.folder)),
            "plan": lambda: on_main(lambda: self._plan(cell)),
            "train": lambda: self._train(cell, hashes["train"]),
            "evaluate": lambda: self._evaluate(cell),
            "card": lambda: on_main(lambda: self._card(cell)),
        }
        try:
            for stage in self._wanted():
                if not self._done(cell, stage, hashes):
                    on_main(lambda stage=stage: cell.set_state(running=stage))  # type: ignore[misc]
                    work[stage]()
                    on_main(lambda stage=stage: self._mark(cell, stage, hashes))  # type: ignore[misc]
            on_main(lambda: self._close(cell))
        except KeyboardInterrupt:
            words = "interrupted; run the command again to go on"
            on_main(lambda: cell.set_state(status="interrupted", error=words, running=None))
            raise
        except HfadaptError as error:
            self._fail(cell, str(error))
        except Exception as error:
            if self.world.size > 1:
                # The other processes wait for this one: let the launcher end them all.
                raise
            (cell.folder / "error.log").write_text(traceback.format_exc(), encoding="utf-8")
            if is_out_of_memory(error):
                self._fail(cell, out_of_memory(cell, cell.state.running))
                return
            self._fail(cell, f"{type(error).__name__}: {error} (details: {cell.folder / 'error.log'})")

    # --- stages ------------------------------------------------------------------------------------------------------

    def _plan(self, cell: Cell) -> None:
        """The final plan, now that token lengths are known, and the audit of the rows under it."""
        from hfadapt.models.load import load_processor, resolve_model
        from hfadapt.recipe.reading import save_recipe

        recipe = narrow(self.recipe, [cell.domain], [cell.target])
        tokenizer = load_processor(resolve_model(recipe.model))
        record = measure_lengths(cell, recipe, tokenizer)
        sharing = sum(target == cell.target for _, target in self._asked.cells())
        plan = make_plan(recipe, data={cell.domain: record}, processes=self.world.size, sharing=sharing)
        plan.write(cell.folder / "plan.json")
        decided = plan.cells[0]
        lock = lock_cell(recipe, decided)
        save_recipe(lock, cell.folder / "lock.yaml", full=True)
        if not decided.fits:
            cell.set_state(status="does-not-fit")
            raise RequestError(str(plan))
        audit_cell(cell, lock, tokenizer, record)
        self.progress.say(summary(lock, decided, record))
        for finding in cell.data.audit.findings if cell.data.audit else ():
            self.progress.say(f"  note: {finding.message}")

    def _train(self, cell: Cell, identity: str) -> None:
        """Trains the cell, and with it those of the same target that share its base."""
        from hfadapt.train import can_share, train_cells

        group = {cell.domain: identity}
        if cell.lock.train.together and registry.adapter(cell.lock.adapter.method).shares_base:
            for domain, target in self._asked.cells():
                peer = Run(self.folder).cell(domain, target)
                hashes = self._planned(peer) if target == cell.target and domain != cell.domain else None
                if hashes and peer.lock.train.together and can_share(cell, peer):
                    group[domain] = hashes["train"]
        cells = [Run(self.folder).cell(domain, cell.target) for domain in group]
        if len(cells) > 1:
            self.progress.say(f"{', '.join(group)}: trained together on one base")
        identities = list(group.values())
        try:
            records = train_cells(cells, self.world, identities=identities, progress=self.progress)
        except Exception as error:
            if (
                len(cells) == 1
                or self.world.size > 1
                or not (isinstance(error, HfadaptError) or is_out_of_memory(error))
            ):
                raise
            # A fault of one of them is told on its own turn.
            self.progress.say(f"together it does not work, {cell.domain} is trained alone:\n{error}")
            cells, identities = cells[:1], identities[:1]
            records = train_cells(cells, self.world, identities=identities, progress=self.progress)
        for peer, hashed, record in zip(cells[1:], identities[1:], records[1:], strict=True):
            if record is not None:
                self._beside.add(peer.folder)
                self.world.on_main(lambda peer=peer, hashed=hashed: self._mark(peer, "train", {"train": hashed}))  # type: ignore[misc]
        if records[0] is None:
            # It was given up while the others went on; alone it says why.
            train_cells(cells[:1], self.world, identities=identities[:1], progress=self.progress)

    def _planned(self, peer: Cell) -> dict[str, str] | None:
        """The stage hashes of another cell that is planned and not trained yet; None when it has to wait its turn."""
        prepared = self._prepared[peer.domain]
        hashes = stage_hashes(self.recipe, peer, prepared)
        self.world.on_main(lambda: self._start(peer, hashes))
        if self._done(peer, "train", hashes):
            return None
        work = {"data": lambda: prepared.deliver(peer.folder), "plan": lambda: self._plan(peer)}
        try:
            # Decided by one process, as the others may look when it has gone on already.
            left = self.world.on_main(lambda: [name for name in work if not self._done(peer, name, hashes)])
            for stage in left:
                self.world.on_main(work[stage])
                self.world.on_main(lambda stage=stage: self._mark(peer, stage, hashes))  # type: ignore[misc]
        except HfadaptError:
            # Its own turn says what is wrong.
            return None
        return hashes

    def _evaluate(self, cell: Cell) -> None:
        from hfadapt.evaluate import evaluate_cell

        self.world.on_main(lambda: self._renew_lock(cell))
        evaluate_cell(cell, self.world, self.progress, self.recipe_folder)

    def _renew_lock(self, cell: Cell) -> None:
        """Another evaluation of the same adapter was asked for: only that section of the lock changes."""
        from hfadapt.recipe.reading import save_recipe

        lock, recipe = cell.lock, narrow(self.recipe, [cell.domain], [cell.target])
        plan = make_plan(recipe, data={cell.domain: cell.data}, processes=self.world.size)
        asked = lock_cell(recipe, plan.cells[0]).evaluate
        if asked != lock.evaluate:
            save_recipe(lock.model_copy(update={"evaluate": asked}), cell.folder / "lock.yaml", full=True)

    def _card(self, cell: Cell) -> None:
        from hfadapt.card.build import build_card

        build_card(cell)

    def _transfer(self, run: Run) -> None:
        """Every adapter on every domain, once the cells are evaluated; a missed `transfer` gate fails its cell."""
        if not self.recipe.evaluate.transfer or "evaluate" not in self._wanted():
            return
        from hfadapt.evaluate.transfer import transfer_gates, write_transfer

        cells = [run.cell(domain, target) for domain, target in self.recipe.cells()]
        cells = [cell for cell in cells if "evaluate" in cell.state.stages]
        try:
            record = write_transfer(run.folder, cells, self.world.accelerator.device, self.progress)
        except HfadaptError as error:
            self.progress.say(f"no matrix of adapters and domains:\n{error}")
            return
        except Exception as error:
            # The cells are done; what failed is only the comparison between them.
            (run.folder / "error.log").write_text(traceback.format_exc(), encoding="utf-8")
            self.progress.say(f"no matrix of adapters and domains: {type(error).__name__} (see error.log in the run)")
            return
        failed = transfer_gates(record, cells) if record else {}
        for cell in cells:
            state, message = cell.state, failed.get((cell.domain, cell.target))
            others = [part for part in (state.error or "").split("; ") if part and not part.startswith("transfer: ")]
            missed = "; ".join([*others, *([message] if message else [])]) or None
            if missed != state.error:
                status = "failed" if missed else "done" if "card" in state.stages else "pending"
                cell.set_state(status=status, error=missed)

    # --- bookkeeping -------------------------------------------------------------------------------------------------

    def _wanted(self) -> Sequence[str]:
        return STAGES[: STAGES.index(self.until) + 1]

    def _done(self, cell: Cell, stage: str, hashes: Mapping[str, str]) -> bool:
        return cell.state.stages.get(stage) == hashes[stage]

    def _start(self, cell: Cell, hashes: Mapping[str, str]) -> None:
        """Makes the folder; an earlier result that something else was asked for is kept aside, not overwritten."""
        state = cell.state
        if state.running in ("train", "evaluate"):
            # Neither done nor failed nor interrupted: the process was killed, mostly for lack of memory.
            words = out_of_memory(
                cell, state.running, "the last run was ended from outside, most likely as memory ran out,"
            )
            self.progress.say(f"{cell.domain} on {cell.target}: {words}")
        changed = "train" in state.stages and state.stages["train"] != hashes["train"]
        if self.fresh and cell.folder not in self._begun and cell.folder.exists():
            shutil.rmtree(cell.folder)
        elif changed:
            kept = self.folder / ".kept" / f"{cell.domain}-{cell.target}-{state.stages['train'][:8]}"
            shutil.rmtree(kept, ignore_errors=True)
            kept.parent.mkdir(parents=True, exist_ok=True)
            cell.folder.rename(kept)
            self.progress.say(f"{cell.domain} on {cell.target}: recipe or data changed; earlier result kept in {kept}")
        self._begun.add(cell.folder)
        cell.folder.mkdir(parents=True, exist_ok=True)
        if not all(self._done(cell, stage, hashes) for stage in self._wanted()):
            cell.set_state(status="pending", error=None, running=None)

    def _mark(self, cell: Cell, stage: str, hashes: Mapping[str, str]) -> None:
        cell.set_state(stages={**cell.state.stages, stage: hashes[stage]})

    def _close(self, cell: Cell) -> None:
        evaluated = (cell.folder / "evaluation.json").exists() and self.until in ("evaluate", "card")
        missed = cell.evaluation.gates_failed if evaluated else ()
        done = self.until == "card"
        status = "failed" if missed else "done" if done else "pending"
        cell.set_state(status=status, error="; ".join(missed) or None, running=None)

    def _fail(self, cell: Cell, message: str) -> None:
        self.progress.say(f"{cell.domain} on {cell.target} failed:\n{message}")
        status = "does-not-fit" if cell.state.status == "does-not-fit" else "failed"
        if self.world.is_main:
            cell.set_state(status=status, error=message, running=None)


def out_of_memory(cell: Cell, stage: str | None, ended: str = "memory ran out") -> str:
    """What to say, and to try, when a stage needed more memory than there was."""
    lines = [f"{ended} while it was at '{stage}'"]
    if (cell.folder / "plan.json").exists():
        plan = cell.plan.cells[0]
        lines[0] += f"; the plan had {show_bytes(plan.peak.total_bytes)} of {show_bytes(plan.budget_bytes)} usable"
    rows = cell.lock.train.micro_batch_rows if (cell.folder / "lock.yaml").exists() else 1
    smaller = f"train.micro_batch_rows={rows // 2}, or " if rows > 1 else ""
    lines.append(f"  fix: {smaller}memory_margin=0.3; and see that other programs leave memory free (hfadapt doctor)")
    return "\n".join(lines)


def narrow(recipe: Recipe, domains: Sequence[str] = (), targets: Sequence[str] = ()) -> Recipe:
    """The recipe with only these domains and targets; empty means all."""
    kept = {name: domain for name, domain in recipe.domains.items() if not domains or name in domains}
    return recipe.model_copy(update={"domains": kept, "targets": tuple(targets) or recipe.targets}).choose()


def compared(recipe: Recipe, domains: Sequence[str] = ()) -> Recipe:
    """The recipe with all domains that have to be read for the rows of these."""
    return recipe if recipe.data.dedupe.across_domains else narrow(recipe, domains)


def summary(lock: Lock, plan: CellPlan, record: DataRecord) -> str:
    """The plan of a cell in one line, shown before it is trained."""
    rank = f" rank {lock.adapter.rank}" if registry.adapter(lock.adapter.method).low_rank else ""
    stored = registry.quant(lock.quant).storage(lock.dtype)
    planted = f" and {record.canaries.rows:,} of canaries" if record.canaries else ""
    rows = f"{record.splits['train']:,} rows{planted}"
    return (
        f"{plan.domain} on {plan.target}: {rows} of up to {lock.data.max_length} tokens, "
        f"{lock.adapter.method}{rank} on a {stored} base, {lock.train.batch_rows} rows a step, "
        f"peak {show_bytes(plan.peak.total_bytes)} of {show_bytes(plan.budget_bytes)} predicted"
    )


def stage_hashes(recipe: Recipe, cell: Cell, prepared: PreparedDomain) -> dict[str, str]:
    """For each stage, the hash of what its result depends on, earlier stages included.

    Of the data only the rows of the splits count, so that another domain in the recipe leaves finished cells alone
    unless it takes rows from them.
    """
    from hfadapt.models.load import file_sha256, json_sha256

    rows = {path.name: file_sha256(path) for path in sorted((prepared.folder / "data").glob("*.parquet"))}
    asked = narrow(recipe, [cell.domain], [cell.target]).model_dump(mode="json")
    evaluate = asked.pop("evaluate")
    train = json_sha256([rows, asked])
    evaluated = json_sha256([train, evaluate])
    return {
        "data": json_sha256(rows),
        "plan": train,
        "train": train,
        "evaluate": evaluated,
        "card": json_sha256([evaluated, __version__]),
    }


def measure_lengths(cell: Cell, recipe: Recipe, tokenizer: Any) -> DataRecord:
    """The cell's data record with the token lengths of its splits, as the model's tokenizer counts them."""
    from hfadapt.data import augmented, lengths, read_split

    task, record = registry.task(recipe.task), cell.data
    if record.form not in task.schemas:
        raise DataError(
            f"{recipe.task} cannot learn from rows of this form",
            place=f"domains.{cell.domain}",
            got=record.form,
            allowed=", ".join(sorted(task.schemas)),
            fix="name the columns (domains.NAME.columns), give a template, or choose another task",
        )
    measured = {
        split: lengths(rows, task, tokenizer, labels=record.labels)
        for split in ("train", "validation", "test")
        if (rows := read_split(cell.folder, split))
    }
    train = read_split(cell.folder, "train")
    changed = augmented(train, record.form, recipe.data, task, tokenizer, labels=record.labels)
    return record.model_copy(update={"lengths": measured, "augmented": changed})


def audit_cell(cell: Cell, lock: Lock, tokenizer: Any, record: DataRecord) -> DataRecord:
    """Looks at the rows as training will see them and writes data.json with what was found.

    Raises:
        DataError: there are hard findings.
    """
    from hfadapt.data import audit, drop_too_long, require_clean

    task = registry.task(lock.task)
    options: dict[str, Any] = {"max_length": lock.data.max_length, "labels": record.labels}
    record.write(cell.folder / "data.json")
    if lock.data.too_long == "drop":
        record = drop_too_long(cell.folder, task, tokenizer, **options)
    found = audit(cell.folder, task, tokenizer, similarity=lock.data.dedupe.similarity, **options)
    record = record.model_copy(update={"audit": found})
    record.write(cell.folder / "data.json")
    require_clean(found, f"{cell.domain} on {cell.target}")
    return record


def write_report(run: Run, recipe: Recipe) -> Report:
    """report.json, report.md and report.html of all cells of the run, those of this recipe first."""
    from hfadapt.card.build import share_transfer
    from hfadapt.report.page import write_page

    share_transfer(run)
    asked = [run.cell(domain, target) for domain, target in recipe.cells()]
    others = [cell for cell in run.cells() if cell.folder not in {other.folder for other in asked}]
    if (run.folder / "report.json").exists():
        before = [(cell.domain, cell.target) for cell in run.report.cells]
        others.sort(
            key=lambda cell: before.index(name) if (name := (cell.domain, cell.target)) in before else len(before)
        )
    cells = [cell for cell in [*asked, *others] if cell.folder.exists()]
    report = Report(
        recipe=recipe.name,
        model=recipe.model,
        task=recipe.task,
        cells=tuple(cell.report() for cell in cells),
        transfer=transfer.targets if (transfer := run.transfer) else (),
        next_commands=next_commands(run, cells),
    )
    run.write_report(report)
    write_page(run, report)
    return report


def next_commands(run: Run, cells: Sequence[Cell]) -> tuple[str, ...]:
    """What to type next."""
    done = [cell for cell in cells if cell.state.status == "done"]
    if not done:
        return ()
    best = done[0]
    example = '"text"' if not registry.task(best.lock.task).writes else '"prompt"'
    return (
        f"hfadapt predict {best.folder} {example}",
        f"hfadapt publish {best.folder} --repo USER/NAME",
    )
