"""A small Hub on loopback, for tests that run the real clients (huggingface_hub, datasets, transformers, timm).

    with HubServer() as hub:
        hub.add_repository("dataset", "me/photos", {"train.parquet": data})
        hub.faults.append(Fault("PUT /objects/", status=503))
        ...  # clients with HF_ENDPOINT=hub.url, HF_HUB_DISABLE_XET=1

It keeps everything in memory and speaks the part of the Hub's HTTP interface that these clients use. Whoever has the
token may write anywhere; without it, private repositories do not exist and files of gated ones are refused.
"""

import base64
import hashlib
import json
import os
import re
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_token_of_the_tests"


def is_large(path: str) -> bool:
    """Whether the Hub keeps a file outside git."""
    return path.endswith((".parquet", ".safetensors", ".bin", ".png"))


@dataclass(frozen=True)
class StoredFile:
    """A file of a commit."""

    content: bytes
    large: bool

    @property
    def oid(self) -> str:
        """What clients compare with their own file: sha256 of a large file, git's hash of any other."""
        if self.large:
            return hashlib.sha256(self.content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()


@dataclass
class Repository:
    """Files of each commit by its id, messages of the commits in their order, branches and tags by name."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, StoredFile]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.commit("main", "initial commit", {})

    def find(self, revision: str) -> str:
        """The commit that a branch, tag or id names."""
        found = self.branches.get(revision) or self.tags.get(revision) or revision
        if found not in self.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found

    def files(self, revision: str = "main") -> dict[str, StoredFile]:
        return self.commits[self.find(revision)]

    def commit(self, branch: str, message: str, files: dict[str, StoredFile]) -> str:
        oid = os.urandom(20).hex()
        self.commits[oid] = files
        self.messages.append(message)
        self.branches[branch] = oid
        return oid

    def add(self, files: dict[str, bytes]) -> str:
        """A commit on `main` of exactly these files; its id."""
        return self.commit("main", "add files", {path: StoredFile(files[path], is_large(path)) for path in files})


class HubError(Exception):
    """An answer that is an error: status, message, the code by which clients tell errors apart, further headers."""

    def __init__(self, status: int, message: str, code: str = "", headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, {"X-Error-Code": code, "X-Error-Message": message, **(headers or {})}


@dataclass
class Fault:
    """What goes wrong with the next `times` requests whose "METHOD /path" contains `pattern`, a regular expression."""

    pattern: str
    status: int | None = None  # answered instead of the real answer
    drop_after: int | None = None  # bytes of the real answer after which the connection is closed
    hold: threading.Event | None = None  # the request waits for it and is then dropped unanswered
    then: Callable[[], Any] | None = None  # called when the request was answered
    times: int = 1
    reached: threading.Event = field(default_factory=threading.Event)  # a request met the fault


class HubServer:
    """The server and everything that it stores."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.objects: dict[str, bytes] = {}  # contents of large files by sha256, in a commit or not yet
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.served: Counter[str] = Counter()  # bytes of the answers, by path
        self.lock = threading.RLock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (RequestHandler,), {"hub": self}))
        self._server.daemon_threads = False  # closing the server waits for the requests
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "HubServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def add_repository(self, kind: str, name: str, files: dict[str, bytes], **options: bool) -> Repository:
        """Stores a repository; `kind` is `dataset` or `model`, options are `private` and `gated`."""
        repository = self.repositories[f"{kind}s", name] = Repository(**options)
        repository.add(files)
        return repository

    def seen(self, pattern: str) -> list[str]:
        """The requests so far, as "METHOD /path", that contain a pattern."""
        return [request for request in self.requests if re.search(pattern, request)]

    def forget(self) -> None:
        """Begins a new record of requests and bytes."""
        self.requests.clear()
        self.served.clear()

    def take_fault(self, request: str) -> Fault:
        """The fault that a request meets; one that does nothing if it meets none."""
        fault = next((fault for fault in self.faults if fault.times and re.search(fault.pattern, request)), Fault(""))
        fault.times -= 1
        fault.reached.set()
        return fault


@dataclass(frozen=True)
class Answer:
    """An HTTP response; what is not bytes is sent as JSON."""

    content: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


