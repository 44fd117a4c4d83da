"""A Hub on loopback, in memory: as much of its HTTP interface as uploading and loading models uses."""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml


# token: name, and whether it may write. The name in the documents is `owner`.
USERS = {"hf_writer": ("ada", True), "hf_reader": ("ada", False), "hf_owner": ("owner", True)}
LICENSES = ("apache-2.0", "cc-by-4.0", "mit")


@dataclass
class Repo:
    private: bool
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {".gitattributes": b""}})
    commits: list[str] = field(default_factory=list)

    def sha(self, branch: str) -> str:
        files = sorted((path, hashlib.sha1(content).hexdigest()) for path, content in self.branches[branch].items())
        return hashlib.sha1(repr(files).encode()).hexdigest()

    def branch_of(self, revision: str) -> str | None:
        return next((name for name in self.branches if revision in (name, self.sha(name))), None)


class FakeHub:
    """
    `repos` holds what was uploaded, `requests` what was asked. A request whose path contains a key of `failures` is
    answered with that HTTP status instead.
    """

    def __init__(self):
        self.repos: dict[str, Repo] = {}
        self.requests: list[str] = []
        self.failures: dict[str, int] = {}
        self.url = ""

    def files(self, repo_id: str, branch: str = "main") -> dict[str, bytes]:
        """Uploaded files by path, without what every repository starts with."""
        files = self.repos[repo_id].branches[branch]
        return {path: content for path, content in files.items() if path != ".gitattributes"}


