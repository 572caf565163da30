"""A hub on loopback: the calls that `huggingface_hub` makes to create, list, fill and read a repository.

Large files go through git-lfs, as the client sends them where `hf_xet` is off. It keeps what it is sent in memory.
"""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_loopbackTokenForTests"
LARGE = (".safetensors", ".bin")


class Hub:
    """Repositories by id (of data sets `datasets/…`), each with `private` and `branches`: name to {path: bytes}."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict] = {}
        self.blobs: dict[str, bytes] = {}  # large files by sha256
        self.uploads: list[str] = []  # sha256 of each large file that was sent
        self.commits: list[tuple[str, str, str]] = []  # repository, branch, message
        self.refused_uploads = 0  # so many next uploads fail
        hub = self
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def files(self, repo_id: str, branch: str = "main") -> dict[str, bytes]:
        return self.repositories[repo_id]["branches"][branch]

    def create(self, repo_id: str, private: bool) -> None:
        self.repositories[repo_id] = {"private": private, "branches": {"main": {".gitattributes": b"*.bin filter=lfs"}}}


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *args) -> None:
        pass

    def answer(self, status: int = 200, body=None, error: str | None = None) -> None:
        data = json.dumps({} if body is None else body).encode()
        self.send_response(status)
        if error:
            self.send_header("X-Error-Code", error)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def handle_one(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        if path.startswith("/upload/"):  # signed addresses: no token is sent to them
            return self.upload(path.removeprefix("/upload/"), body)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(401)
        if path == "/api/whoami-v2":
            return self.answer(body={"name": "me", "type": "user", "orgs": []})
        if path == "/api/validate-yaml":
            valid = json.loads(body)["content"].startswith("---\n")
            return self.answer(200 if valid else 400, {"errors": [] if valid else [{"message": "no metadata"}]})
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path.endswith(".git/info/lfs/objects/batch"):
            return self.batch(json.loads(body))
        if "/resolve/" in path:
            return self.resolve(*path.removeprefix("/").split("/resolve/"))
        _, _, repo_type, owner, name, *rest = path.split("/", 5)
        repo_id = f"{'datasets/' if repo_type == 'datasets' else ''}{owner}/{name}"
        repository = self.hub.repositories.get(repo_id)
        if repository is None:
            return self.answer(404, error="RepoNotFound")
        kind, _, reference = (rest[0] if rest else "").partition("/")
        return getattr(self, f"on_{kind or 'revision'}")(repo_id, repository, reference or "main", body)

    do_GET = do_POST = do_PUT = do_HEAD = handle_one

    def resolve(self, repo_id: str, place: str) -> None:
        branch, _, file = place.partition("/")
        content = self.hub.repositories[repo_id]["branches"][branch].get(file)
        if content is None:
            return self.answer(404, error="EntryNotFound")
        digest = hashlib.sha1(content).hexdigest()
        self.send_response(200)
        headers = {"ETag": f'"{digest}"', "X-Repo-Commit": digest, "Content-Length": str(len(content))}
        for header in headers.items():
            self.send_header(*header)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def create(self, wanted: dict) -> None:
        repo_id = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        if wanted.get("type") == "dataset":
            repo_id = f"datasets/{repo_id}"
        known = repo_id in self.hub.repositories
        if not known:
            self.hub.create(repo_id, wanted.get("visibility") == "private")
        self.answer(409 if known else 200, {"url": f"{self.hub.url}/{repo_id}"})

    def on_revision(self, repo_id: str, repository: dict, branch: str, body: bytes) -> None:
        if branch not in repository["branches"]:
            return self.answer(404, error="RevisionNotFound")
        self.answer(body={"id": repo_id, "private": repository["private"], "sha": "0" * 40, "tags": [], "siblings": []})

    def on_branch(self, repo_id: str, repository: dict, branch: str, body: bytes) -> None:
        known = branch in repository["branches"]
        repository["branches"].setdefault(branch, dict(repository["branches"]["main"]))
        self.answer(409 if known else 200)

    def on_tree(self, repo_id: str, repository: dict, branch: str, body: bytes) -> None:
        entries = []
        for path, content in repository["branches"][branch].items():
            entry = {"type": "file", "path": path, "size": len(content)}
            entry["oid"] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            if path.endswith(LARGE):
                digest = hashlib.sha256(content).hexdigest()
                entry |= {"oid": "0" * 40, "lfs": {"oid": digest, "size": len(content), "pointerSize": 130}}
            entries.append(entry)
        self.answer(body=entries)

    def on_preupload(self, repo_id: str, repository: dict, branch: str, body: bytes) -> None:
        files = [
            {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(LARGE) else "regular", "shouldIgnore": False}
            for f in json.loads(body)["files"]
        ]
        self.answer(body={"files": files})

    def batch(self, wanted: dict) -> None:
        objects = []
        for item in wanted["objects"]:
            known = item["oid"] in self.hub.blobs
            actions = {} if known else {"actions": {"upload": {"href": f"{self.hub.url}/upload/{item['oid']}"}}}
            objects.append({**item, **actions})
        self.answer(body={"transfer": "basic", "objects": objects})

    def upload(self, digest: str, body: bytes) -> None:
        if self.hub.refused_uploads:
            self.hub.refused_uploads -= 1
            return self.answer(403)
        self.hub.uploads.append(digest)
        self.hub.blobs[digest] = body
        self.answer()

    def on_commit(self, repo_id: str, repository: dict, branch: str, body: bytes) -> None:
        files = repository["branches"][branch]
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif item["key"] == "deletedFile":
                del files[value["path"]]
            else:
                self.hub.commits.append((repo_id, branch, value["summary"]))
        self.answer(body={"commitUrl": f"{self.hub.url}/{repo_id}/commit/{'1' * 40}", "commitOid": "1" * 40})
