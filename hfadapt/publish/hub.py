"""The dialogue with the Hub: one commit that is never doubled, checked before every retry, and a tag when all is well.

`create_commit` is one transaction on the server, other than `upload_folder`, which may make several. What can go
wrong is that the answer is lost after the commit happened; so nothing is sent again before the files on the Hub have
been compared with those that were to be sent.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hfadapt.core import registry
from hfadapt.core.errors import RequestError, RunError
from hfadapt.core.hashing import file_sha256
from hfadapt.core.show import show_bytes, show_count
from hfadapt.models.adapter_files import MANIFEST, PICTURE, SIDECARS, is_model_file
from hfadapt.publish.staging import Staged, git_oid
from hfadapt.records.published import PublishedFile

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import Collection, RepoFile

ATTEMPTS = 4
LONGEST_WAIT_SECONDS = 60.0
MOST_TAGS = 200
OWN_TO_THE_HUB = frozenset({".gitattributes", "LICENSE", "NOTICE"})
PASSING = frozenset({408, 409, 412, 425, 429, 500, 502, 503, 504})
"""Answers after which the same request may succeed."""

T = TypeVar("T")


class Hub:
    """One model repository.

    Args:
        repo: USER/NAME.
        api: By default the endpoint of HF_ENDPOINT, and the token of HF_TOKEN or of `hf auth login`.
        sleep: Waits that many seconds before a retry.
        say: Told what happens.
    """

    def __init__(
        self,
        repo: str,
        api: HfApi | None = None,
        sleep: Callable[[float], None] = time.sleep,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        from huggingface_hub import HfApi

        self.repo, self.api, self.sleep, self.say = repo, api or HfApi(library_name="hfadapt"), sleep, say

    @property
    def address(self) -> str:
        """Where a person looks at it."""
        return f"{self.api.endpoint}/{self.repo}"

    def tried(self, doing: str, call: Callable[[], T]) -> T:
        """The answer to a request that may be repeated, after some patience.

        Raises:
            RunError: it failed for good, or too often.
        """
        for attempt in range(ATTEMPTS):
            try:
                return call()
            except Exception as error:
                if not passing(error) or attempt == ATTEMPTS - 1:
                    raise explained(error, self.repo, doing) from error
                self.wait(attempt, error, doing)
        raise AssertionError

    def wait(self, attempt: int, error: Exception, doing: str) -> None:
        """Sleeps 1, 2, 4 … seconds, or what the server asked for."""
        seconds = min(max(2.0**attempt, asked_wait(error)), LONGEST_WAIT_SECONDS)
        self.say(f"{doing}: {reason(error)}; trying again in {seconds:g} s")
        self.sleep(seconds)

    def is_private(self) -> bool:
        """Whether only some may see it."""
        return bool(self.tried("looking at the repository", lambda: self.api.repo_info(self.repo)).private)

    # --- what is there -----------------------------------------------------------------------------------------------

    def user(self) -> str:
        """The name behind the token.

        Raises:
            RunError: there is no token, or it is not accepted.
        """
        found: str = self.tried("asking who you are", self.api.whoami)["name"]
        return found

    def head(self) -> str | None:
        """The commit of the main branch; None while there is no such repository."""
        try:
            return self.api.repo_info(self.repo).sha
        except Exception as error:
            if status(error) == 404:
                return None
            return self.tried("looking at the repository", lambda: self.api.repo_info(self.repo)).sha

    def commit_of(self, tag: str) -> str | None:
        """The commit that a tag names, or None."""
        from huggingface_hub.errors import RevisionNotFoundError

        def look() -> str | None:
            try:
                return self.api.repo_info(self.repo, revision=tag).sha
            except RevisionNotFoundError:
                return None

        return self.tried("looking at the tags", look)

    def files(self, commit: str | None) -> dict[str, RepoFile]:
        """Every file of a commit by its path."""
        from huggingface_hub.hf_api import RepoFile

        if commit is None:
            return {}

        def look() -> dict[str, RepoFile]:
            entries = self.api.list_repo_tree(self.repo, revision=commit, recursive=True)
            return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}

        return self.tried("looking at the files", look)

    def changes(self, files: Mapping[str, RepoFile], staged: Staged, commit: str | None) -> list[Any]:
        """What has to be added and deleted so that the repository, which holds `files`, holds the staged ones."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        names = {file.name for file in staged.files}
        folders = {_folder(name) for name in names}
        adds = [
            CommitOperationAdd(path_in_repo=file.name, path_or_fileobj=str(staged.folder / file.name))
            for file in staged.files
            if not self._same(files.get(file.name), file, staged.folder / file.name, commit)
        ]
        old = [name for name in files if name not in names and _is_ours(name) and _folder(name) in folders]
        return [*adds, *(CommitOperationDelete(path_in_repo=name) for name in sorted(old))]

    def _same(self, remote: RepoFile | None, file: PublishedFile, path: Path, commit: str | None) -> bool:
        """Whether a file on the Hub has the staged content: by its hash there, else by looking at it."""
        if remote is None or remote.size != file.bytes:
            return False
        if remote.lfs is not None:
            return remote.lfs.sha256 == file.sha256
        if remote.blob_id == git_oid(path):
            return True
        with tempfile.TemporaryDirectory(prefix="hfadapt-compare-") as folder:

            def load() -> str:
                return str(self.api.hf_hub_download(self.repo, file.name, revision=commit, local_dir=folder))

            return file_sha256(Path(self.tried("comparing the files", load))) == file.sha256

    # --- sending -----------------------------------------------------------------------------------------------------

    def create(self, private: bool) -> None:
        """Makes the repository; one that is there already is kept as it is."""
        self.tried(
            "making the repository", lambda: self.api.create_repo(self.repo, private=private or None, exist_ok=True)
        )

    def send(self, staged: Staged, message: str, private: bool) -> tuple[str, bool]:
        """Makes the repository hold exactly the staged files, in at most one commit.

        Returns:
            The commit, and whether it is a new one.

        Raises:
            RunError: it did not work; the repository is as it was before, or the message says what is not known.
        """
        head = self.head()
        if head is None:
            self.create(private)
            head = self.head()
        files = self.files(head)
        for attempt in range(ATTEMPTS):
            refuse_foreign(files, self.repo)
            operations = self.changes(files, staged, head)
            if not operations:
                assert head is not None
                return head, attempt > 0
            try:
                self.say(f"sending {_counted(operations)} to {self.repo} as one commit")
                made = self.api.create_commit(
                    self.repo, operations=operations, commit_message=message, parent_commit=head
                )
                return made.oid, True
            except Exception as error:
                if not passing(error):
                    raise explained(error, self.repo, "sending the files") from error
                self.wait(attempt, error, "sending the files")
                try:
                    head, files = self._again(head, files, staged)
                except RunError as second:
                    if second.exit_code == RequestError.exit_code:
                        raise
                    raise RunError(
                        "the Hub stopped answering, so it is unknown whether the files arrived",
                        place=self.repo,
                        got=reason(error),
                        fix="run the same command again later; it compares first and sends nothing twice",
                    ) from error
                if attempt == ATTEMPTS - 1 and self.changes(files, staged, head):
                    raise explained(error, self.repo, "sending the files") from error
        assert head is not None
        return head, True

    def _again(
        self, head: str | None, files: Mapping[str, RepoFile], staged: Staged
    ) -> tuple[str | None, dict[str, RepoFile]]:
        """What is there after a failed commit.

        Raises:
            RequestError: somebody else changed our files in the meantime.
        """
        new_head = self.head()
        found = self.files(new_head)
        if new_head != head and self.changes(found, staged, new_head):
            names = {file.name for file in staged.files}
            theirs = sorted(name for name in names if _content(files.get(name)) != _content(found.get(name)))
            if theirs:
                raise RequestError(
                    "somebody else changed the repository at the same moment",
                    place=f"{self.repo}: {', '.join(theirs[:3])}",
                    fix="look at what they changed, then run the command again",
                )
        return new_head, found

    def tag(self, name: str | None, commit: str) -> str:
        """Names a commit; done last, so that a tag means complete and verified.

        Args:
            name: None takes the first free one of v1, v2, …

        Raises:
            RunError: the tag names another commit.
        """
        for candidate in [name] if name else (f"v{number}" for number in range(1, MOST_TAGS)):
            found = self.commit_of(candidate)
            if found is None:
                self.tried("tagging", lambda tag=candidate: self._tag(tag, commit))  # type: ignore[misc]
                return candidate
            if found == commit:
                return candidate
        raise taken(self.repo, str(name))

    def _tag(self, name: str, commit: str) -> None:
        try:
            self.api.create_tag(self.repo, tag=name, revision=commit)
        except Exception as error:
            # After a lost answer the tag is there already.
            if not passing(error) or self.commit_of(name) != commit:
                raise

    # --- reading back ------------------------------------------------------------------------------------------------

    def fetch(self, staged: Staged, commit: str, folder: Path) -> Path:
        """Downloads a commit and compares every file with what was sent; the client itself checks lengths only.

        Returns:
            The folder with the files.

        Raises:
            RunError: the files are not the same, in several attempts.
        """
        names = [file.name for file in staged.files]
        wrong: list[str] = []
        for attempt in range(ATTEMPTS):
            target = folder / f"download-{attempt}"

            def load(target: Path = target) -> str:
                return str(
                    self.api.snapshot_download(self.repo, revision=commit, local_dir=target, allow_patterns=names)
                )

            self.tried("downloading the files again", load)
            wrong = [
                file.name
                for file in staged.files
                if not (target / file.name).is_file() or file_sha256(target / file.name) != file.sha256
            ]
            if not wrong:
                return target
            self.say(f"downloaded files differ ({', '.join(wrong)}); downloading again")
            self.sleep(2.0**attempt)
        raise RunError(
            "files came back from the Hub with another content than they were sent with",
            place=f"{self.repo}@{commit[:8]}: {', '.join(wrong)}",
            fix="the commit has no tag; run the same command again, and look at the network if it happens again",
        )

    def collect(self, title: str, repos: list[str], private: bool) -> str:
        """Puts repositories into the owner's collection of that title, which is made when there is none.

        Returns:
            The collection's name.
        """
        owner = self.repo.split("/")[0]

        def find() -> Collection:
            for one in self.api.list_collections(owner=owner):
                if one.title == title:
                    return one
            return self.api.create_collection(title, namespace=owner, private=private, exists_ok=True)

        slug = self.tried("making the collection", find).slug
        for repo in repos:
            self.tried(
                "filling the collection",
                lambda repo=repo: self.api.add_collection_item(slug, repo, "model", exists_ok=True),  # type: ignore[misc]
            )
        return slug


