"""A hub on this machine: the few answers of the Hugging Face hub that a download asks for, from a folder.

``root/OWNER/NAME/REVISION/files``; every revision is its own commit. ``requests`` lists what was asked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread


def commit(repository: str, revision: str) -> str:
    return hashlib.sha1(f"{repository}@{revision}".encode()).hexdigest()


class Hub(BaseHTTPRequestHandler):
    root: Path
    requests: list[str]

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, *, with_body: bool) -> None:
        self.requests.append(self.path)
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self.describe("/".join(parts[2:4]), parts[5] if len(parts) > 5 else "main", with_body)
        else:
            self.file("/".join(parts[:2]), parts[3], "/".join(parts[4:]), with_body)

    def revisions(self, repository: str) -> dict[str, Path]:
        """Revision and commit -> folder."""
        folders = [path for path in (self.root / repository).glob("*") if path.is_dir()]
        return {name: p for p in folders for name in (p.name, commit(repository, p.name))}

    def describe(self, repository: str, revision: str, with_body: bool) -> None:
        revisions = self.revisions(repository)
        if not revisions:
            return self.refuse("RepoNotFound", 401)
        if revision not in revisions:
            return self.refuse("RevisionNotFound")
        folder = revisions[revision]
        names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
        about = {"id": repository, "sha": commit(repository, folder.name), "private": False, "tags": []}
        body = json.dumps({**about, "siblings": [{"rfilename": name} for name in names]}).encode()
        return self.send(body, with_body, {"Content-Type": "application/json"})

    def file(self, repository: str, revision: str, name: str, with_body: bool) -> None:
        folder = self.revisions(repository)[revision]
        if not (folder / name).is_file():
            return self.refuse("EntryNotFound")
        body = (folder / name).read_bytes()
        tag = hashlib.sha256(body).hexdigest()
        return self.send(
            body, with_body, {"ETag": f'"{tag}"', "X-Repo-Commit": commit(repository, folder.name)}
        )

    def refuse(self, code: str, status: int = 404) -> None:
        self.send(b"{}", True, {"X-Error-Code": code, "X-Error-Message": code}, status)

    def send(self, body: bytes, with_body: bool, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """No log on the error stream."""


@contextmanager
def serve(root: Path, port: int = 0) -> Iterator[tuple[str, list[str]]]:
    """(address, list of requested paths so far) of a hub that holds the repositories in ``root``."""
    requests: list[str] = []
    handler = type("Handler", (Hub,), {"root": root, "requests": requests})
    server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
