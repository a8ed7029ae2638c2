"""A Hub on the loopback: the file protocol that huggingface_hub's own client speaks.

Reading by ranges and by download, large files at another address, upload by preupload, LFS batch
and commit, branches, private repositories and tokens. Xet, which the client prefers where the
server offers it, is not among it: processes that upload set HF_HUB_DISABLE_XET=1.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from threading import Event, Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml
from support.hub_repositories import RefusedError, Repositories, Repository, is_large, oid_of

NO_RETRY = 403  # a status that the client does not try again
_ID = r"([^/]+/[^/]+?)"


class HubServer:
    """Serves folders as repositories, and takes uploads; use as a context manager.

    Attributes:
        fetched: (file, first byte, end) of every answer with bytes of a file, in order.
        stored: SHA-256 of every large file that was uploaded, in order.
        requests: "METHOD path" of every request.
        strangers: the header Authorization of every request to the address of large files.
        refuse_after: answers with bytes after which all others are refused; None is never.
        faults: what becomes of the next answers with bytes, one after the other: "" is right,
            "503" a busy server, "drop" a connection that breaks amid the body, "short" a body that
            ends early though its header agrees with it.
        hold_after: uploads of large files after which no other is answered; None is never.
        held: set when an upload is not answered.
    """

    def __init__(self) -> None:
        self.fetched: list[tuple[str, int, int]] = []
        self.stored: list[str] = []
        self.requests: list[str] = []
        self.strangers: list[str | None] = []
        self.refuse_after: int | None = None
        self.faults: Iterator[str] = iter(())
        self.hold_after: int | None = None
        self.held = Event()
        self._uploads = count()
        self.repositories = Repositories()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = Thread(target=self._server.serve_forever, args=(0.01,))
        self._closed = Event()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def large_files(self) -> str:
        """Another origin, to which no token must be sent."""
        return f"http://localhost:{self._server.server_port}"

    def add(self, name: str, folder: Path, *, branch: str = "main", private: bool = False) -> str:
        """A new commit of a repository, the head of a branch from now on; returns the sha."""
        repository = self.repositories.by_name.setdefault(name, Repository(name, private))
        return repository.commit(folder, branch)

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """Every file of a repository's revision."""
        found = self.repositories.by_name[name].files(revision)
        return {file: path.read_bytes() for file, path in found.items()}

    def bytes_of(self, suffix: str) -> int:
        """Bytes answered of files whose names end so."""
        return sum(end - begin for name, begin, end in self.fetched if name.endswith(suffix))

    def hold(self) -> bool:
        """Whether an upload is not answered: if so, only when the server is about to end."""
        if self.hold_after is None or next(self._uploads) < self.hold_after:
            return False
        self.held.set()
        self._closed.wait()
        return True

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self.repositories.close()


