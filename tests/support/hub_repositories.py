"""Repositories as the Hub keeps them: commits, branches, large files, and who may see which."""

from __future__ import annotations

import base64
import hashlib
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LARGE = (".safetensors", ".bin", ".gguf")  # as the .gitattributes that the Hub makes has them


class RefusedError(Exception):
    """An answer that is no success: its status, and what huggingface_hub reads of it.

    code, message: headers. more: of the body.
    """

    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.more: dict[str, str] = {}


def is_large(name: str) -> bool:
    """Whether the Hub keeps a file outside git, by its SHA-256."""
    return name.endswith(LARGE)


def oid_of(name: str, data: bytes) -> str:
    """What names a file's content: SHA-256 of a large one, git's SHA-1 of another."""
    if is_large(name):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Repository:
    """commits: by sha, a folder that is served as it stands, or a table of files."""

    name: str
    private: bool = False
    commits: dict[str, Path | dict[str, Path]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def sha_of(self, revision: str) -> str:
        """The commit of a branch or commit. Raises RefusedError where there is none."""
        sha = self.branches.get(revision, revision)
        if sha not in self.commits:
            raise RefusedError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha

    def files(self, revision: str = "main") -> dict[str, Path]:
        """Where the content of each file of a revision lies, by its name."""
        commit = self.commits[self.sha_of(revision)]
        if isinstance(commit, dict):
            return commit
        found = (path for path in sorted(commit.rglob("*")) if path.is_file())
        return {path.relative_to(commit).as_posix(): path for path in found}

    def commit(self, files: Path | dict[str, Path], branch: str = "main") -> str:
        """A new commit, the head of a branch from now on; returns its sha."""
        seed = f"{self.name} {branch} {len(self.commits)}"
        sha = hashlib.sha1(seed.encode()).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        return sha


class Repositories:
    """All of them, the large files that were uploaded, and the tokens.

    tokens: "read" or "write" by token. A private repository is there for those alone who have one;
    only a token that may write changes anything. Without any tokens, everyone may do everything.
    """

    def __init__(self) -> None:
        self.by_name: dict[str, Repository] = {}
        self.tokens: dict[str, str] = {}
        self._folder = tempfile.TemporaryDirectory()
        self.objects = Path(self._folder.name)

    def close(self) -> None:
        self._folder.cleanup()

    def check(self, token: str | None, *, write: bool = False) -> bool:
        """Whether someone is known. Raises RefusedError for a token that is wrong or may not."""
        if token is not None and self.tokens and token not in self.tokens:
            raise RefusedError(401, "", "Invalid credentials in Authorization header")
        if write and self.tokens and self.tokens.get(token or "") != "write":
            if token is None:
                raise RefusedError(401, "", "Invalid username or password.")
            raise RefusedError(403, "", "You need a write token for this")
        return token is not None

    def get(self, name: str, token: str | None) -> Repository:
        """A repository that this token may read; RefusedError is the same for all others."""
        known = self.check(token)
        found = self.by_name.get(name)
        if found is None or (found.private and not known):
            raise RefusedError(404 if known else 401, "RepoNotFound", "Repository not found")
        return found

    def create(self, name: str, private: bool) -> Repository:
        """One with the first commit that the Hub makes. Raises RefusedError where it exists."""
        if name in self.by_name:
            raise RefusedError(409, "", "You already created this model repo")
        self.by_name[name] = repository = Repository(name, private)
        attributes = "".join(f"*{suffix} filter=lfs\n" for suffix in LARGE).encode()
        repository.commit({".gitattributes": self.store(attributes)})
        return repository

    def store(self, data: bytes) -> Path:
        """Keep a content by its SHA-256; where it lies."""
        path = self.objects / hashlib.sha256(data).hexdigest()
        path.write_bytes(data)
        return path

    def apply(self, repository: Repository, branch: str, operations: list[dict[str, Any]]) -> str:
        """A commit as the client sends it: all of it or nothing; returns the sha."""
        files = dict(repository.files(branch))
        for operation in operations:
            value = operation["value"]
            match operation["key"]:
                case "header":
                    parent = value.get("parentCommit")
                    if parent not in (None, repository.sha_of(branch)):
                        raise RefusedError(412, "", "A commit has happened since. Please refresh")
                case "file":
                    files[value["path"]] = self.store(base64.b64decode(value["content"]))
                case "lfsFile":
                    path = self.objects / value["oid"]
                    if not path.is_file() or path.stat().st_size != value["size"]:
                        raise RefusedError(400, "", f"{value['path']} was not uploaded")
                    files[value["path"]] = path
                case "deletedFile":
                    del files[value["path"]]
                case other:
                    raise RefusedError(400, "", f"no operation {other}")
        return repository.commit(files, branch)
