"""A small server of the JSON API of Google Cloud Storage, in memory, with the conditions that TensorStore relies on.

    with Server() as server:
        os.environ |= server.variables()

`server.refuse` makes it fail: a function of the method and the object's name that returns an HTTP status, or 0.
"""

import base64
import email
import hashlib
import json
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

BUCKET = "bucket"


class Server:
    """objects: (content, generation, time of the change) by name."""

    def __init__(self):
        self.objects = {}
        self.uploads = {}
        self.lock = threading.Lock()
        self.refuse = lambda method, name: 0
        self.log = []
        self._count = 0
        self.http = _Http(("127.0.0.1", 0), type("Handler", (_Handler,), {"store": self}))
        self.address = f"http://127.0.0.1:{self.http.server_port}"

    def __enter__(self):
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()

    def variables(self):
        """The environment in which gcsfs and TensorStore use this server."""
        return {
            "STORAGE_EMULATOR_HOST": self.address, "TENSORSTORE_GCS_HTTP_URL": self.address,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
        }  # fmt: skip

    def put(self, name, content):
        """Store an object. Call it with `lock` held."""
        self._count += 1
        self.objects[name] = (content, self._count, time.time())
        return self.resource(name)

    def resource(self, name):
        content, generation, changed = self.objects[name]
        when = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(changed))
        return {
            "kind": "storage#object", "name": name, "bucket": BUCKET, "generation": str(generation), "id": name,
            "metageneration": "1", "size": str(len(content)), "updated": when, "timeCreated": when,
            "md5Hash": base64.b64encode(hashlib.md5(content).digest()).decode(), "storageClass": "STANDARD",
            "contentType": "application/octet-stream", "etag": str(generation),
        }  # fmt: skip


