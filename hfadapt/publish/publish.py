"""Publishing: what would be sent, whether it may be, and then one commit for each repository, verified and tagged.

Without `yes` nothing leaves this machine. With it, each adapter is sent as one commit, downloaded again, compared,
loaded, scored on the rows that were scored after training, and only then tagged.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hfadapt.core.errors import HfadaptError, RequestError, RunError
from hfadapt.core.progress import quiet_libraries
from hfadapt.core.show import Block, Heading, Shown, Table, Text, show_bytes, show_count
from hfadapt.hardware.versions import versions
from hfadapt.models.adapter_files import PICTURE
from hfadapt.publish.staging import Staged, blocks, check_license, sealed, stage, write_index, write_out
from hfadapt.records.published import PublishRecord
from hfadapt.records.stages import CardRecord
from hfadapt.run_folder import STATE, Cell, Run

if TYPE_CHECKING:
    from huggingface_hub import HfApi

    from hfadapt.publish.hub import Hub

Layout = Literal["repos", "folders"]
LAYOUTS: tuple[Layout, ...] = ("repos", "folders")
RECORD = "publish.json"


@dataclass(frozen=True)
class Parcel:
    """What goes into one repository.

    Args:
        name: What a person calls it; the folder's name when several are written.
        repo: USER/NAME; empty when only a folder is written.
        cells: Each cell by its folder in the repository, which is empty for the top.
        staged: The files.
    """

    name: str
    repo: str
    cells: dict[str, Cell]
    staged: Staged


@dataclass(frozen=True)
class Publication(Shown):
    """What was published, or would be; shows itself as the list of files.

    Args:
        parcels: One for each repository.
        records: What was published, cell by cell; empty in a dry run.
        written: Folder that was written instead.
        steps: What `yes` would do, in order.
    """

    parcels: tuple[Parcel, ...]
    records: tuple[PublishRecord, ...] = ()
    written: Path | None = None
    steps: tuple[str, ...] = ()

    def blocks(self) -> list[Block]:
        """The files of each repository with size and hash, and what was or would be done."""
        shown: list[Block] = []
        for parcel in self.parcels:
            files = parcel.staged.files
            shown.append(Heading(parcel.repo or parcel.name, 1))
            rows = [[file.name, f"{file.bytes:,}", file.sha256] for file in files]
            shown.append(Table(["file", "bytes", "sha256"], rows, frozenset({"bytes"})))
            shown.append(Text(f"{show_count(len(files), 'file')}, {show_bytes(sum(file.bytes for file in files))}"))
            shown.extend(Text(line) for line in _pictures(parcel))
            shown.extend(Text(f"warning: {line}") for cell in parcel.cells.values() for line in warnings(cell))
        shown.extend(Text(f"published: {line}") for line in self._published())
        if self.written:
            shown.append(Text(f"written to {self.written}, nothing was sent; `sha256sum --check SHA256SUMS` checks it"))
        if self.steps:
            shown.append(Text("Nothing was sent. With --yes:"))
            shown.append(Text("\n".join(f"  {number}. {step}" for number, step in enumerate(self.steps, 1)), code=True))
        return shown

    def _published(self) -> Iterator[str]:
        for record in self.records:
            new = "" if record.new_commit else ", the same files were there already"
            scored = (
                "downloaded and compared"
                if record.loaded_difference is None
                else f"downloaded, compared, loaded and scored (difference {record.loaded_difference:.1g})"
            )
            where = f"{record.repo}{'/' + record.folder if record.folder else ''}"
            yield f"{where} tag {record.tag}, commit {record.commit[:8]}{new}; {scored}"


@dataclass(frozen=True)
class Sending:
    """How parcels are sent.

    Args:
        private: Make a new repository private.
        tag: By default the first free one of v1, v2, …
        verify_load: Load the downloaded adapter and score it.
    """

    private: bool
    tag: str | None
    verify_load: bool


def _pictures(parcel: Parcel) -> Iterator[str]:
    """Whether test rows that are files are among what is sent."""
    sent = [file.name for file in parcel.staged.files if PICTURE.fullmatch(file.name.rpartition("/")[2])]
    left = [path for cell in parcel.cells.values() for path in cell.folder.iterdir() if PICTURE.fullmatch(path.name)]
    if sent:
        yield f"with {show_count(len(sent), 'picture')} of test rows: {', '.join(sent)}"
    elif left:
        yield "without the pictures of test rows that the card shows here; --pictures sends them too"


def warnings(cell: Cell) -> Iterator[str]:
    """What a person should know before an adapter is given away; its card says the same."""
    security, drift = cell.security, cell.drift
    if security and security.membership and security.membership.leaks:
        yield f"{cell.domain}: it can be told on which rows this adapter was trained"
    if security and security.canaries and security.canaries.found:
        yield f"{cell.domain}: canaries that were planted in the training rows were found in this adapter"
    if security and security.personal_data and security.personal_data.repeated:
        yield f"{cell.domain}: it writes personal data that stands in its training rows"
    if drift and drift.refused:
        yield f"{cell.domain}: not to be served as {', '.join(drift.refused)}"


def publish(  # noqa: PLR0913 - the flags of the command, by the same names, for callers in Python
    path: Path,
    repo: str | None = None,
    *,
    to: Path | None = None,
    yes: bool = False,
    private: bool = False,
    tag: str | None = None,
    layout: str = "repos",
    license: str | None = None,
    pictures: bool = False,
    domains: Sequence[str] | None = None,
    targets: Sequence[str] | None = None,
    verify_load: bool = True,
    api: HfApi | None = None,
    sleep: Callable[[float], None] = time.sleep,
    say: Callable[[str], None] = lambda text: None,
) -> Publication:
    """Publishes the adapter of a cell, or those of a run.

    Args:
        path: A cell's folder or a run's.
        repo: USER/NAME. Several cells of a run go to USER/NAME-DOMAIN each, or into folders of one repository.
        to: Write a folder instead of sending anything.
        yes: Without it nothing is sent.
        private: Make a new repository private.
        tag: By default the first free one of v1, v2, …
        layout: `repos` or `folders`.
        license: A licence id of the Hub, where the records cannot say what holds.
        pictures: With the test rows that cards show, where rows are files.
        domains: Only these of a run.
        targets: Only these of a run.
        verify_load: Load the downloaded adapter and score it.
        api: For another endpoint than that of HF_ENDPOINT.

    Returns:
        What was published, or would be.

    Raises:
        RequestError: the request is wrong; nothing was sent.
        RunError: the cell may not be published, or the Hub failed.
    """
    named = chosen(path, domains, targets)
    if layout not in LAYOUTS:
        raise RequestError("unknown layout", place="--layout", got=repr(layout), allowed=" or ".join(LAYOUTS))
    if to is None and repo is None:
        raise RequestError("no destination given", fix="pass --repo USER/NAME or --to FOLDER")
    if repo is not None:
        check_repo(repo)
    if license is not None:
        check_license(license)
    refuse(named.values(), license)
    how = Sending(private, tag, verify_load)
    with parcels(named, repo or "", layout, license, pictures) as ready:
        if to is not None:
            for parcel in ready:
                write_out(parcel.staged, to if len(ready) == 1 else to / parcel.name)
            return Publication(tuple(ready), written=to)
        if not yes:
            return Publication(tuple(ready), steps=tuple(steps(ready, how)))
        records = send(ready, how, api, sleep, say)
        return Publication(tuple(ready), tuple(records))


def chosen(path: Path, domains: Sequence[str] | None, targets: Sequence[str] | None) -> dict[str, Cell]:
    """The cells to publish by what is put behind the repository's name; empty for a cell alone.

    Raises:
        RequestError: there is no such cell.
    """
    if (path / STATE).exists():
        return {"": Cell(path)}
    every = Run(path).cells()
    cells = [
        cell for cell in every if (not domains or cell.domain in domains) and (not targets or cell.target in targets)
    ]
    if not cells:
        raise RequestError(
            "there is nothing to publish here",
            place=str(path),
            got=", ".join(f"{cell.domain}/{cell.target}" for cell in every) or "neither a run nor a cell of one",
            fix="give runs/NAME or runs/NAME/DOMAIN/TARGET",
        )
    if len(every) == 1:
        return {"": cells[0]}
    several = len({cell.target for cell in every}) > 1
    return {f"{cell.domain}-{cell.target}" if several else cell.domain: cell for cell in cells}


def check_repo(repo: str) -> None:
    """Raises RequestError for a name that the Hub would not take."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        if repo.count("/") != 1:
            raise HFValidationError("it has to be USER/NAME")
        validate_repo_id(repo)
    except HFValidationError as error:
        said = str(error).splitlines()[0][:160]
        raise RequestError("not a name for a repository", place="--repo", got=repr(repo), allowed=said) from None