# --- comparing -------------------------------------------------------------------------------------------------------


def refuse_foreign(files: Mapping[str, RepoFile], repo: str) -> None:
    """Raises RequestError when the repository holds what hfadapt has not put there, such as another model."""
    foreign = sorted(name for name in files if not _is_ours(name) and name not in OWN_TO_THE_HUB)
    if foreign:
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        raise RequestError(
            "the repository holds files that hfadapt did not put there",
            place=repo,
            got=", ".join(foreign[:3]) + more,
            fix="publish to another --repo, or remove those files from it",
        )


def _is_ours(name: str) -> bool:
    last = name.rsplit("/", 1)[-1]
    written = (is_model_file(last, format, whole) for format in registry.names("formats") for whole in (False, True))
    beside = last in SIDECARS or last == MANIFEST or PICTURE.fullmatch(last) is not None
    return (beside or any(written)) and name.count("/") <= 1


def _folder(name: str) -> str:
    return name.rpartition("/")[0]


def _content(file: RepoFile | None) -> str | None:
    if file is None:
        return None
    return file.lfs.sha256 if file.lfs is not None else file.blob_id


# --- errors ----------------------------------------------------------------------------------------------------------


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what caused it; the client wraps some."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def status(error: BaseException) -> int | None:
    """The HTTP status behind an error, if the server answered at all."""
    for one in _chain(error):
        code = getattr(getattr(one, "response", None), "status_code", None)
        if isinstance(code, int):
            return code
    return None


