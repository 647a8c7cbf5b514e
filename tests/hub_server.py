"""A small Hub on this machine for the real client: repositories, commits, LFS, tags, downloads, collections, faults.

It keeps what was committed, in what order, and every request, so that a test can say what did and did not happen.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

USER = "somebody"
TOKEN = "hf_" + "t" * 24
PAGE = 6
LFS_ENDINGS = (".safetensors", ".bin")


@dataclass
class Fault:
    """Something that goes wrong.

    Args:
        request: Regular expression for `METHOD /path`.
        status: Answer with this instead of doing anything.
        how: `refuse` before anything is done; `lost`: done, but the connection ends before the answer; `down`: the
            connection ends before anything is done; `cut`: half of the body arrives; `corrupt`: a body of the right
            length with other bytes.
        times: How often.
        first: Called before, for what somebody else does in the meantime.
    """

    request: str
    status: int = 0
    how: str = "refuse"
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)
    message: str = "a fault made by the test"
    first: Callable[[], None] | None = None


@dataclass
class Commit:
    oid: str
    message: str
    files: dict[str, bytes]
    parent: str | None


@dataclass
class Repo:
    private: bool
    commits: list[Commit]
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def head(self) -> Commit:
        return self.commits[-1]

    def at(self, revision: str) -> Commit | None:
        oid = self.tags.get(revision, revision)
        return self.head if revision == "main" else next((one for one in self.commits if one.oid == oid), None)


def is_lfs(path: str) -> bool:
    return path.endswith(LFS_ENDINGS)


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Hub:
    """The state of the server."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.storage: dict[str, bytes] = {}
        self.collections: dict[str, dict[str, Any]] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.lock = threading.RLock()
        self.git_names = True
        self.endpoint = ""

    def make(self, repo: str, private: bool = False) -> Repo:
        self.repos[repo] = Repo(private, [])
        self.commit(repo, {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
        return self.repos[repo]

    def commit(self, repo: str, files: dict[str, bytes | None], message: str = "by hand") -> str:
        """Adds files to the head, or deletes those that are None."""
        there = self.repos[repo]
        before = there.commits[-1] if there.commits else None
        content = dict(before.files) if before else {}
        for name, data in files.items():
            if data is None:
                content.pop(name, None)
            else:
                content[name] = data
        oid = hashlib.sha1(f"{repo}{len(there.commits)}{sorted(content)}{message}".encode()).hexdigest()
        there.commits.append(Commit(oid, message, content, before.oid if before else None))
        return oid

    def made(self, repo: str) -> list[Commit]:
        """Commits after the initial one."""
        return self.repos[repo].commits[1:] if repo in self.repos else []

    def count(self, pattern: str) -> int:
        return sum(bool(re.search(pattern, request)) for request in self.requests)

    def fault_for(self, request: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times and re.search(fault.request, request):
                    fault.times -= 1
                    return fault
        return None


class Answer(Exception):
    """Ends the handling of a request."""

    def __init__(self, status: int, body: Any = None, headers: dict[str, str] | None = None) -> None:
        self.status, self.body, self.headers = status, body, headers or {}


def not_found(code: str) -> Answer:
    return Answer(404, {"error": code}, {"X-Error-Code": code})


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every answer waits 40 ms for the client's acknowledgement
    hub: Hub

    def log_message(self, *arguments: Any) -> None:
        pass

    def do(self) -> None:
        parts = urlsplit(self.path)
        path, query = unquote(parts.path), parse_qs(parts.query)
        body = self._body()
        request = f"{self.command} {path}"
        fault = self.hub.fault_for(request)
        with self.hub.lock:
            self.hub.requests.append(request)
            if fault and fault.first:
                fault.first()
            if fault and fault.how == "down":
                return self._hang_up()
            if fault and fault.status:
                answer = Answer(fault.status, {"error": fault.message}, fault.headers)
            else:
                try:
                    self._route(path, query, body)
                    answer = not_found("EntryNotFound")
                except Answer as given:
                    answer = given
        if fault and fault.how == "lost":
            return self._hang_up()
        self._send(answer, fault.how if fault else "")

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = do

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(2)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            chunks = []
            while size := int(self.rfile.readline().strip() or b"0", 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send(self, answer: Answer, how: str) -> None:
        raw = isinstance(answer.body, bytes)
        content = answer.body if raw else json.dumps(answer.body if answer.body is not None else {}).encode()
        self.send_response(answer.status)
        headers = {"Content-Type": "application/octet-stream" if raw else "application/json", **answer.headers}
        if how == "corrupt":
            content = bytes(byte ^ 0x55 for byte in content)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if how == "cut":
            self.wfile.write(content[: len(content) // 2])
            return self._hang_up()
        self.wfile.write(content)

    # --- routes ------------------------------------------------------------------------------------------------------

    def _route(self, path: str, query: dict[str, list[str]], body: bytes) -> None:
        if match := re.fullmatch(r"/storage/(\w+)", path):
            assert "Authorization" not in self.headers, "the token was sent to the storage"
            assert hashlib.sha256(body).hexdigest() == match[1]
            self.hub.storage[match[1]] = body
            raise Answer(200)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise Answer(401, {"error": "Invalid credentials in Authorization header"})
        data = json.loads(body) if body and "ndjson" not in self.headers.get("Content-Type", "") else {}
        if path == "/api/whoami-v2":
            raise Answer(200, {"type": "user", "name": USER, "orgs": [], "auth": {"type": "access_token"}})
        if path == "/api/validate-yaml":
            good = data["content"].startswith("---\n")
            errors = [] if good else [{"message": "no metadata"}]
            raise Answer(200 if good else 400, {"errors": errors, "warnings": []})
        if path == "/api/repos/create":
            self._create(data)
        if path.startswith("/api/collections"):
            self._collections(path, query, data)
        if match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            self._batch(data)
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(self._repo(match[1]), match[2], match[3])
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(.*))?", path):
            self._model(match[1], match[2] or "", query, data, body)

    def _repo(self, name: str) -> Repo:
        if name not in self.hub.repos:
            raise not_found("RepoNotFound")
        return self.hub.repos[name]

    def _create(self, data: dict[str, Any]) -> None:
        owner = data.get("organization") or USER
        name = f"{owner}/{data['name']}"
        url = {"url": f"{self.hub.endpoint}/{name}", "name": name}
        if owner != USER:
            raise Answer(403, {"error": f"You don't have the rights to create a model under the namespace {owner}"})
        if name in self.hub.repos:
            raise Answer(409, {"error": "You already created this model repo", **url})
        self.hub.make(name, data.get("visibility") == "private")
        raise Answer(200, url)

    def _model(self, name: str, rest: str, query: dict[str, list[str]], data: dict[str, Any], body: bytes) -> None:
        repo = self._repo(name)
        verb, _, revision = rest.partition("/")
        if verb in ("", "revision"):
            self._info(name, repo, revision or "main")
        if verb == "tree":
            self._tree(name, repo, revision, int(query.get("cursor", ["0"])[0]))
        if not name.startswith(f"{USER}/"):
            raise Answer(403, {"error": "You have read access but not the required permissions"})
        if verb == "preupload":
            raise Answer(200, {"files": [self._mode(repo, each) for each in data["files"]]})
        if verb == "commit":
            self._commit(name, repo, [json.loads(line) for line in body.splitlines()])
        if verb == "tag":
            if data["tag"] in repo.tags:
                raise Answer(409, {"error": f"Reference already exists: {data['tag']}"})
            repo.tags[data["tag"]] = self._at(repo, revision).oid
            raise Answer(200)

    def _at(self, repo: Repo, revision: str) -> Commit:
        found = repo.at(revision)
        if found is None:
            raise not_found("RevisionNotFound")
        return found

    def _info(self, name: str, repo: Repo, revision: str) -> None:
        commit = self._at(repo, revision)
        files = [{"rfilename": path} for path in sorted(commit.files)]
        about = {"id": name, "_id": "0", "sha": commit.oid, "private": repo.private, "siblings": files}
        raise Answer(200, {**about, "tags": [], "downloads": 0})

    def _tree(self, name: str, repo: Repo, revision: str, start: int) -> None:
        commit = self._at(repo, revision)
        entries: list[dict[str, Any]] = []
        for folder in sorted({path.rpartition("/")[0] for path in commit.files} - {""}):
            entries.append({"type": "directory", "path": folder, "size": 0, "oid": git_oid(folder.encode())})
        for path, content in sorted(commit.files.items()):
            oid = git_oid(content) if self.hub.git_names else "0" * 40
            entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": oid}
            if is_lfs(path):
                sha = hashlib.sha256(content).hexdigest()
                entry |= {"lfs": {"oid": sha, "size": len(content), "pointerSize": 130}, "oid": git_oid(sha.encode())}
            entries.append(entry)
        headers = {}
        if len(entries) > start + PAGE:
            following = f"{self.hub.endpoint}/api/models/{name}/tree/{revision}?recursive=true&cursor={start + PAGE}"
            headers["Link"] = f'<{following}>; rel="next"'
        raise Answer(200, entries[start : start + PAGE], headers)

    def _mode(self, repo: Repo, file: dict[str, Any]) -> dict[str, Any]:
        there = repo.head.files.get(file["path"])
        mode = "lfs" if is_lfs(file["path"]) else "regular"
        found: dict[str, Any] = {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
        if there is not None:
            found["oid"] = hashlib.sha256(there).hexdigest() if mode == "lfs" else git_oid(there)
        return found

    def _batch(self, data: dict[str, Any]) -> None:
        objects = []
        for each in data["objects"]:
            found = dict(each)
            if each["oid"] not in self.hub.storage:
                found["actions"] = {"upload": {"href": f"{self.hub.endpoint}/storage/{each['oid']}"}}
            objects.append(found)
        raise Answer(200, {"transfer": "basic", "objects": objects})

    def _commit(self, name: str, repo: Repo, lines: list[dict[str, Any]]) -> None:
        header = lines[0]["value"]
        if header.get("parentCommit") not in (None, repo.head.oid):
            raise Answer(412, {"error": "A commit has happened since. Please refresh and try again."})
        files: dict[str, bytes | None] = {}
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.storage:
                    raise Answer(400, {"error": "the object was never uploaded"})
                files[value["path"]] = self.hub.storage[value["oid"]]
            elif line["key"] == "deletedFile":
                files[value["path"]] = None
        oid = self.hub.commit(name, files, header["summary"])
        raise Answer(200, {"commitOid": oid, "commitUrl": f"{self.hub.endpoint}/{name}/commit/{oid}", "success": True})

    def _resolve(self, repo: Repo, revision: str, path: str) -> None:
        commit = self._at(repo, revision)
        if path not in commit.files:
            raise not_found("EntryNotFound")
        content = commit.files[path]
        etag = hashlib.sha256(content).hexdigest() if is_lfs(path) else git_oid(content)
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        if is_lfs(path):
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(content))}
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            first = int(match[1])
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
            raise Answer(206, content[first:], headers)
        raise Answer(200, content, headers)

    def _collections(self, path: str, query: dict[str, list[str]], data: dict[str, Any]) -> None:
        every = self.hub.collections
        slug = path.removeprefix("/api/collections").strip("/")
        if not slug and self.command == "GET":
            mine = [one for one in every.values() if one["owner"]["name"] == query["owner"][0]]
            raise Answer(200, [{key: value for key, value in one.items() if key != "position"} for one in mine])
        if not slug:
            slug = f"{data['namespace']}/{data['title'].lower()}-{len(every):024d}"
            every[slug] = {
                "slug": slug, "title": data["title"], "owner": {"name": data["namespace"]}, "items": [],
                "lastUpdated": "2026-01-01T00:00:00.000Z", "position": 0, "private": data["private"], "theme": "blue",
                "upvotes": 0,
            }  # fmt: skip
            raise Answer(200, every[slug])
        slug = slug.removesuffix("/items")
        if slug not in every:
            raise Answer(404, {"error": "Collection not found"})
        if path.endswith("/items"):
            items, name = every[slug]["items"], data["item"]["id"]
            if any(item["id"] == name for item in items):
                raise Answer(409, {"error": "Already in collection"})
            items.append({"_id": str(len(items)), "id": name, "type": data["item"]["type"], "position": len(items)})
        raise Answer(200, every[slug])


@contextmanager
def hub_server() -> Iterator[Hub]:
    """A running server on a free port of this machine."""
    hub = Hub()
    handler = type("BoundHandler", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
