"""A Hugging Face hub on this machine: the endpoints that huggingface_hub calls, in memory."""

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_a_token_of_the_fake_hub"


@dataclass
class Repo:
    """One repository: commits, newest last, and branches."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    private: bool = False

    def commit(self, files: dict[str, bytes], branch: str = "main", keep: bool = True) -> str:
        present = self.commits.get(self.refs.get(branch, ""), {}) if keep else {}
        whole = {**present, **files}
        text = repr((len(self.commits), sorted(whole.items()))).encode()
        sha = hashlib.sha1(text).hexdigest()
        self.commits[sha], self.refs[branch] = whole, sha
        return sha

    def find(self, revision: str) -> str | None:
        sha = self.refs.get(revision, revision)
        return sha if sha in self.commits else None


class FakeHub(ThreadingHTTPServer):
    """The server; `repos` is what it holds, `asked` what was asked of it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def add(self, repo_id: str, files: dict[str, bytes], branch: str = "main") -> str:
        return self.repos.setdefault(repo_id, Repo()).commit(files, branch)


@contextlib.contextmanager
def running() -> Iterator[FakeHub]:
    hub = FakeHub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()


class Handler(BaseHTTPRequestHandler):
    server: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._dispatch("GET")

    def do_HEAD(self) -> None:
        self._dispatch("HEAD")

    def do_POST(self) -> None:
        self._dispatch("POST")

    def do_PUT(self) -> None:
        self._dispatch("PUT")

    def _dispatch(self, method: str) -> None:
        path = urlsplit(self.path).path
        self.server.asked.append(f"{method} {path}")
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length) if length else self._chunks()
        writes = method in ("POST", "PUT") and "/validate-yaml" not in path
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if writes and not known and not path.startswith("/blobs/"):
            self._json({"error": "Invalid username or password."}, 401)
            return
        for pattern, answer in ROUTES.items():
            match = re.fullmatch(pattern, f"{method} {path}")
            if match:
                answer(self, *map(unquote, match.groups()))
                return
        self._json({"error": f"no such place: {method} {path}"}, 404)

    def _chunks(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return b""
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _json(self, value: object, status: int = 200, **headers: str) -> None:
        self._send(
            json.dumps(value).encode(), status, {"Content-Type": "application/json"}, headers
        )

    def _send(self, content: bytes, status: int, *headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {k: v for some in headers for k, v in some.items()}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _missing(self, what: str) -> None:
        self._json({"error": f"{what} not found"}, 404, X_Error_Code=f"{what}NotFound")

    def _at(self, repo_id: str, revision: str) -> tuple[Repo, str] | None:
        repo = self.server.repos.get(repo_id)
        if repo is None or (repo.private and "Authorization" not in self.headers):
            self._missing("Repo")
            return None
        sha = repo.find(revision)
        if sha is None:
            self._missing("Revision")
            return None
        return repo, sha

    def info(self, repo_id: str, revision: str = "main") -> None:
        if found := self._at(repo_id, revision):
            repo, sha = found
            names = [{"rfilename": name} for name in repo.commits[sha]]
            facts = {"id": repo_id, "modelId": repo_id, "sha": sha, "private": repo.private}
            self._json({**facts, "siblings": names, "tags": [], "downloads": 0, "likes": 0})

    def tree(self, repo_id: str, revision: str) -> None:
        if found := self._at(repo_id, revision):
            repo, sha = found
            self._json(
                [
                    {
                        "type": "file",
                        "path": name,
                        "size": len(content),
                        "oid": hashlib.sha1(content).hexdigest(),
                    }
                    for name, content in repo.commits[sha].items()
                ]
            )

    def resolve(self, repo_id: str, revision: str, name: str) -> None:
        if found := self._at(repo_id, revision):
            repo, sha = found
            if name not in repo.commits[sha]:
                self._missing("Entry")
                return
            content = repo.commits[sha][name]
            etag = f'"{hashlib.sha1(content).hexdigest()}"'
            self._send(content, 200, {"ETag": etag, "X-Repo-Commit": sha})

    def create(self) -> None:
        asked = json.loads(self.body)
        repo_id = f"{asked['organization']}/{asked['name']}"
        if repo_id in self.server.repos:
            url = f"{self.server.url}/{repo_id}"
            self._json({"error": "You already created this model repo", "url": url}, 409)
            return
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.server.repos[repo_id] = Repo(private=private)
        self.server.repos[repo_id].commit({".gitattributes": b"*.safetensors filter=lfs\n"})
        self._json({"url": f"{self.server.url}/{repo_id}", "name": repo_id})

    def branch(self, repo_id: str, name: str) -> None:
        repo = self.server.repos[repo_id]
        if name in repo.refs:
            self._json({"error": "Reference already exists"}, 409)
            return
        repo.refs[name] = repo.refs["main"]
        self._json({"success": True})

    def preupload(self, repo_id: str, revision: str) -> None:
        names = [item["path"] for item in json.loads(self.body)["files"]]
        lfs = [name for name in names if name.endswith(".safetensors")]
        modes = {name: "lfs" if name in lfs else "regular" for name in names}
        files = [{"path": n, "uploadMode": m, "shouldIgnore": False} for n, m in modes.items()]
        self._json({"files": files})

    def batch(self, repo_id: str) -> None:
        objects = [
            {**item, "actions": {"upload": {"href": f"{self.server.url}/blobs/{item['oid']}"}}}
            for item in json.loads(self.body)["objects"]
        ]
        self._json({"transfer": "basic", "objects": objects})

    def blob(self, oid: str) -> None:
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.server.blobs[oid] = self.body
        self._json({})

    def commit(self, repo_id: str, revision: str) -> None:
        files = {}
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
        sha = self.server.repos[repo_id].commit(files, revision)
        url = f"{self.server.url}/{repo_id}/commit/{sha}"
        self._json({"success": True, "commitOid": sha, "commitUrl": url})

    def yaml(self) -> None:
        self._json({"errors": [], "warnings": []})


ID, NAME = r"([\w.-]+/[\w.-]+)", r"([^/]+)"
ROUTES = {
    rf"GET /api/models/{ID}": Handler.info,
    rf"GET /api/models/{ID}/revision/{NAME}": Handler.info,
    rf"GET /api/models/{ID}/tree/{NAME}": Handler.tree,
    rf"(?:GET|HEAD) /{ID}/resolve/{NAME}/(.+)": Handler.resolve,
    r"POST /api/repos/create": Handler.create,
    rf"POST /api/models/{ID}/branch/{NAME}": Handler.branch,
    rf"POST /api/models/{ID}/preupload/{NAME}": Handler.preupload,
    rf"POST /{ID}\.git/info/lfs/objects/batch": Handler.batch,
    r"PUT /blobs/(\w+)": Handler.blob,
    rf"POST /api/models/{ID}/commit/{NAME}": Handler.commit,
    r"POST /api/validate-yaml": Handler.yaml,
}