class RequestHandler(BaseHTTPRequestHandler):
    """One request: finds the function for its path in ROUTES, and sends what it answers."""

    hub: HubServer
    log_message = lambda *_: None

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        self.query = {key: values[0] for key, values in parse_qs(url.query).items()}
        request = f"{self.command} {unquote(url.path)}"
        with self.hub.lock:
            self.hub.requests.append(request)
            fault = self.hub.take_fault(request)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if fault.hold:
            fault.hold.wait()
            return
        with self.hub.lock:
            try:
                answer = self._find_answer(url.path, fault)
            except HubError as error:
                answer = Answer({"error": str(error)}, error.status, error.headers)
        body = answer.content if isinstance(answer.content, bytes) else json.dumps(answer.content).encode()
        self.send_response(answer.status)
        for name, value in {**answer.headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            sent = self.wfile.write(body[: fault.drop_after])
            with self.hub.lock:
                self.hub.served[unquote(url.path)] += sent
        if fault.then:
            fault.then()

    do_HEAD = do_POST = do_PUT = do_GET

    def _find_answer(self, path: str, fault: Fault) -> Answer:
        if fault.status:
            raise HubError(fault.status, "injected by the test")
        for methods, pattern, function in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in methods.split():
                parts = {name: unquote(value) for name, value in match.groupdict().items() if value is not None}
                return function(self, **parts)
        raise HubError(404, f"no such address: {self.command} {path}")

    def repository(self, kind: str, name: str) -> Repository:
        found = self.hub.repositories.get((kind.rstrip("/"), name))
        authorised = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if found is None or (found.private and not authorised):
            raise HubError(404 if authorised else 401, "Repository not found", "RepoNotFound")
        if self.command in ("POST", "PUT"):
            self.check_token()
        return found

    def check_token(self, code: str = "") -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise HubError(401, "Invalid credentials in Authorization header", code)

    def create_repository(self) -> Answer:
        asked = json.loads(self.body)
        kind, name = f"{asked.get('type', 'model')}s", f"{asked.get('organization') or 'me'}/{asked['name']}"
        self.check_token()
        described = {"url": f"{self.hub.url}/{kind}/{name}".replace("/models/", "/"), "id": name, "name": name}
        if (kind, name) in self.hub.repositories:
            return Answer(described, status=409)
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        self.hub.repositories[kind, name] = Repository(private)
        return Answer(described)

    def repository_info(self, kind: str, name: str, revision: str = "main") -> Answer:
        repository, siblings = self.repository(kind, name), []
        for path, file in repository.files(revision).items():
            large = {"sha256": file.oid, "size": len(file.content), "pointerSize": 134}
            named = {"rfilename": path, "size": len(file.content), "blobId": file.oid}
            siblings.append({**named, **({"lfs": large} if file.large else {})})
        state = {"private": repository.private, "gated": "auto" if repository.gated else False, "tags": []}
        return Answer({"id": name, "sha": repository.find(revision), "siblings": siblings, **state})

    def list_files(self, kind: str, name: str, revision: str, folder: str = "") -> Answer:
        files = self.repository(kind, name).files(revision)
        prefix = f"{folder}/" if folder else ""
        inside = {path: file for path, file in files.items() if path.startswith(prefix)}
        if folder and not inside:
            raise HubError(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        recursive = self.query.get("recursive", "").lower() in ("1", "true")
        entries: dict[str, dict[str, Any]] = {}
        for path, file in sorted(inside.items()):
            slashes = [at for at in range(len(prefix), len(path)) if path[at] == "/"]
            for at in slashes if recursive else slashes[:1]:
                entries[path[:at]] = {"type": "directory", "path": path[:at], "oid": "", "size": 0}
            if recursive or not slashes:
                entries[path] = {"type": "file", "path": path, "oid": file.oid, "size": len(file.content)}
                if file.large:
                    entries[path]["lfs"] = {"oid": file.oid, "size": len(file.content), "pointerSize": 134}
        return Answer(list(entries.values()))

    def upload_modes(self, kind: str, name: str, revision: str) -> Answer:
        files = self.repository(kind, name).files(revision)
        answers = []
        for path in (asked["path"] for asked in json.loads(self.body)["files"]):
            mode, oid = "lfs" if is_large(path) else "regular", files[path].oid if path in files else None
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return Answer({"files": answers})

    def upload_addresses(self, name: str, kind: str = "models") -> Answer:
        self.repository(kind, name)
        answers = [{"oid": asked["oid"], "size": asked["size"]} for asked in json.loads(self.body)["objects"]]
        for answer in answers:
            if answer["oid"] not in self.hub.objects:
                answer["actions"] = {"upload": {"href": f"{self.hub.url}/objects/{answer['oid']}"}}
        return Answer({"transfer": "basic", "objects": answers})

    def store_object(self, oid: str) -> Answer:
        if hashlib.sha256(self.body).hexdigest() != oid:  # as of a client that was killed meanwhile
            return Answer({}, 400)
        self.hub.objects[oid] = self.body
        return Answer({})

    def make_commit(self, kind: str, name: str, revision: str) -> Answer:
        repository = self.repository(kind, name)
        header, *operations = [json.loads(line) for line in self.body.splitlines()]
        if header["value"].get("parentCommit") not in (None, repository.find(revision)):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repository.files(revision))
        for key, value in ((operation["key"], operation["value"]) for operation in operations):
            if key == "deletedFile":
                del files[value["path"]]
            elif key == "lfsFile":
                files[value["path"]] = StoredFile(self.hub.objects[value["oid"]], large=True)
            else:
                files[value["path"]] = StoredFile(base64.b64decode(value["content"]), large=False)
        oid = repository.commit(revision, header["value"]["summary"], files)
        return Answer({"commitOid": oid, "commitUrl": f"{self.hub.url}/{kind}/{name}/commit/{oid}"})

    def list_references(self, kind: str, name: str) -> Answer:
        repository = self.repository(kind, name)
        listed = {
            what: [{"name": key, "ref": key, "targetCommit": oid} for key, oid in references.items()]
            for what, references in (("branches", repository.branches), ("tags", repository.tags))
        }
        return Answer({**listed, "converts": []})

    def create_reference(self, kind: str, name: str, what: str, revision: str) -> Answer:
        repository, asked = self.repository(kind, name), json.loads(self.body)
        references, new, to = repository.branches, revision, asked.get("startingPoint", "main")
        if what == "tag":
            references, new, to = repository.tags, asked["tag"], revision
        if " " in new:
            raise HubError(400, f"Invalid reference name: {new}")
        if new in references:
            raise HubError(409, f"Reference already exists: {new}")
        references[new] = repository.find(to)
        return Answer({})

    def download(self, name: str, revision: str, path: str, kind: str = "models") -> Answer:
        repository = self.repository(kind, name)
        if repository.gated:
            self.check_token("GatedRepo")
        file = repository.files(revision).get(path)
        commit = {"X-Repo-Commit": repository.find(revision)}
        if file is None:
            raise HubError(404, f"{path} does not exist", "EntryNotFound", commit)
        headers = {**commit, "ETag": f'"{file.oid}"', "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked is None:
            return Answer(file.content, headers=headers)
        start, size = int(asked[1]), len(file.content)
        if start >= size:
            raise HubError(416, f"{path} ends at byte {size}")
        content = file.content[start : int(asked[2]) + 1 if asked[2] else size]
        headers["Content-Range"] = f"bytes {start}-{start + len(content) - 1}/{size}"
        return Answer(content, 206, headers)


NAME, REVISION = r"(?P<name>[\w.-]+/[\w.-]+)", r"(?P<revision>[^/]+)"
API, PAGE = rf"/api/(?P<kind>models|datasets)/{NAME}", rf"/(?P<kind>datasets/)?{NAME}"
ROUTES: list[tuple[str, str, Callable[..., Answer]]] = [
    ("POST", "/api/validate-yaml", lambda request: Answer({"errors": [], "warnings": []})),
    ("POST", "/api/repos/create", RequestHandler.create_repository),
    ("GET", rf"{API}(/revision/{REVISION})?", RequestHandler.repository_info),
    ("GET", rf"{API}/tree/{REVISION}(/(?P<folder>.*))?", RequestHandler.list_files),
    ("POST", rf"{API}/preupload/{REVISION}", RequestHandler.upload_modes),
    ("POST", rf"{PAGE}\.git/info/lfs/objects/batch", RequestHandler.upload_addresses),
    ("PUT", r"/objects/(?P<oid>\w{64})", RequestHandler.store_object),
    ("POST", rf"{API}/commit/{REVISION}", RequestHandler.make_commit),
    ("GET", rf"{API}/refs", RequestHandler.list_references),
    ("POST", rf"{API}/(?P<what>branch|tag)/{REVISION}", RequestHandler.create_reference),
    ("GET HEAD", rf"{PAGE}/resolve/{REVISION}/(?P<path>.+)", RequestHandler.download),
]
