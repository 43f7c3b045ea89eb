"""Serve the part of the Hugging Face protocol that model downloads use, on the loopback.

Serves repositories given as Python dicts to the real huggingface_hub, and can gate them, break a connection,
fail or fall silent. Weights are answered as the hub answers LFS files, with a redirect to another host.
Source: https://huggingface.co/docs/hub/api and the requests that huggingface_hub 2.4 sends.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import quote, unquote, urlsplit

Repositories = Mapping[str, Mapping[str, Mapping[str, bytes]]]
"""Model id -> revision -> file name -> content. Revision "main" is the default branch."""

_REPOSITORY = r"(?P<repository>[^/]+/[^/]+)"
_INFO = re.compile(rf"/api/models/{_REPOSITORY}(/revision/(?P<revision>[^/]+))?")
_TREE = re.compile(rf"/api/models/{_REPOSITORY}/tree/(?P<revision>[^/]+)")
_FILE = re.compile(rf"/{_REPOSITORY}/resolve/(?P<revision>[^/]+)/(?P<name>.+)")
_STORED = re.compile(rf"/storage/{_REPOSITORY}/(?P<revision>[^/]+)/(?P<name>.+)")
_LFS_SUFFIXES = (".safetensors", ".bin", ".onnx", ".h5", ".msgpack")


@dataclass(frozen=True, slots=True)
class HubRequest:
    """A request of a client."""

    method: str
    path: str
    range: str | None
    token: str | None


@dataclass(frozen=True, slots=True)
class HubReply:
    """A response of the hub; the body of a HEAD is counted but not sent."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


def commit_hash(repository: str, files: Mapping[str, bytes]) -> str:
    """Return the commit of these files: 40 hex digits that depend on their names and contents."""
    digest = hashlib.sha1(repository.encode())
    for name in sorted(files):
        digest.update(f"{name}\0{_sha256(files[name])}\n".encode())
    return digest.hexdigest()


