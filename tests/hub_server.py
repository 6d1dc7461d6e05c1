"""A Hub on the loopback: the routes that huggingface_hub uses to read and write models and to read data sets (named
"datasets/owner/name" here), and ways to make them fail.

    with HubServer(tmp_path / "hub") as hub:
        commit = hub.add("someone/model", folder)                # served as it lies there, as the repository's `main`
        hub.fail("*/api/models/*", 500, times=2)                 # the first failures of a path win
        spawn("-m", "diffcompress", "plan", "someone/model", ..., **hub.environment(tmp_path / "home"))
        assert "GET /api/models/someone/model" in hub.requests

Large files answer as the real Hub does: a redirect to another host name ("localhost") that serves the bytes by hash.
"""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import json
import shutil
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_" + "a" * 34
LARGE = (".safetensors", ".bin", ".ckpt", ".pt", ".png", ".onnx", ".parquet")


@dataclass
class Failure:
    """What to answer instead, for requests whose "METHOD /path" fits `pattern`.

    status: an HTTP status, or None for a body that ends after `keep` bytes. content: the body, as JSON. times: how
    often; None is always.
    """

    pattern: str
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    content: Any = None
    keep: int = 0
    times: int | None = None


@dataclass
class Repository:
    """commits: file trees by commit; refs: commits by name; gated: nobody here has accepted; private: needs a token."""

    commits: dict[str, Path] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False

    def commit(self, revision: str) -> str | None:
        found = self.refs.get(revision, revision)
        return found if found in self.commits else None


