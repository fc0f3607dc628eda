"""As much of a W&B server as a run needs to start online: `python -m tests.faults.wandb_server` prints its port."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENTITY = {"id": "e", "name": "me"}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        self.answer({})

    def do_PUT(self) -> None:
        self.read()
        self.answer({})

    def do_POST(self) -> None:
        body = self.read()
        self.answer({"data": self.query(json.loads(body))} if self.path.endswith("graphql") else {"exitcode": None})

    def read(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def answer(self, values: dict[str, Any]) -> None:
        data = json.dumps(values).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def query(self, asked: dict[str, Any]) -> dict[str, Any]:
        text, variables = asked["query"], asked.get("variables") or {}
        data: dict[str, Any] = {}
        if "viewer" in text:
            data["viewer"] = {"id": "1", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}
        if "model(" in text:
            data["model"] = {"id": "p", "name": "pretraining", "entity": ENTITY, "bucket": None}
        if "upsertBucket" in text:
            project = {"id": "p", "name": variables.get("project"), "entity": ENTITY}
            bucket = {
                "id": "abc",
                "name": variables.get("name"),
                "displayName": "r",
                "config": "{}",
                "project": project,
            }
            data["upsertBucket"] = {"bucket": bucket | {"sweepName": "", "historyLineCount": 0}, "inserted": True}
        if "createRunFiles" in text:
            address = f"http://127.0.0.1:{self.server.server_address[1]}/upload/"
            files = [{"name": name, "uploadUrl": address + name} for name in variables["files"]]
            data["createRunFiles"] = {"runID": "abc", "uploadHeaders": [], "files": files}
        return data


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()