class HubServer:
    """Serve repositories until the `with` block ends.

    tokens: model id -> the token that opens it; such a repository is gated for everyone else.
    break_after: file name -> bytes after which its next download loses the connection, once.
    failures: file name -> status that its downloads get; "*" stands for every request.
    is_silent: accept connections and answer nothing.
    requests: what was asked so far, in order.
    """

    def __init__(self, repositories: Repositories, *, tokens: Mapping[str, str] | None = None) -> None:
        self.repositories = repositories
        self.tokens = dict(tokens or {})
        self.break_after: dict[str, int] = {}
        self.failures: dict[str, int] = {}
        self.is_silent = False
        self.requests: list[HubRequest] = []
        self.closing = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _make_handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name="hub-server")

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def endpoint(self) -> str:
        """The value for HF_ENDPOINT."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def fetched_files(self) -> list[str]:
        """The sorted names of downloaded files."""
        return sorted({name for request in self.requests if (name := _name_download(request)) is not None})

    def answer(self, request: HubRequest) -> HubReply:
        """Return the response to a request."""
        if status := self.failures.get("*") or self.failures.get(_name_download(request) or ""):
            return _refuse(status, "", "this hub is set to fail")
        match = _match_path(request.path)
        if match is None:
            return _refuse(404, "", "no such page")
        repository, revision = match["repository"], unquote(match["revision"] or "main")
        if repository not in self.repositories:
            return _refuse(404 if request.token else 401, "RepoNotFound", "Repository not found")
        files = self._find_files(repository, revision)
        if files is None:
            return _refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if match.re is _INFO:
            return _serve_json(_describe_repository(repository, files))
        if match.re is _TREE:
            return _serve_json([_describe_file(name, content) for name, content in files.items()])
        if match.re is _STORED:  # the storage knows no tokens: the redirect was the permission
            return _serve_bytes(files[unquote(match["name"])], request.range, {})
        if self.tokens.get(repository, request.token) != request.token:
            return _refuse(403 if request.token else 401, "GatedRepo", f"{repository} is restricted")
        return self._serve_file(repository, files, unquote(match["name"]), request.range)

    def take_break(self, request: HubRequest) -> int | None:
        """Return the number of bytes to send before this connection breaks once, or None."""
        return self.break_after.pop(_name_download(request) or "", None)

    def _find_files(self, repository: str, revision: str) -> Mapping[str, bytes] | None:
        for name, files in self.repositories[repository].items():
            if revision in (name, commit_hash(repository, files)):
                return files
        return None

    def _serve_file(
        self, repository: str, files: Mapping[str, bytes], name: str, byte_range: str | None
    ) -> HubReply:
        commit = commit_hash(repository, files)
        if name not in files:
            return _refuse(404, "EntryNotFound", f"{name} does not exist")
        if not name.endswith(_LFS_SUFFIXES):
            return _serve_bytes(files[name], byte_range, {"X-Repo-Commit": commit})
        # Another host name, as the hub's storage has: the client must keep the hub's headers and its token.
        storage = f"http://localhost:{self._server.server_port}/storage/{repository}/{commit}/{quote(name)}"
        linked = {"X-Linked-Etag": f'"{_sha256(files[name])}"', "X-Linked-Size": str(len(files[name]))}
        return HubReply(302, b"", {"X-Repo-Commit": commit, "Location": storage} | linked)


def _make_handler(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._reply(is_head=False)

        def do_HEAD(self) -> None:
            self._reply(is_head=True)

        def log_message(self, format: str, *args: object) -> None:
            pass

        def _reply(self, *, is_head: bool) -> None:
            token = self.headers.get("authorization", "").removeprefix("Bearer ") or None
            request = HubRequest(self.command, urlsplit(self.path).path, self.headers.get("Range"), token)
            hub.requests.append(request)
            if hub.is_silent:
                hub.closing.wait()
                self.close_connection = True
                return
            reply = hub.answer(request)
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            sent = None if is_head else hub.take_break(request)
            if not is_head:
                self.wfile.write(reply.body[:sent])
            self.close_connection = self.close_connection or sent is not None

    return Handler


def _match_path(path: str) -> re.Match[str] | None:
    matches = (pattern.fullmatch(path) for pattern in (_INFO, _TREE, _STORED, _FILE))
    return next((match for match in matches if match is not None), None)


def _name_download(request: HubRequest) -> str | None:
    """Return the file that a request downloads, or None for another request."""
    match = _match_path(request.path) if request.method == "GET" else None
    return unquote(match["name"]) if match is not None and match.re in (_STORED, _FILE) else None


def _refuse(status: int, code: str, message: str) -> HubReply:
    headers = {"X-Error-Code": code, "X-Error-Message": message} if code else {}
    return HubReply(status, json.dumps({"error": message}).encode(), headers)


def _serve_json(value: object) -> HubReply:
    return HubReply(200, json.dumps(value).encode(), {"Content-Type": "application/json"})


def _serve_bytes(content: bytes, byte_range: str | None, headers: Mapping[str, str]) -> HubReply:
    own = {"ETag": f'"{_git_hash(content)}"', "Accept-Ranges": "bytes", **headers}
    if byte_range is None:
        return HubReply(200, content, own)
    start = int(byte_range.removeprefix("bytes=").rstrip("-"))
    own["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
    return HubReply(206, content[start:], own)


def _describe_repository(repository: str, files: Mapping[str, bytes]) -> dict[str, object]:
    siblings = [{"rfilename": name, "size": len(content)} for name, content in files.items()]
    return {"id": repository, "sha": commit_hash(repository, files), "siblings": siblings}


def _describe_file(name: str, content: bytes) -> dict[str, object]:
    entry: dict[str, object] = {
        "type": "file",
        "path": name,
        "size": len(content),
        "oid": _git_hash(content),
    }
    if name.endswith(_LFS_SUFFIXES):
        entry["lfs"] = {"oid": _sha256(content), "size": len(content), "pointerSize": 134}
    return entry


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