class _Http(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """A client that closed its connection is no error of the server."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and content are sent apart, and must not wait for each other
    wbufsize = -1
    store: Server

    def log_message(self, *_):
        pass

    def _reply(self, status, content=b"", **headers):
        if isinstance(content, (dict, list)):
            content = json.dumps(content).encode()
            headers.setdefault("Content-Type", "application/json")
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        if status != 304:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if status != 304:
            self.wfile.write(content)

    def _fail(self, status):
        message = {403: "the account may not write here", 404: "not found", 412: "conditionNotMet",
                   429: "the quota is used up"}  # fmt: skip
        self._reply(status, {"error": {"code": status, "message": message.get(status, "refused")}})

    def _handle(self, method):
        url = urlsplit(self.path)
        query = {k: v[0] for k, v in parse_qs(url.query, keep_blank_values=True).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = url.path.removeprefix("/download")
        upload = path.startswith("/upload")
        parts = path.removeprefix("/upload").removeprefix("/storage/v1").strip("/").split("/")
        name = unquote("/".join(parts[3:])) if len(parts) > 3 else query.get("name", "")
        with self.store.lock:
            self.store.log.append((method, name))
            status = self.store.refuse(method, name)
            if status:
                return self._fail(status)
            if parts[0] == "batch":
                return self._batch(body)
            if parts[:2] != ["b", BUCKET]:
                return self._fail(404)
            if upload:
                return self._upload(method, query, body)
            if parts == ["b", BUCKET]:
                return self._reply(200, {"kind": "storage#bucket", "name": BUCKET, "id": BUCKET})
            if len(parts) == 3:
                return self._list(query)
            if method == "POST" and ("rewriteTo" in parts or "copyTo" in parts):
                return self._copy(parts)
            return self._object(method, name, query)

    def _condition(self, name, query):
        """The status for a condition that is not met; 0 if all are."""
        now = self.store.objects[name][1] if name in self.store.objects else 0
        if "ifGenerationMatch" in query and int(query["ifGenerationMatch"]) != now:
            return 412
        if "ifGenerationNotMatch" in query and int(query["ifGenerationNotMatch"]) == now:
            return 304
        return 0

    def _object(self, method, name, query):
        if method == "DELETE":
            if status := self._condition(name, query):
                return self._fail(status)
            return self._reply(204) if self.store.objects.pop(name, None) is not None else self._fail(404)
        if name not in self.store.objects:
            return self._fail(404)
        content, generation, _ = self.store.objects[name]
        if status := self._condition(name, query):
            return self._reply(304) if status == 304 else self._fail(status)
        if query.get("alt") != "media":
            return self._reply(200, self.store.resource(name))
        known = {"x_goog_generation": generation, "x_goog_stored_content_length": len(content)}
        asked = self.headers.get("Range", "")
        if not asked.startswith("bytes="):
            return self._reply(200, content, **known)
        first, last = asked[6:].split("-")
        start = int(first) if first else max(0, len(content) - int(last))
        end = min(len(content), int(last) + 1 if first and last else len(content))
        if start >= len(content):
            return self._reply(416, **known, Content_Range=f"bytes */{len(content)}")
        return self._reply(206, content[start:end], **known, Content_Range=f"bytes {start}-{end - 1}/{len(content)}")

    def _upload(self, method, query, body):
        kind = query.get("uploadType")
        if "upload_id" in query:
            return self._part(query["upload_id"], body)
        if kind == "resumable":
            name = query.get("name") or json.loads(body or b"{}")["name"]
            number = uuid.uuid4().hex
            self.store.uploads[number] = (name, query, b"")
            place = f"{self.store.address}{urlsplit(self.path).path}?uploadType=resumable&upload_id={number}"
            return self._reply(200, Location=place)
        name, content = query.get("name"), body
        if kind == "multipart":
            whole = b"Content-Type: " + self.headers["Content-Type"].encode() + b"\r\n\r\n" + body
            meta, data = email.message_from_bytes(whole).get_payload()
            name = name or json.loads(meta.get_payload(decode=True))["name"]
            boundary = body.split(b"\r\n", 1)[0] if body.startswith(b"--") else body.split(b"\n", 1)[0]
            content = body.split(boundary.strip())[2]
            content = content.split(b"\n\n" if b"\r\n\r\n" not in content[:200] else b"\r\n\r\n", 1)[1]
            content = content.removesuffix(b"\n").removesuffix(b"\r")
            assert data is not None
        if status := self._condition(name, query):
            return self._fail(status)
        return self._reply(200, self.store.put(name, content))

    def _part(self, number, body):
        name, query, content = self.store.uploads[number]
        content += body
        total = self.headers.get("Content-Range", "bytes */*").rpartition("/")[2]
        if total == "*" or len(content) < int(total):
            self.store.uploads[number] = (name, query, content)
            return self._reply(308, **({"Range": f"bytes=0-{len(content) - 1}"} if content else {}))
        del self.store.uploads[number]
        if status := self._condition(name, query):
            return self._fail(status)
        return self._reply(200, self.store.put(name, content))

    def _list(self, query):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        low, high = query.get("startOffset", ""), query.get("endOffset", "")
        items, prefixes = [], set()
        for name in sorted(self.store.objects):
            if not name.startswith(prefix) or name < low or (high and name >= high):
                continue
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                prefixes.add(prefix + rest.split(delimiter, 1)[0] + delimiter)
            else:
                items.append(self.store.resource(name))
        return self._reply(200, {"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)})

    def _copy(self, parts):
        verb = "rewriteTo" if "rewriteTo" in parts else "copyTo"
        where = parts.index(verb)
        source, target = unquote("/".join(parts[3:where])), unquote("/".join(parts[where + 4 :]))
        if source not in self.store.objects:
            return self._fail(404)
        made = self.store.put(target, self.store.objects[source][0])
        return self._reply(200, {"done": True, "resource": made} if verb == "rewriteTo" else made)

    def _batch(self, body):
        """Deletions, which gcsfs sends together."""
        boundary = self.headers["Content-Type"].partition("boundary=")[2].strip('"')
        out = []
        for part in body.decode().split(f"--{boundary}"):
            line = next((one for one in part.splitlines() if one.startswith("DELETE ")), "")
            if line:
                name = unquote(urlsplit(line.split()[1]).path.partition("/o/")[2])
                status = self.store.refuse("DELETE", name)
                code = status or (204 if self.store.objects.pop(name, None) is not None else 404)
                out.append(f"Content-Type: application/http\r\n\r\nHTTP/1.1 {code} done\r\n\r\n")
        text = "".join(f"--reply\r\n{one}\r\n" for one in out) + "--reply--\r\n"
        self._reply(200, text.encode(), Content_Type="multipart/mixed; boundary=reply")

    def do_GET(self):
        self._handle("GET")

    def do_POST(self):
        self._handle("POST")

    def do_PUT(self):
        self._handle("PUT")

    def do_DELETE(self):
        self._handle("DELETE")

    def do_PATCH(self):
        self._handle("PATCH")