class HubServer:
    """Serves on 127.0.0.1 while open; `folder` keeps what is pushed to it. Thread-safe enough for one client."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.repositories: dict[str, Repository] = {}
        self.moved: dict[str, str] = {}
        self.failures: list[Failure] = []
        self.requests: list[str] = []
        self.bytes_sent: Counter[str] = Counter()  # of the bodies, by path
        self.blobs: dict[str, Path] = {}
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def port(self) -> int:
        return self._server.server_address[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def environment(self, home: Path, token: str | None = TOKEN) -> dict[str, str]:
        """For a client process that talks to this server and keeps its cache in `home`; token None: not logged in."""
        own = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        return {**own, "HF_TOKEN": token or "", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0"}

    def add(
        self, name: str, folder: Path, *, revision: str = "main", private: bool = False, gated: bool = False
    ) -> str:
        """Serve `folder` as a new commit of the repository "owner/name", and `revision` as pointing to it."""
        files = {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()}
        digest = hashlib.sha1(name.encode())
        for path, file in files.items():
            digest.update(path.encode() + sha256(file).encode())
            self.blobs[sha256(file)] = file
        repository = self.repositories.setdefault(name, Repository())
        commit = digest.hexdigest()
        repository.commits[commit] = folder
        repository.refs[revision] = commit
        repository.private, repository.gated = repository.private or private, repository.gated or gated
        return commit

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """What a repository holds."""
        repository = self.repositories[name]
        commit = repository.commit(revision)
        folder = repository.commits[commit] if commit else Path("/nonexistent")
        return {f.relative_to(folder).as_posix(): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}

    def fail(
        self,
        pattern: str,
        status: int,
        *,
        times: int | None = None,
        headers: dict[str, str] | None = None,
        content: Any = None,
    ) -> None:
        """Answer `status` to requests "METHOD /path" that fit the shell pattern."""
        self.failures.append(Failure(pattern, status, headers or {}, content, times=times))

    def truncate(self, pattern: str, keep: int, *, times: int | None = None) -> None:
        """Break the connection after byte `keep` of a file whose "METHOD /path" fits."""
        self.failures.append(Failure(pattern, keep=keep, times=times))

    def mend(self) -> None:
        self.failures.clear()

    def failure(self, request: str) -> Failure | None:
        for failure in self.failures:
            if fnmatch.fnmatchcase(request, failure.pattern) and failure.times != 0:
                failure.times = None if failure.times is None else failure.times - 1
                return failure
        return None


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


class _Refused(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.headers = status, {"X-Error-Code": code, "X-Error-Message": message}


class _Handler(BaseHTTPRequestHandler):
    disable_nagle_algorithm = True
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def _serve(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append(f"{self.command} {path}")
        self.failure = self.hub.failure(f"{self.command} {path}")
        if self.failure is not None and self.failure.status is not None:
            content = b"" if self.failure.content is None else json.dumps(self.failure.content).encode()
            return self._answer(self.failure.status, content, self.failure.headers)
        try:
            self._route(urlsplit(self.path).path)
        except _Refused as refused:
            self._answer(refused.status, json.dumps({"error": str(refused)}).encode(), refused.headers)

    do_GET = do_HEAD = do_POST = do_PUT = _serve

    def _route(self, path: str) -> None:
        parts = [unquote(part) for part in path.strip("/").split("/")]  # "refs%2Fpr%2F1" is one
        match parts:
            case ["blobs", digest]:
                self._file(self.hub.blobs[digest], digest)
            case ["lfs", digest]:
                self._keep_blob(digest, self.body)
                self._answer(200)
            case ["api", "whoami-v2"]:
                self._json({"name": "someone", "type": "user", "orgs": [], "auth": {}} if self._token() else {})
            case ["api", "validate-yaml"]:
                self._json({"errors": [], "warnings": []})
            case ["api", "repos", "create"]:
                self._create()
            case ["api", "models", owner, name, *rest]:
                self._model(f"{owner}/{name}", rest)
            case ["api", "datasets", owner, name, *rest]:
                self._model(f"datasets/{owner}/{name}", rest)
            case [owner, name, "info", "lfs", "objects", "batch"] if name.endswith(".git"):
                self._writable(f"{owner}/{name.removesuffix('.git')}")
                self._json({"transfer": "basic", "objects": [self._lfs_object(o) for o in self._sent()["objects"]]})
            case [owner, name, "resolve", revision, *file]:
                self._resolve(f"{owner}/{name}", revision, "/".join(file))
            case ["datasets", owner, name, "resolve", revision, *file]:
                self._resolve(f"datasets/{owner}/{name}", revision, "/".join(file))
            case _:
                raise _Refused(404, "NotFound", f"no route {path}")

    # Reading

    def _model(self, name: str, rest: list[str]) -> None:
        if name in self.hub.moved:
            target = self.path.replace(name, self.hub.moved[name], 1)
            return self._answer(307, b"", {"Location": target})
        match rest:
            case [] | ["revision", _]:
                repository, commit = self._find(name, rest[1] if rest else "main")
                files = self._listed(repository.commits[commit])
                siblings = [_sibling(file) for file in files]
                gated = "manual" if repository.gated else False
                self._json(
                    {
                        "id": name.removeprefix("datasets/"),
                        "sha": commit,
                        "private": repository.private,
                        "gated": gated,
                        "siblings": siblings,
                    }
                )
            case ["tree", revision, *inside]:
                repository, commit = self._find(name, revision)
                recursive = "recursive=true" in self.path.lower()
                self._json(self._tree(repository.commits[commit], "/".join(inside), recursive))
            case ["paths-info", revision]:
                repository, commit = self._find(name, revision)
                asked = parse_qs(self.body.decode()).get("paths", [])
                self._json([e for e in self._tree(repository.commits[commit], "", True) if e["path"] in asked])
            case ["auth-check"]:
                self._readable(name, self._find(name, "main")[0])
                self._json({})
            case ["preupload", _]:
                self._writable(name)
                modes = [(f["path"], "lfs" if f["path"].endswith(LARGE) else "regular") for f in self._sent()["files"]]
                self._json({"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes]})
            case ["commit", revision]:
                self._commit(name, revision)
            case _:
                raise _Refused(404, "NotFound", f"no route {self.path}")

    def _find(self, name: str, revision: str) -> tuple[Repository, str]:
        repository = self.hub.repositories.get(name)
        if self._token() not in (None, TOKEN):
            raise _Refused(401, "", "Invalid credentials in Authorization header")
        if repository is None or (repository.private and self._token() is None):
            # As the Hub does: without a token nobody learns whether a repository exists.
            raise _Refused(404 if self._token() else 401, "RepoNotFound", "Repository not found")
        commit = repository.commit(revision)
        if commit is None:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repository, commit

    def _readable(self, name: str, repository: Repository) -> None:
        if repository.gated:
            raise _Refused(403 if self._token() else 401, "GatedRepo", f"Access to {name} is restricted")

    def _resolve(self, name: str, revision: str, path: str) -> None:
        if name in self.hub.moved:
            return self._answer(307, b"", {"Location": self.path.replace(name, self.hub.moved[name], 1)})
        repository, commit = self._find(name, revision)
        self._readable(name, repository)
        file = repository.commits[commit] / path
        if not file.is_file():
            raise _Refused(404, "EntryNotFound", "Entry not found")
        digest = sha256(file)
        head = {"X-Repo-Commit": commit}
        if not path.endswith(LARGE):
            return self._file(file, _git_hash(file), head)
        where = f"http://localhost:{self.hub.port}/blobs/{digest}"
        linked = {"X-Linked-Size": str(file.stat().st_size), "X-Linked-Etag": f'"{digest}"', "Location": where}
        self._answer(302, b"", head | linked)

    def _listed(self, folder: Path) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for file in sorted(f for f in folder.rglob("*") if f.is_file()):
            size = file.stat().st_size
            entry = {"type": "file", "path": file.relative_to(folder).as_posix(), "size": size, "oid": _git_hash(file)}
            if file.name.endswith(LARGE):
                entry["lfs"] = {"oid": sha256(file), "size": size, "pointerSize": 134}
            found.append(entry)
        return found

    def _tree(self, root: Path, inside: str, recursive: bool) -> list[dict[str, Any]]:
        """Files and folders below `inside`."""
        if not (root / inside).is_dir():
            raise _Refused(404, "EntryNotFound", "Entry not found")
        folders = [f.relative_to(root).as_posix() for f in sorted(root.rglob("*")) if f.is_dir()]
        entries = [{"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in folders]
        below = [e for e in entries + self._listed(root) if e["path"].startswith(f"{inside}/".lstrip("/"))]
        return [e for e in below if recursive or Path(e["path"]).parent == Path(inside)]

    def _file(self, file: Path, etag: str, headers: dict[str, str] | None = None) -> None:
        content, status = file.read_bytes(), 200
        head = {"ETag": f'"{etag}"', "Accept-Ranges": "bytes", **(headers or {})}
        start, asked = 0, self.headers.get("Range", "")
        if asked.startswith("bytes="):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, stop = int(first), min(int(last) + 1 if last else len(content), len(content))
            head["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
            content, status = content[start:stop], 206
        sent = None if self.failure is None else max(self.failure.keep - start, 0)
        self._answer(status, content, head, sent=sent)

    # Writing

    def _create(self) -> None:
        sent = self._sent()
        name = f"{sent.get('organization') or 'someone'}/{sent['name']}"
        self._writable(None)
        if name in self.hub.repositories:
            return self._answer(409, json.dumps({"error": "exists", "url": f"{self.hub.url}/{name}"}).encode())
        private = sent.get("visibility") == "private" or bool(sent.get("private"))
        empty = self.hub.folder / name / "0"
        empty.mkdir(parents=True)
        self.hub.add(name, empty, private=private)
        self._json({"url": f"{self.hub.url}/{name}"})

    def _writable(self, name: str | None) -> None:
        if self._token() != TOKEN:
            raise _Refused(401, "", "Invalid username or password.")
        if name is not None:
            self._find(name, "main")

    def _lfs_object(self, sent: dict[str, Any]) -> dict[str, Any]:
        known = {"oid": sent["oid"], "size": sent["size"]}
        if sent["oid"] in self.hub.blobs:
            return known
        return known | {"actions": {"upload": {"href": f"{self.hub.url}/lfs/{sent['oid']}", "header": {}}}}

    def _commit(self, name: str, revision: str) -> None:
        self._writable(name)
        repository, parent = self._find(name, revision)
        lines = [json.loads(line) for line in self.body.splitlines()]
        folder = self.hub.folder / name / str(len(repository.commits))
        shutil.copytree(repository.commits[parent], folder)
        for value in (line["value"] for line in lines if line["key"] != "header"):
            file = folder / value["path"]
            file.parent.mkdir(parents=True, exist_ok=True)
            content = value.get("content")
            file.write_bytes(
                self.hub.blobs[value["oid"]].read_bytes() if content is None else base64.b64decode(content)
            )
        commit = self.hub.add(name, folder, revision=revision)
        self._json({"commitUrl": f"{self.hub.url}/{name}/commit/{commit}", "commitOid": commit, "success": True})

    def _keep_blob(self, digest: str, content: bytes) -> None:
        file = self.hub.folder / "blobs" / digest
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        self.hub.blobs[digest] = file

    # Speaking HTTP

    def _token(self) -> str | None:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None

    def _sent(self) -> Any:
        return json.loads(self.body)

    def _json(self, value: Any) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _answer(
        self, status: int, content: bytes = b"", headers: dict[str, str] | None = None, sent: int | None = None
    ) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.hub.bytes_sent[unquote(urlsplit(self.path).path)] += len(content[:sent])
            self.wfile.write(content[:sent])
            if sent is not None and sent < len(content):
                self.close_connection = True


def _sibling(listed: dict[str, Any]) -> dict[str, Any]:
    """A file of a tree as the model's information tells it."""
    told = {"rfilename": listed["path"], "size": listed["size"], "blobId": listed["oid"]}
    lfs = listed.get("lfs")
    return told if lfs is None else told | {"lfs": {**lfs, "sha256": lfs["oid"]}}


def _git_hash(file: Path) -> str:
    content = file.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