def _handler(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(_Handler):
        pass

    Handler.hub = hub
    return Handler


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # an answer is one packet, for which nobody waits
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        path = unquote(urlsplit(self.path).path)
        self.body = self._read_body()
        method = "GET" if self.command == "HEAD" else self.command
        try:
            for pattern, function in _ROUTES:
                if match := re.fullmatch(pattern, f"{method} {path}"):
                    function(self, *(part or "" for part in match.groups()))
                    return
            raise RefusedError(404, "EntryNotFound")
        except RefusedError as refused:
            self._send(
                refused.status,
                json.dumps({"error": refused.message} | refused.more).encode(),
                {"X-Error-Code": refused.code, "X-Error-Message": refused.message},
            )

    do_GET = do_HEAD = do_POST = do_PUT = _answer  # noqa: N815

    def _read_body(self) -> bytes:
        if "Transfer-Encoding" not in self.headers:
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _send(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _asked(self) -> dict[str, Any]:
        return json.loads(self.body)

    @property
    def _token(self) -> str | None:
        kind, _, token = self.headers.get("Authorization", "").partition(" ")
        return token if kind == "Bearer" else None

    def _repository(self, name: str, *, write: bool = False) -> Repository:
        self.hub.repositories.check(self._token, write=write)
        return self.hub.repositories.get(name, self._token)

    # Reading

    def model(self, name: str, revision: str) -> None:
        repository = self._repository(name)
        files = repository.files(revision or "main")
        card = files.get("README.md")
        siblings = [_described(file, path) | {"rfilename": file} for file, path in files.items()]
        self._json(
            {"id": name, "modelId": name, "sha": repository.sha_of(revision or "main"),
             "private": repository.private, "siblings": siblings, "tags": [], "downloads": 0,
             "cardData": _card_data(card.read_text("utf-8")) if card else {}}
        )  # fmt: skip

    def tree(self, name: str, revision: str, below: str) -> None:
        recursive = "recursive=true" in self.path.lower()
        self._json(_tree(self._repository(name).files(revision), below, recursive))

    def paths_info(self, name: str, revision: str) -> None:
        if "json" in self.headers.get("Content-Type", ""):
            asked = self._asked()["paths"]
        else:
            asked = parse_qs(self.body.decode()).get("paths", [])
        files = self._repository(name).files(revision)
        self._json([_described(file, files[file]) for file in asked if file in files])

    def refs(self, name: str) -> None:
        branches = [
            {"name": branch, "ref": f"refs/heads/{branch}", "targetCommit": sha}
            for branch, sha in self._repository(name).branches.items()
        ]
        self._json({"branches": branches, "tags": [], "converts": []})

    def file(self, name: str, revision: str, file: str) -> None:
        repository = self._repository(name)
        sha, path = repository.sha_of(revision), repository.files(revision).get(file)
        if path is None:
            raise RefusedError(404, "EntryNotFound")
        headers = {"X-Repo-Commit": sha}
        if not is_large(file):
            self._bytes(file, path, headers | {"ETag": f'"{oid_of(file, path.read_bytes())}"'})
            return
        oid = oid_of(file, path.read_bytes())
        headers |= {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(path.stat().st_size)}
        place = f"{self.hub.large_files}/large/{name}/{sha}/{file}"
        self._send(302, b"", headers | {"Location": place})

    def large_file(self, name: str, sha: str, file: str) -> None:
        self.hub.strangers.append(self.headers.get("Authorization"))
        self._bytes(file, self.hub.repositories.by_name[name].files(sha)[file], {})

    def _bytes(self, name: str, path: Path, headers: dict[str, str]) -> None:
        hub, size = self.hub, path.stat().st_size
        begin, end, status = 0, size, 200
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            begin = int(match[1])
            end = min(size, int(match[2]) + 1) if match[2] else size
            status = 206
        fault = ""
        if self.command == "GET":
            if hub.refuse_after is not None and len(hub.fetched) >= hub.refuse_after:
                raise RefusedError(NO_RETRY, "Gone")
            fault = next(hub.faults, "")
            if fault == "503":
                raise RefusedError(503, "Busy")
            if fault == "short":
                end = (begin + end) // 2
            hub.fetched.append((name, begin, end))
        data = path.read_bytes()[begin:end]
        headers |= {
            "Content-Length": str(len(data)),
            "Content-Range": f"bytes {begin}-{end - 1}/{size}",
            "Accept-Ranges": "bytes",
        }
        if fault == "drop":
            data = data[: len(data) // 2]
            self.close_connection = True
        self._send(status, data, headers)

    # Uploading

    def create(self) -> None:
        asked = self._asked()
        self.hub.repositories.check(self._token, write=True)
        name = f"{asked.get('organization')}/{asked['name']}"
        private = asked.get("private") or asked.get("visibility") == "private"
        told = {"url": f"{self.hub.endpoint}/{name}", "id": name, "name": name}
        try:
            self.hub.repositories.create(name, bool(private))
        except RefusedError as refused:
            refused.more = told
            raise
        self._json(told)

    def create_branch(self, name: str, branch: str) -> None:
        repository = self._repository(name, write=True)
        asked = self._asked() if self.body else {}
        start = repository.sha_of(asked.get("startingPoint") or "main")
        repository.branches[branch] = start
        self._json({})

    def validate_yaml(self) -> None:
        try:
            _card_data(self._asked()["content"])
        except yaml.YAMLError as error:
            errors = [{"message": f"Invalid metadata: {str(error).splitlines()[0]}"}]
            self._send(400, json.dumps({"errors": errors, "warnings": []}).encode())
            return
        self._json({"errors": [], "warnings": []})

    def preupload(self, name: str, revision: str) -> None:
        there = self._repository(name, write=True).files(revision)
        self._json({"files": [
            {"path": file, "uploadMode": "lfs" if is_large(file) else "regular",
             "shouldIgnore": False,
             "oid": oid_of(file, there[file].read_bytes()) if file in there else None}
            for file in (asked["path"] for asked in self._asked()["files"])
        ]})  # fmt: skip

    def lfs_batch(self, name: str) -> None:
        self._repository(name, write=True)
        objects = []
        for asked in self._asked()["objects"]:
            place = f"{self.hub.large_files}/store/{asked['oid']}"
            there = (self.hub.repositories.objects / asked["oid"]).exists()
            actions = {} if there else {"actions": {"upload": {"href": place}}}
            objects.append(asked | actions)
        self._json({"transfer": "basic", "objects": objects})

    def store(self, oid: str) -> None:
        hub = self.hub
        hub.strangers.append(self.headers.get("Authorization"))
        if hub.hold():
            self.close_connection = True
            return
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise RefusedError(400, "", "The content has another SHA-256")
        hub.repositories.store(self.body)
        hub.stored.append(oid)
        self._send(200)

    def commit(self, name: str, branch: str) -> None:
        repository = self._repository(name, write=True)
        operations = [json.loads(line) for line in self.body.splitlines()]
        sha = self.hub.repositories.apply(repository, branch, operations)
        url = f"{self.hub.endpoint}/{name}/commit/{sha}"
        self._json({"commitUrl": url, "commitOid": sha, "success": True})


_ROUTES: list[tuple[str, Callable[..., None]]] = [
    (rf"GET /api/models/{_ID}/tree/([^/]+)/?(.*)", _Handler.tree),
    (rf"GET /api/models/{_ID}/refs", _Handler.refs),
    (rf"GET /api/models/{_ID}(?:/revision/([^/]+))?", _Handler.model),
    (rf"POST /api/models/{_ID}/paths-info/(.+)", _Handler.paths_info),
    (rf"GET /{_ID}/resolve/([^/]+)/(.+)", _Handler.file),
    (r"GET /large/([^/]+/[^/]+)/([^/]+)/(.+)", _Handler.large_file),
    (r"POST /api/repos/create", _Handler.create),
    (rf"POST /api/models/{_ID}/branch/(.+)", _Handler.create_branch),
    (r"POST /api/validate-yaml", _Handler.validate_yaml),
    (rf"POST /api/models/{_ID}/preupload/(.+)", _Handler.preupload),
    (rf"POST /{_ID}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    (r"PUT /store/([0-9a-f]{64})", _Handler.store),
    (rf"POST /api/models/{_ID}/commit/(.+)", _Handler.commit),
]


def _card_data(card: str) -> dict[str, Any]:
    """The metadata at the head of README.md. Raises yaml.YAMLError where it is not YAML."""
    head = re.match(r"---\s*\n(.*?)\n---\s*\n", card, re.S)
    return yaml.safe_load(head[1]) if head else {}


def _described(name: str, path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    found = {"type": "file", "path": name, "oid": oid_of(name, data), "size": len(data)}
    if is_large(name):
        lfs = {"oid": found["oid"], "sha256": found["oid"], "size": len(data), "pointerSize": 134}
        found["lfs"] = lfs
    return found


def _tree(files: dict[str, Path], below: str, recursive: bool) -> list[dict[str, Any]]:
    prefix = f"{below}/" if below else ""
    entries: dict[str, dict[str, Any]] = {}
    for name, path in files.items():
        if not name.startswith(prefix):
            continue
        first, _, deeper = name[len(prefix) :].partition("/")
        if deeper:
            folder = prefix + first
            entries[folder] = {"type": "directory", "path": folder, "oid": "d" * 40, "size": 0}
        if recursive or not deeper:
            entries[name] = _described(name, path)
    return list(entries.values())
