"""A Hub on the loopback: as much of its API as huggingface_hub 2 needs to read and to upload."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

NO_RETRY = 403  # a status that the client does not try again


class FakeHub:
    """Serves folders as repositories; use as a context manager.

    Attributes:
        fetched: (file, first byte, end) of every answer to GET resolve, in order.
        requests: "METHOD path" of every request.
        refuse_after: answers to GET resolve after which all others are refused; None is never.
        faults: what becomes of the next answers to GET resolve, one after the other: "" is right,
            "503" a busy server, "drop" a connection that breaks amid the body, "short" a body that
            ends early though its header agrees with it.
        uploaded: files of commits by repository.
    """

    def __init__(self) -> None:
        self.fetched: list[tuple[str, int, int]] = []
        self.requests: list[str] = []
        self.refuse_after: int | None = None
        self.faults: Iterator[str] = iter(())
        self.uploaded: dict[str, dict[str, bytes]] = {}
        self._folders: dict[tuple[str, str], Path] = {}
        self._heads: dict[str, str] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = Thread(target=self._server.serve_forever, args=(0.01,))

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def add(self, repository: str, folder: Path) -> str:
        """A new commit of a repository, its head from now on; returns the sha."""
        sha = hashlib.sha1(f"{repository} {len(self._folders)}".encode()).hexdigest()
        self._folders[repository, sha] = folder
        self._heads[repository] = sha
        return sha

    def resolve(self, repository: str, revision: str) -> tuple[str, Path] | None:
        sha = self._heads.get(repository) if revision == "main" else revision
        folder = self._folders.get((repository, sha or ""))
        return (sha, folder) if folder else None

    def bytes_of(self, suffix: str) -> int:
        """Bytes answered of files whose names end so."""
        return sum(end - begin for name, begin, end in self.fetched if name.endswith(suffix))

    def __enter__(self) -> FakeHub:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _files(folder: Path) -> dict[str, Path]:
    return {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _oid(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 16  # an answer is one packet, for which nobody waits
        disable_nagle_algorithm = True

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self._route({"api/models": self._model_api, "resolve": self._file})

        def do_HEAD(self) -> None:
            self._route({"resolve": self._file})

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = (
                self._chunked() if "Transfer-Encoding" in self.headers else self.rfile.read(length)
            )
            hub.requests.append(f"POST {self.path}")
            path = unquote(urlsplit(self.path).path)
            if path == "/api/repos/create":
                name = json.loads(body)
                repository = f"{name.get('organization')}/{name['name']}"
                hub.uploaded.setdefault(repository, {})
                self._json({"url": f"{hub.endpoint}/{repository}", "id": repository})
            elif path == "/api/validate-yaml":
                self._json({"errors": [], "warnings": []})
            elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/.+", path):
                files = json.loads(body)["files"]
                self._json(
                    {
                        "files": [
                            {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                            for f in files
                        ]
                    }
                )
            elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/.+", path):
                for line in body.splitlines():
                    operation = json.loads(line)
                    if operation["key"] == "file":
                        file = operation["value"]
                        content = base64.b64decode(file["content"])
                        hub.uploaded[match[1]][file["path"]] = content
                url = f"{hub.endpoint}/{match[1]}/commit/{'c' * 40}"
                self._json({"commitUrl": url, "commitOid": "c" * 40, "success": True})
            elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/paths-info/(.+)", path):
                self._json([])
            else:
                self._error(404, "EntryNotFound")

        def _chunked(self) -> bytes:
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def _route(self, routes: dict) -> None:
            hub.requests.append(f"{self.command} {self.path}")
            path = unquote(urlsplit(self.path).path).strip("/")
            if match := re.fullmatch(
                r"api/models/([^/]+/[^/]+?)(?:/(revision|tree)/([^/]+)/?(.*))?", path
            ):
                routes["api/models"](match[1], match[2], match[3] or "main", match[4] or "")
            elif match := re.fullmatch(r"([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                routes["resolve"](match[1], match[2], match[3])
            else:
                self._error(404, "EntryNotFound")

        def _model_api(self, repository: str, what: str | None, revision: str, below: str) -> None:
            found = hub.resolve(repository, revision)
            if not found:
                known = hub.resolve(repository, "main")
                self._error(404, "RevisionNotFound" if known else "RepoNotFound")
                return
            sha, folder = found
            files = _files(folder)
            if what == "tree":
                recursive = "recursive=true" in self.path.lower()
                self._json(_tree(files, below, recursive))
                return
            siblings = [
                {"rfilename": name, "size": path.stat().st_size, "blobId": _oid(path)}
                for name, path in files.items()
            ]
            self._json(
                {"id": repository, "modelId": repository, "sha": sha, "siblings": siblings,
                 "private": False, "tags": [], "downloads": 0}
            )  # fmt: skip

        def _file(self, repository: str, revision: str, name: str) -> None:
            found = hub.resolve(repository, revision)
            path = found and found[1] / name
            if not found or not path.is_file():
                self._error(404, "EntryNotFound")
                return
            size = path.stat().st_size
            begin, end, status = 0, size, 200
            if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
                begin = int(match[1])
                end = min(size, int(match[2]) + 1) if match[2] else size
                status = 206
            if self.command == "GET":
                if hub.refuse_after is not None and len(hub.fetched) >= hub.refuse_after:
                    self._error(NO_RETRY, "Gone")
                    return
                fault = next(hub.faults, "")
                if fault == "503":
                    self._error(503, "Busy")
                    return
                if fault == "short":
                    end = (begin + end) // 2
                hub.fetched.append((name, begin, end))
            self.send_response(status)
            self.send_header("Content-Length", str(end - begin))
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{size}")
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("X-Repo-Commit", found[0])
            self.send_header("ETag", f'"{_oid(path)}"')
            self.end_headers()
            if self.command == "GET":
                with open(path, "rb") as file:
                    file.seek(begin)
                    if fault == "drop":
                        self.wfile.write(file.read((end - begin) // 2))
                        self.close_connection = True
                        return
                    self.wfile.write(file.read(end - begin))

        def _json(self, value: object) -> None:
            body = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _error(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

    return Handler


def _tree(files: dict[str, Path], below: str, recursive: bool) -> list[dict[str, object]]:
    prefix = f"{below}/" if below else ""
    entries: dict[str, dict[str, object]] = {}
    for name, path in files.items():
        if not name.startswith(prefix):
            continue
        first, _, deeper = name[len(prefix) :].partition("/")
        if deeper:
            folder = prefix + first
            entries[folder] = {"type": "directory", "path": folder, "oid": "d" * 40, "size": 0}
        if recursive or not deeper:
            entries[name] = {
                "type": "file",
                "path": name,
                "oid": _oid(path),
                "size": path.stat().st_size,
            }
    return list(entries.values())
