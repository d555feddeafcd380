"""What the small Hub of `hub_server.py` stores: repositories, their commits, and the files of these."""

import hashlib
import os
from dataclasses import dataclass, field


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


Files = dict[str, StoredFile]


@dataclass
class Repository:
    """Files of each commit by its id, messages of the commits in their order, branches and tags by name."""

    private: bool = False
    gated: bool = False
    commits: dict[str, Files] = field(default_factory=dict)
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

    def files(self, revision: str = "main") -> Files:
        return self.commits[self.find(revision)]

    def commit(self, branch: str, message: str, files: Files) -> str:
        oid = os.urandom(20).hex()
        self.commits[oid] = files
        self.messages.append(message)
        self.branches[branch] = oid
        return oid


class HubError(Exception):
    """An answer that is an error: status, message, the code by which clients tell errors apart, further headers."""

    def __init__(self, status: int, message: str, code: str = "", headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, {"X-Error-Code": code, "X-Error-Message": message, **(headers or {})}
