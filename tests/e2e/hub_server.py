"""A hub of model repositories as huggingface.co is one, on loopback, that can be told to misbehave.

Two origins: the hub (API, small files, redirects) and a CDN (large files, signed addresses that expire). Every request is
recorded with its origin, headers and the bytes of body that were sent. A fault is a rule (kind, path, method, how often)
with what is to go wrong. `python3 tests/e2e/hub_server.py FOLDER` serves every FOLDER/org/name as a repository.
"""
import dataclasses
import hashlib
import hmac
import http.server
import json
import pathlib
import re
import socket
import sys
import threading
import time
import urllib.parse

SECRET = b"the CDN's secret"
BLOCK = 64 << 10
SIGNED_FOR_S = 3600


class File:
    """Bytes of a repository: `data` is bytes or a path of a file on disk."""

    def __init__(self, data, lfs=None):
        self.data = data
        self.size = data.stat().st_size if isinstance(data, pathlib.Path) else len(data)
        self.lfs = self.size > 10 << 20 if lfs is None else lfs
        sha256, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % self.size)
        for block in self.blocks(0, self.size):
            sha256.update(block)
            git.update(block)
        self.sha256, self.git = sha256.hexdigest(), git.hexdigest()
        if self.lfs:  # git holds a pointer only
            pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n".encode()
            self.pointer_size = len(pointer)
            self.git = hashlib.sha1(b"blob %d\0" % len(pointer) + pointer).hexdigest()

    @property
    def etag(self):
        return self.sha256 if self.lfs else self.git

    def blocks(self, begin, end):
        if isinstance(self.data, pathlib.Path):
            with open(self.data, "rb") as f:
                f.seek(begin)
                while begin < end:
                    block = f.read(min(BLOCK * 4, end - begin))
                    begin += len(block)
                    yield block
            return
        view = memoryview(self.data)
        while begin < end:
            yield view[begin:min(begin + BLOCK, end)]
            begin += BLOCK


def is_lfs(path, size):
    return size > 10 << 20 or path.endswith((".safetensors", ".gguf", ".bin", ".pt", ".onnx", ".model"))


class Repo:
    def __init__(self, files, gated=False, private=False):
        self.gated, self.private = gated, private
        self.commits, self.refs = {}, {}
        self.commit(files)

    def commit(self, files, ref="main"):
        made = {}
        for path, data in files.items():
            size = data.stat().st_size if isinstance(data, pathlib.Path) else len(data)
            made[path] = data if isinstance(data, File) else File(data, is_lfs(path, size))
        text = json.dumps([sorted((p, f.sha256) for p, f in made.items()), len(self.commits)])
        sha = hashlib.sha1(text.encode()).hexdigest()
        self.commits[sha] = made
        self.refs[ref] = sha
        return sha

    def resolve(self, revision):
        revision = self.refs.get(revision, revision)
        return revision if revision in self.commits else None


@dataclasses.dataclass
class Fault:
    """What goes wrong with requests of `kind` (info, tree, resolve, cdn, any) whose path matches, `times` times."""
    kind: str
    path: str = ""
    method: str = "GET|HEAD"
    times: int = 1 << 30
    skip: int = 0               # first requests that are left alone
    status: int = 0             # answer this ...
    headers: dict = dataclasses.field(default_factory=dict)  # ... with these; or add these to the answer
    body: bytes = b'{"error":"Internal Error - we are working hard to fix this as soon as possible!"}'
    cut: int = -1               # close the connection after so many bytes of body
    stall: int = -1             # send nothing more after so many bytes, until the client leaves
    corrupt: int = -1           # flip a bit of the byte at this offset of the file
    rate: int = 0               # bytes per second
    size: int = 0               # add to X-Linked-Size (resolve), to Content-Length (cdn)
    no_ranges: bool = False     # answer Range with 200 and all
    wrong_range: int = 0        # shift what is sent and said
    redirect: str = ""          # to here; "{self}" is the address itself
    silent: bool = False        # take the request and never answer
    hold: threading.Event | None = None  # answer when it is set
    reset: bool = False         # close without a byte
    encoding: str = ""          # claim this Content-Encoding
    used: int = 0


@dataclasses.dataclass
class Request:
    origin: str
    kind: str
    method: str
    path: str
    headers: dict
    status: int = 0
    sent: int = 0
    begin: int = 0
    over: bool = False