def passing(error: BaseException) -> bool:
    """Whether the same request may succeed a moment later."""
    code = status(error)
    if code is not None:
        return code in PASSING
    if any(type(one).__name__ == "OfflineModeIsEnabled" for one in _chain(error)):
        return False
    return any(
        type(one).__module__.split(".")[0].startswith(("httpx", "httpcore"))
        or isinstance(one, (ConnectionError, TimeoutError))
        for one in _chain(error)
    )


def asked_wait(error: BaseException) -> float:
    """Seconds that the server asked to wait, or 0."""
    for one in _chain(error):
        headers = getattr(getattr(one, "response", None), "headers", None)
        with contextlib.suppress(TypeError, ValueError, AttributeError):
            return float(headers["Retry-After"]) if headers and "Retry-After" in headers else 0.0
    return 0.0


def reason(error: BaseException) -> str:
    """An error in a few words."""
    code = status(error)
    if code is not None:
        said = next((text for one in _chain(error) if (text := getattr(one, "server_message", None))), None)
        return f"the Hub answered {code}" + (f" ({' '.join(str(said).split())[:120]})" if said else "")
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}{': ' + text[:120] if text else ''}"


def explained(error: Exception, repo: str, doing: str) -> RunError:
    """An error of the client as one of ours, with what to do about it."""
    if isinstance(error, RunError):
        return error
    code = status(error)
    login = "log in with `hf auth login`, or set HF_TOKEN to a token that may write"
    said: dict[int | None, tuple[str, str]] = {
        400: ("the Hub refuses the content", "look at the answer; `hfadapt card check CELL` finds faulty metadata"),
        401: ("the Hub does not accept the token", login),
        403: (
            "the token may not write here",
            f"take a token with write permission for {repo.split('/')[0]}, or another --repo",
        ),
        404: ("the Hub does not know this repository", "check --repo USER/NAME, and that your token may see it"),
        409: ("the Hub is busy with this repository", "run the same command again; it compares first"),
        412: ("the repository changed at the same moment", "run the same command again; it compares first"),
        413: ("the Hub refuses files of this size", "publish with --to FOLDER and upload by hand"),
        429: ("the Hub asks for patience: too many requests", "run the same command again in some minutes"),
    }
    names = {type(one).__name__ for one in _chain(error)}
    if code in said:
        what, fix = said[code]
    elif code is not None and code >= 500:
        what, fix = "the Hub has a fault of its own", "run the same command again later; it sends nothing twice"
    elif "LocalTokenNotFoundError" in names:
        what, fix = "there is no token", login
    elif "OfflineModeIsEnabled" in names:
        what, fix = "the Hub's client is switched to offline", "unset HF_HUB_OFFLINE, or use --to FOLDER"
    elif passing(error):
        what, fix = "the Hub cannot be reached", "check the network and HF_ENDPOINT, then run the same command again"
    elif isinstance(error, ValueError):
        what, fix = "the Hub refuses the card's metadata", "hfadapt card check CELL"
    else:
        what, fix = "the Hub's client failed", "run the same command again; it sends nothing twice"
    return RunError(what, place=f"{repo} ({doing})", got=reason(error), fix=fix)


def taken(repo: str, tag: str) -> RequestError:
    """The error for a tag that names another commit."""
    return RequestError(
        "this tag names another commit already", place=f"{repo}@{tag}", fix="choose another --tag, or leave it out"
    )


def _counted(operations: Sequence[Any]) -> str:
    """How many files are changed, and how much is sent for it."""
    sent = sum(each.upload_info.size for each in operations if hasattr(each, "upload_info"))
    return f"{show_count(len(operations), 'changed file')}, {show_bytes(sent)},"


@contextlib.contextmanager
def plain_transfers() -> Iterator[None]:
    """Uploads and downloads over plain HTTP (git LFS), without progress bars.

    The Xet client sends through a service of its own; an adapter is too small to gain by it, and this way every
    request is one that the tests see. `HF_HUB_DISABLE_XET=0` in the environment keeps Xet.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    before, bars = constants.HF_HUB_DISABLE_XET, not are_progress_bars_disabled()
    if os.environ.get("HF_HUB_DISABLE_XET") is None:
        constants.HF_HUB_DISABLE_XET = True
    disable_progress_bars()
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_XET = before
        if bars:
            enable_progress_bars()
