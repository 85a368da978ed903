"""A stand-in for the hub's HTTP interface, as far as an upload uses it; no test in here."""

import base64
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_of_a_test"


class Stub:
    """What was asked of the hub, and what it holds: repository -> path -> bytes."""

    def __init__(self):
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.objects: dict[str, bytes] = {}
        self.private: dict[str, str | None] = {}
        self.messages: list[str] = []
        self.branches: list[str] = []
        self.broken = False

    def answer(self, method, path, body):
        """(status, reply) of one request."""
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'someone'}/{asked['name']}"
            self.private[name] = asked.get("visibility")
            if name in self.repositories:
                return 409, {"error": "it exists", "url": f"{self.url}/{name}"}
            self.repositories[name] = {}
            return 200, {"url": f"{self.url}/{name}"}
        if "/branch/" in path:
            self.branches.append(path.rpartition("/")[2])
            known = self.branches[-1] in ("main", *self.branches[:-1])
            return (409, {"error": "it exists"}) if known else (201, {})
        if self.broken:
            return 403, {"error": "no room left in this account"}
        if path.startswith("/objects/"):
            self.objects[path.rpartition("/")[2]] = body
            return 200, {}
        if path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            actions = {
                each["oid"]: {"upload": {"href": f"{self.url}/objects/{each['oid']}"}}
                for each in objects
            }
            return 200, {
                "transfer": "basic",
                "objects": [{**each, "actions": actions[each["oid"]]} for each in objects],
            }
        name = "/".join(path.split("/")[3:5])
        if "/preupload/" in path:
            files = [
                {
                    "path": each["path"],
                    "uploadMode": "lfs" if each["path"].endswith("safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for each in json.loads(body)["files"]
            ]
            return 200, {"files": files}
        if "/commit/" in path:
            self._commit(self.repositories[name], body)
            url = f"{self.url}/{name}/commit/{len(self.messages):040x}"
            return 200, {"commitUrl": url, "commitOid": f"{len(self.messages):040x}"}
        if method == "GET" and name in self.repositories:
            return 200, {"id": name, "sha": "0" * 40, "siblings": [], "tags": [], "private": False}
        return 404, {"error": f"{method} {path}"}

    def _commit(self, repository, body):
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                self.messages.append(value["summary"])
            elif item["key"] == "file":
                repository[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                repository[value["path"]] = self.objects[value["oid"]]


@contextmanager
def served():
    """A stub at an address of its own, ``url``."""
    stub = Stub()

    class Handler(BaseHTTPRequestHandler):
        def _reply(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = self.path.partition("?")[0]
            knows = path.startswith("/objects/") or TOKEN in self.headers.get("Authorization", "")
            found = stub.answer(self.command, path, body) if knows else (401, {"error": "no token"})
            reply = json.dumps(found[1]).encode()
            self.send_response(found[0])
            if found[0] >= 400:
                self.send_header("X-Error-Message", found[1]["error"])
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        do_GET = do_POST = do_PUT = do_HEAD = _reply

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    stub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