class Hub:
    def __init__(self):
        self.repos, self.tokens, self.faults, self.requests = {}, {}, [], []
        self.lock = threading.Lock()
        self.page = 1000            # entries of a page of the tree
        self.tree = True            # False: a mirror without that route
        self.git_redirect = False   # small files by a relative redirect, as the hub does since 2025
        self.rate = 0               # bytes per second of all file bodies together
        self._next_byte = 0.0
        self.closing = False
        self.hub, self.cdn = self._serve("hub"), self._serve("cdn")
        self.url = f"http://127.0.0.1:{self.hub.server_port}"
        self.cdn_url = f"http://127.0.0.1:{self.cdn.server_port}"

    def _serve(self, origin):
        hub = self

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, request, client_address):
                if not isinstance(sys.exc_info()[1], OSError):
                    super().handle_error(request, client_address)

        server = Server(("127.0.0.1", 0), type("H", (Handler,), {"hub": hub, "origin": origin}))
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return server

    def close(self):
        self.closing = True
        for s in (self.hub, self.cdn):
            s.shutdown()
            s.server_close()

    def add(self, name, files, **kw):
        self.repos[name] = Repo(files, **kw)
        return self.repos[name]

    def fault(self, kind, **kw):
        self.faults.append(Fault(kind, **kw))
        return self.faults[-1]

    def reset(self):
        with self.lock:
            self.faults, self.requests, self.rate, self.tree, self.page, self.git_redirect = [], [], 0, True, 1000, False

    def sent(self, kind="cdn"):
        """Bytes of good bodies that left for files of this origin."""
        return sum(r.sent for r in list(self.requests) if r.kind == kind and r.status in (200, 206))

    def count(self, kind, method="GET"):
        return sum(r.kind == kind and r.method == method for r in list(self.requests))

    def leaks(self):
        """Requests to the CDN that carried a token."""
        return [r for r in self.requests if r.origin == "cdn" and "authorization" in r.headers]

    def pace(self, n, rate):
        """Sleeps so that all bodies together keep to `rate`."""
        with self.lock:
            now = time.monotonic()
            self._next_byte = max(self._next_byte, now - 0.05) + n / rate
            wait = self._next_byte - now
        if wait > 0:
            time.sleep(wait)

    def sign(self, path, expires):
        return hmac.new(SECRET, f"{path}:{expires}".encode(), "sha256").hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 0
    disable_nagle_algorithm = True
    hub: Hub
    origin: str

    def log_message(self, *a):
        pass

    def do_GET(self):
        self.answer()

    def do_HEAD(self):
        self.answer()

    # ---- answering ------------------------------------------------------------------------------------------------------

    def reply(self, status, body=b"", headers=None):
        self.record.status = status
        self.send_response(status)
        for k, v in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(k, v)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def reply_json(self, value, headers=None):
        self.reply(200, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def error(self, status, code, message):
        self.reply(status, json.dumps({"error": message}).encode(),
                   {"Content-Type": "application/json", "X-Error-Code": code, "X-Error-Message": message})

    def kind_of(self, path):
        if self.origin == "cdn":
            return "cdn"
        if path.startswith("/api/resolve-cache/"):
            return "resolve-cache"
        if path.startswith("/api/models/"):
            return "tree" if "/tree/" in path else "info"
        return "resolve"

    def find_fault(self, kind, path):
        with self.hub.lock:
            for f in self.hub.faults:
                if f.kind in (kind, "any") and re.search(f.path, path) and re.fullmatch(f.method, self.command):
                    f.used += 1
                    if f.skip < f.used <= f.skip + f.times:
                        return f
        return Fault(kind)

    def answer(self):
        self.record = None
        try:
            self.answer_one()
        finally:
            if self.record:
                self.record.over = True

    def answer_one(self):
        url = urllib.parse.urlsplit(self.path)
        path = urllib.parse.unquote(url.path)
        kind = self.kind_of(path)
        self.record = Request(self.origin, kind, self.command, path, {k.lower(): v for k, v in self.headers.items()})
        with self.hub.lock:
            self.hub.requests.append(self.record)
        self.fault = f = self.find_fault(kind, path)
        if f.hold:
            f.hold.wait()
        if f.silent or f.reset:
            self.close_connection = True
            if f.silent:
                self.wait_for_leave()
            self.connection.close()
            return
        if f.redirect:
            self.reply(302, b"", {"Location": f.redirect.replace("{self}", self.path), **f.headers})
            return
        if f.status:
            self.reply(f.status, f.body, {"Content-Type": "application/json", **f.headers})
            return
        getattr(self, "do_" + kind.replace("-", "_"))(path, urllib.parse.parse_qs(url.query))

    def wait_for_leave(self):
        self.connection.settimeout(0.1)
        while not self.hub.closing:
            try:
                if not self.connection.recv(1):
                    return
            except TimeoutError:
                continue
            except OSError:
                return

    # ---- who may see what -------------------------------------------------------------------------------------------------

    def user(self):
        header = self.headers.get("Authorization", "")
        return self.hub.tokens.get(header.removeprefix("Bearer "))

    def repo_of(self, name, content):
        """The repository, or None after an error was answered. `content`: its files are asked for, not only its names."""
        repo, user = self.hub.repos.get(name), self.user()
        if self.headers.get("Authorization") and user is None:
            self.error(401, "RepoNotFound", "Invalid username or password.")
            return None
        if repo is None or (repo.private and (user is None or name not in user)):
            if user is None:
                self.error(401, "RepoNotFound", "Invalid username or password.")
            else:
                self.error(404, "RepoNotFound", "Repository not found")
            return None
        if repo.gated and content and (user is None or name not in user):
            message = (f"Access to model {name} is restricted. You must have access to it and be authenticated to access it. "
                       "Please log in." if user is None else
                       f"Access to model {name} is restricted and you are not in the authorized list. "
                       f"Visit https://huggingface.co/{name} to ask for access.")
            self.error(401 if user is None else 403, "GatedRepo", message)
            return None
        return repo

    def commit_of(self, repo, revision):
        sha = repo.resolve(revision)
        if sha is None:
            self.error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha

    # ---- the API ------------------------------------------------------------------------------------------------------------

    def do_info(self, path, query):
        raw = urllib.parse.urlsplit(self.path).path  # a revision's slashes come as %2F
        m = re.fullmatch(r"/api/models/([^/]+(?:/[^/]+)?)(?:/revision/([^/]+))?", raw)
        if not m:
            self.error(404, "", "Sorry, we can't find the page you are looking for.")
            return
        name, revision = m[1], urllib.parse.unquote(m[2] or "main")
        repo = self.repo_of(name, False)
        sha = repo and self.commit_of(repo, revision)
        if not sha:
            return
        siblings = []
        for p, f in sorted(repo.commits[sha].items()):
            s = {"rfilename": p}
            if "blobs" in query:
                s |= {"size": f.size, "blobId": f.git}
                if f.lfs:
                    s["lfs"] = {"sha256": f.sha256, "size": f.size, "pointerSize": f.pointer_size}
            siblings.append(s)
        self.reply_json({"_id": "x", "id": name, "modelId": name, "author": name.split("/")[0], "sha": sha,
                         "lastModified": "2025-01-01T00:00:00.000Z", "private": repo.private,
                         "gated": "manual" if repo.gated else False, "disabled": False, "tags": ["text-generation"],
                         "downloads": 1, "likes": 1, "createdAt": "2025-01-01T00:00:00.000Z", "siblings": siblings})

    def do_tree(self, path, query):
        raw = urllib.parse.urlsplit(self.path).path
        m = re.fullmatch(r"/api/models/([^/]+(?:/[^/]+)?)/tree/([^/]+)", raw)
        if not m or not self.hub.tree:
            self.error(404, "", "Sorry, we can't find the page you are looking for.")
            return
        repo = self.repo_of(m[1], False)
        sha = repo and self.commit_of(repo, urllib.parse.unquote(m[2]))
        if not sha:
            return
        entries, folders = [], set()
        for p, f in sorted(repo.commits[sha].items()):
            for i in (i for i, c in enumerate(p) if c == "/"):
                if p[:i] not in folders:
                    folders.add(p[:i])
                    entries.append({"type": "directory", "oid": hashlib.sha1(p[:i].encode()).hexdigest(), "size": 0,
                                    "path": p[:i]})
            e = {"type": "file", "oid": f.git, "size": f.size, "path": p}
            if f.lfs:
                e["lfs"] = {"oid": f.sha256, "size": f.size, "pointerSize": f.pointer_size}
            entries.append(e)
        at = int(query.get("cursor", ["0"])[0])
        headers = {}
        if at + self.hub.page < len(entries):
            rest = urllib.parse.urlencode({"recursive": "true", "cursor": at + self.hub.page})
            headers["Link"] = f'<{self.hub.url}{raw}?{rest}>; rel="next"'
        self.reply_json(entries[at:at + self.hub.page], headers)

    # ---- files --------------------------------------------------------------------------------------------------------------

    def do_resolve(self, path, query):
        raw = urllib.parse.urlsplit(self.path).path
        m = re.fullmatch(r"/([^/]+(?:/[^/]+)?)/resolve/([^/]+)/(.+)", raw)
        if not m:
            self.error(404, "", "Sorry, we can't find the page you are looking for.")
            return
        name, revision, file_path = m[1], urllib.parse.unquote(m[2]), urllib.parse.unquote(m[3])
        repo = self.repo_of(name, True)
        sha = repo and self.commit_of(repo, revision)
        if not sha:
            return
        f = repo.commits[sha].get(file_path)
        if f is None:
            self.error(404, "EntryNotFound", "Entry not found")
            return
        headers = {"X-Repo-Commit": sha, "Accept-Ranges": "bytes", "X-Request-Id": "Root=1", **self.fault.headers}
        if f.lfs:
            expires = int(time.time()) + SIGNED_FOR_S
            where = f"/{name}/{f.sha256}"
            query = urllib.parse.urlencode({"response-content-disposition": f'inline; filename="{file_path}";',
                                            "Expires": expires, "Signature": self.hub.sign(where, expires)})
            text = f"Found. Redirecting to {self.hub.cdn_url}{where}".encode()
            self.reply(302, text, {"X-Linked-Size": str(f.size + self.fault.size), "X-Linked-ETag": f'"{f.etag}"',
                                   "Location": f"{self.hub.cdn_url}{where}?{query}", **headers})
        elif self.hub.git_redirect:
            where = f"/api/resolve-cache/models/{name}/{sha}/{urllib.parse.quote(file_path)}"
            self.reply(307, b"Temporary Redirect.", {"X-Linked-Size": str(f.size + self.fault.size),
                                                     "X-Linked-ETag": f'"{f.etag}"', "Location": where, **headers})
        else:
            self.send_file(f, {"ETag": f'"{f.etag}"', **headers})

    def do_resolve_cache(self, path, query):
        m = re.fullmatch(r"/api/resolve-cache/models/([^/]+/[^/]+)/([0-9a-f]{40})/(.+)", path)
        repo = m and self.repo_of(m[1], True)
        if repo:
            f = repo.commits[m[2]][m[3]]
            self.send_file(f, {"ETag": f'"{f.etag}"', "X-Repo-Commit": m[2], "Accept-Ranges": "bytes"})

    def do_cdn(self, path, query):
        name, _, sha256 = path[1:].rpartition("/")
        expires = query.get("Expires", ["0"])[0]
        signature = query.get("Signature", [""])[0]
        if not hmac.compare_digest(signature, self.hub.sign(path, expires)) or int(expires) < time.time():
            self.reply(403, b"<Error><Code>AccessDenied</Code></Error>", {"Content-Type": "application/xml"})
            return
        repo = self.hub.repos[name]
        f = next(f for c in repo.commits.values() for f in c.values() if f.sha256 == sha256)
        self.send_file(f, {"ETag": f'"{hashlib.md5(sha256.encode()).hexdigest()}"', "Accept-Ranges": "bytes"})

    def send_file(self, f, headers):
        fault, begin, end, status = self.fault, 0, f.size, 200
        headers = {"Content-Type": "application/octet-stream", **headers, **fault.headers}
        m = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if m and not fault.no_ranges:
            begin, end = int(m[1]), min(int(m[2] or f.size) + 1 if m[2] else f.size, f.size)
            if begin >= f.size:
                self.reply(416, b"", {"Content-Range": f"bytes */{f.size}"})
                return
            status = 206
            shift = min(fault.wrong_range, f.size - end)
            begin, end = begin + shift, end + shift
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{f.size + fault.size}"
        if fault.encoding:
            headers["Content-Encoding"] = fault.encoding
        self.record.status, self.record.begin = status, begin
        self.send_response(status)
        for k, v in {**headers, "Content-Length": str(end - begin + fault.size)}.items():
            self.send_header(k, v)
        self.end_headers()
        if self.command != "HEAD":
            self.send_body(f, begin, end)

    def send_body(self, f, begin, end):
        fault, at = self.fault, begin
        if isinstance(f.data, pathlib.Path) and not self.hub.rate and fault == Fault(fault.kind):
            with open(f.data, "rb") as source:  # as fast as a server can be
                self.record.sent += self.connection.sendfile(source, begin, end - begin) if end > begin else 0
            return
        stop = min([x for x in (fault.cut, fault.stall) if x >= 0], default=1 << 62) + begin
        for block in f.blocks(begin, end):
            block = bytes(block[:stop - at]) if at + len(block) > stop else block
            if 0 <= fault.corrupt - at < len(block):
                block = bytearray(block)
                block[fault.corrupt - at] ^= 1
            rate = fault.rate or self.hub.rate
            step = min(4096, len(block)) if rate else len(block)  # little is under way when a client dies
            for i in range(0, len(block), step or 1):
                part = block[i:i + step]
                if fault.rate:
                    time.sleep(len(part) / rate)
                elif rate:
                    self.hub.pace(len(part), rate)
                try:
                    self.connection.sendall(part)
                except OSError:
                    self.close_connection = True
                    return
                self.record.sent += len(part)
            at += len(block)
            if at >= stop:
                break
        if fault.size:
            self.close_connection = True
        if at >= stop:
            self.close_connection = True
            if fault.stall >= 0:
                self.wait_for_leave()
            try:
                self.connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


def main():
    hub, root = Hub(), pathlib.Path(sys.argv[1])
    for folder in sorted(root.glob("*/*/")):
        files = {str(p.relative_to(folder)): p for p in sorted(folder.rglob("*")) if p.is_file()}
        hub.add(f"{folder.parent.name}/{folder.name}", files)
    print(f"export HF_ENDPOINT={hub.url}", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