@contextmanager
def serve_fake_hub():
    """Yield a `FakeHub` that listens at its `url` until the block ends."""
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("HubHandler", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def file_entry(path: str, content: bytes) -> dict:
    return {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}


def folder_entry(path: str) -> dict:
    return {"type": "directory", "path": path, "oid": "0" * 40}


class Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, status: int, body: bytes | dict | list = b"", **headers: str) -> None:
        if not isinstance(body, bytes):
            body, headers = json.dumps(body).encode(), {"Content-Type": "application/json", **headers}
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, message: str, code: str = "") -> None:
        self.answer(status, {"error": message}, X_Error_Message=message, **({"X_Error_Code": code} if code else {}))

    def handle_request(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append(f"{self.command} {path}")
        for part, status in self.hub.failures.items():
            if part in path:
                return self.refuse(status, f"failing as told, with {status}")
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in USERS:
            return self.refuse(401, "Invalid credentials in Authorization header")
        user, may_write = USERS.get(token, (None, False))
        if path == "/api/validate-yaml":
            return self.validate_yaml(json.loads(body))
        if path == "/api/repos/create":
            return self.create_repo(json.loads(body), user, may_write)
        if match := re.fullmatch(r"/api/(?:models|datasets)/([\w.-]+/[\w.-]+)(?:/([\w-]+)(?:/(.+))?)?", path):
            repo_id, action, rest = match.groups()
        elif match := re.fullmatch(r"(?:/datasets)?/([\w.-]+/[\w.-]+)/(resolve)/(.+)", path):
            repo_id, action, rest = match.groups()
        else:
            return self.refuse(404, f"no route for {path}")
        repo = self.hub.repos.get(repo_id)
        if repo is None or (repo.private and user != repo_id.split("/")[0]):
            return self.refuse(401 if user is None else 404, "Repository not found", "RepoNotFound")
        if (self.command == "POST" and action != "paths-info") or action == "auth-check":
            if user is None:
                return self.refuse(401, "Authentication is required")
            if not may_write or user != repo_id.split("/")[0]:
                return self.refuse(403, "This token has no write access")
        getattr(self, (action or "info").replace("-", "_"))(repo_id, repo, rest, body)

    do_GET = do_HEAD = do_POST = handle_request

    def validate_yaml(self, body: dict) -> None:
        metadata = yaml.safe_load(body["content"].split("---")[1])
        if "license" in metadata and metadata["license"] not in LICENSES:
            message = f'"license" must be one of {", ".join(LICENSES)}'
            if self.headers.get("Accept") == "text/plain":
                return self.answer(400, message.encode())
            return self.answer(400, {"error": message, "errors": [{"message": message}], "warnings": []})
        self.answer(200, {"errors": [], "warnings": []})

    def create_repo(self, body: dict, user: str | None, may_write: bool) -> None:
        if user is None:
            return self.refuse(401, "Authentication is required")
        if not may_write or body.get("organization") not in (None, user):
            return self.refuse(403, "This token may not create that repository")
        repo_id = f"{user}/{body['name']}"
        status = 409 if repo_id in self.hub.repos else 200
        self.hub.repos.setdefault(repo_id, Repo(private=body.get("visibility") == "private"))
        self.answer(status, {"url": f"{self.hub.url}/{repo_id}"})

    def auth_check(self, repo_id: str, repo: Repo, rest: str, body: bytes) -> None:
        self.answer(200, {})

    def branch(self, repo_id: str, repo: Repo, name: str, body: bytes) -> None:
        status = 409 if name in repo.branches else 201
        repo.branches.setdefault(name, dict(repo.branches["main"]))
        self.answer(status, {})

    def info(self, repo_id: str, repo: Repo, rest: str, body: bytes) -> None:
        self.revision(repo_id, repo, "main", body)

    def revision(self, repo_id: str, repo: Repo, revision: str, body: bytes) -> None:
        branch = repo.branch_of(revision)
        if branch is None:
            return self.refuse(404, "Revision not found", "RevisionNotFound")
        siblings = [{"rfilename": path} for path in repo.branches[branch]]
        self.answer(200, {"id": repo_id, "sha": repo.sha(branch), "private": repo.private, "siblings": siblings})

    def tree(self, repo_id: str, repo: Repo, rest: str, body: bytes) -> None:
        revision, _, folder = rest.partition("/")
        branch = repo.branch_of(revision)
        if branch is None:
            return self.refuse(404, "Revision not found", "RevisionNotFound")
        files = {path: content for path, content in repo.branches[branch].items() if path.startswith(folder)}
        if folder and not files:
            return self.refuse(404, "Entry not found", "EntryNotFound")
        entries = {path: file_entry(path, content) for path, content in files.items()}
        if "recursive=true" not in urlsplit(self.path).query.lower():
            prefix = f"{folder}/" if folder else ""
            for path in list(entries):
                child, _, deeper = path.removeprefix(prefix).partition("/")
                if deeper:
                    del entries[path]
                    entries[prefix + child] = folder_entry(prefix + child)
        self.answer(200, list(entries.values()))

    def paths_info(self, repo_id: str, repo: Repo, revision: str, body: bytes) -> None:
        files = repo.branches[repo.branch_of(revision)]
        entries = []
        for path in parse_qs(body.decode())["paths"]:
            if path in files:
                entries.append(file_entry(path, files[path]))
            elif any(name.startswith(f"{path}/") for name in files):
                entries.append(folder_entry(path))
        self.answer(200, entries)

    def preupload(self, repo_id: str, repo: Repo, revision: str, body: bytes) -> None:
        if revision not in repo.branches:
            return self.refuse(404, "Revision not found", "RevisionNotFound")
        files = json.loads(body)["files"]
        self.answer(
            200, {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
        )

    def commit(self, repo_id: str, repo: Repo, branch: str, body: bytes) -> None:
        if branch not in repo.branches:
            return self.refuse(404, "Revision not found", "RevisionNotFound")
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                repo.commits.append(value["summary"])
            elif line["key"] == "file":
                repo.branches[branch][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                del repo.branches[branch][value["path"]]
        sha = repo.sha(branch)
        self.answer(200, {"commitUrl": f"{self.hub.url}/{repo_id}/commit/{sha}", "commitOid": sha})

    def resolve(self, repo_id: str, repo: Repo, rest: str, body: bytes) -> None:
        # A branch may hold a slash, a commit may not.
        names = [*repo.branches, *map(repo.sha, repo.branches)]
        revision = next((name for name in names if rest.startswith(f"{name}/")), None)
        if revision is None:
            return self.refuse(404, "Revision not found", "RevisionNotFound")
        branch = repo.branch_of(revision)
        content = repo.branches[branch].get(rest.removeprefix(f"{revision}/"))
        if content is None:
            return self.refuse(404, "Entry not found", "EntryNotFound")
        etag = f'"{hashlib.sha1(content).hexdigest()}"'
        self.answer(200, content, ETag=etag, X_Repo_Commit=repo.sha(branch))