def refuse(cells: Iterable[Cell], license: str | None) -> None:
    """Raises RunError with every reason why one of the cells may not be published."""
    if problems := [problem for cell in cells for problem in blocks(cell, license)]:
        raise RunError("not published: fix these problems first", problems=problems)


@contextmanager
def parcels(
    named: dict[str, Cell], repo: str, layout: str, license: str | None, pictures: bool
) -> Iterator[list[Parcel]]:
    """The staged folders, which are gone at the end."""
    with tempfile.TemporaryDirectory(prefix="hfadapt-publish-") as temporary:
        root, ready = Path(temporary), []
        if layout == "folders":
            folder = root / "all"
            prefixes = {name or cell.domain: cell for name, cell in named.items()}
            for prefix, cell in prefixes.items():
                stage(cell, folder, prefix, license, pictures)
            write_index(folder, repo.rpartition("/")[2] or "Adapters", list(prefixes))
            ready.append(Parcel("all", repo, prefixes, sealed(folder)))
        else:
            for number, (name, cell) in enumerate(named.items()):
                folder = root / str(number)
                own = f"{repo}-{name}" if name and repo else repo
                if repo:
                    check_repo(own)
                ready.append(Parcel(name or cell.domain, own, {"": cell}, stage(cell, folder, "", license, pictures)))
        yield ready


def steps(ready: Sequence[Parcel], how: Sending) -> Iterator[str]:
    """What `--yes` does, in order."""
    from huggingface_hub import get_token

    token = "found" if get_token() else "NOT FOUND; log in with `hf auth login` first"
    for parcel in ready:
        kind = "private" if how.private else "public"
        yield f"{parcel.repo}: made when it is not there ({kind}), all files above sent as one commit (token: {token})"
    verified = ", loaded and scored on the check rows" if how.verify_load else ""
    yield f"downloaded again, every sha256 compared{verified}"
    yield f"tagged {how.tag or 'with the first free one of v1, v2, …'}"
    if len(ready) > 1:
        yield f"put into the collection {_title(ready)!r} of {ready[0].repo.split('/')[0]}"


def _title(ready: Sequence[Parcel]) -> str:
    return next(iter(ready[0].cells.values())).lock.name


def send(
    ready: Sequence[Parcel],
    how: Sending,
    api: HfApi | None,
    sleep: Callable[[float], None],
    say: Callable[[str], None],
) -> list[PublishRecord]:
    """Sends every parcel, one after the other, and writes publish.json into each cell.

    Raises:
        RunError: one failed; those before it are published and recorded.
    """
    from hfadapt.publish.hub import Hub, plain_transfers

    records: list[PublishRecord] = []
    with plain_transfers():
        hubs = [Hub(parcel.repo, api, sleep, say) for parcel in ready]
        hubs[0].user()
        try:
            for parcel, hub in zip(ready, hubs, strict=True):
                records += _send_one(parcel, hub, how)
            if len(ready) > 1:
                slug = hubs[0].collect(_title(ready), [parcel.repo for parcel in ready], how.private)
                records = [record.model_copy(update={"collection": slug}) for record in records]
                _write(records, ready)
        except HfadaptError as error:
            if records:
                say(f"published and recorded before this error: {', '.join(record.repo for record in records)}")
            raise error
    return records


def _send_one(parcel: Parcel, hub: Hub, how: Sending) -> list[PublishRecord]:
    staged = parcel.staged
    if how.tag is not None and hub.head() is not None:
        from hfadapt.publish.hub import taken

        named = hub.commit_of(how.tag)
        if named is not None and hub.changes(hub.files(named), staged, named):
            raise taken(parcel.repo, how.tag)
    first = next(iter(parcel.cells.values()))
    what = first.domain if len(parcel.cells) == 1 else f"{len(parcel.cells)} adapters"
    commit, new = hub.send(staged, f"{_title([parcel])}: {what}", how.private)
    hub.say(f"downloading {parcel.repo} at {commit[:8]} again")
    with tempfile.TemporaryDirectory(prefix="hfadapt-verify-") as temporary:
        downloaded = hub.fetch(staged, commit, Path(temporary))
        scored = {
            prefix: rescored_download(cell, downloaded / prefix) if how.verify_load else None
            for prefix, cell in parcel.cells.items()
        }
    hidden = hub.is_private()
    name = hub.tag(how.tag, commit)
    hub.say(f"{hub.address}/tree/{name}")
    records = [
        PublishRecord(
            domain=cell.domain,
            target=cell.target,
            repo=parcel.repo,
            folder=prefix,
            private=hidden,
            commit=commit,
            tag=name,
            new_commit=new,
            files=staged.files,
            license=str(CardRecord.read(staged.folder / prefix / "card.json").metadata.get("license")),
            loaded_difference=scored[prefix],
            versions=versions("none"),
        )
        for prefix, cell in parcel.cells.items()
    ]
    _write(records, [parcel])
    return records


def _write(records: Sequence[PublishRecord], ready: Sequence[Parcel]) -> None:
    cells = [cell for parcel in ready for cell in parcel.cells.values()]
    for record, cell in zip(records, cells, strict=True):
        record.write(cell.folder / RECORD)


@quiet_libraries()
def rescored_download(cell: Cell, folder: Path) -> float:
    """Loads a downloaded adapter and scores the rows that were scored at the end of training.

    Returns:
        Mean absolute difference of a row's loss, in nats.

    Raises:
        RunError: the folder is not as it was saved, or the losses are not the same.
    """
    from hfadapt.models.attach import open_adapter
    from hfadapt.models.load import default_device
    from hfadapt.models.manifest import load_base_of
    from hfadapt.train.check import rescored

    lock, device = cell.lock, default_device()
    base = load_base_of({folder: cell.data.labels}, lock, device)
    model = open_adapter(base, folder, lock.adapter.method, device)
    fix = "the commit has no tag; train the cell again and publish it then"
    return rescored(cell, base, model, device, "that was downloaded", fix)
