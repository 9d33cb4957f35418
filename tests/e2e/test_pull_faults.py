"""A hub and a CDN that cut, stall, slow down, corrupt, lie, redirect and limit: each pull ends in the whole model, or in an
error that says what to do, and never in anything half-written that shows."""
import concurrent.futures
import errno
import json
import socket
import subprocess
import threading
import time

import pytest

from conftest import until
from hub_server import Hub
from hub_tools import Cache, noise, small_files

SIZE = 3 << 20  # of acme/tiny's weights


def test_a_redirect_back_from_elsewhere_has_no_token(hub, cache):
    """What another origin makes us ask of the hub is asked as a stranger."""
    target = f"{hub.cdn_url}/bounce"
    hub.fault("resolve", path="/config.json", redirect=target, times=1)
    hub.fault("cdn", path="/bounce", redirect=f"{hub.url}/acme/tiny/resolve/main/config.json")
    cache.pull("acme/tiny", HF_TOKEN="hf_member")
    asked = [r for r in hub.requests if r.path.endswith("/config.json") or r.path == "/bounce"]
    at = [r.path for r in asked].index("/bounce")
    assert "authorization" in asked[at - 1].headers
    assert asked[at + 1].path.endswith("/config.json") and "authorization" not in asked[at + 1].headers


def label(fault):
    return "-".join(f"{k}={v}"[:24] for k, v in fault.items() if k not in ("headers", "method", "times", "body"))


def in_parallel(the_hub, folder, faults):
    """A pull for each fault, each from a hub of its own with the same repositories: mostly they wait. -> [(hub, cache, run)]"""
    def one(item):
        i, fault = item
        hub = Hub()
        hub.repos, hub.tokens = the_hub.repos, the_hub.tokens
        cache = Cache(hub, folder / str(i))
        hub.fault(**fault)
        # Short where nothing comes on purpose; elsewhere a machine that stands still for a moment is no stall.
        stall_ms = 1000 if "stall" in fault or "silent" in fault else 20000
        begin = time.monotonic()
        done = cache.run("pull", "acme/tiny", INFERD_DOWNLOAD_STALL_MS=str(stall_ms))
        done.took = time.monotonic() - begin
        return hub, cache, done

    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        return list(pool.map(one, enumerate(faults)))


PASSING = [
    dict(kind="cdn", cut=10000, times=20),
    dict(kind="cdn", cut=0, times=2),
    dict(kind="cdn", reset=True, times=4),
    dict(kind="cdn", stall=5000, times=3),
    dict(kind="cdn", silent=True, times=2),
    dict(kind="cdn", status=500, times=2),
    dict(kind="cdn", status=503, headers={"Retry-After": "0"}, times=2),
    dict(kind="cdn", status=403, times=3),  # an address that expired
    dict(kind="cdn", corrupt=1234567, times=1),
    dict(kind="cdn", no_ranges=True),
    dict(kind="cdn", no_ranges=True, cut=1 << 20, times=1),
    dict(kind="cdn", wrong_range=1000, times=1),
    dict(kind="cdn", size=-100, times=2),
    dict(kind="cdn", encoding="gzip", times=1),
    dict(kind="cdn", rate=400000, times=2),
    dict(kind="resolve", status=500, times=2),
    dict(kind="resolve", reset=True, times=2),
    dict(kind="resolve", path="json", cut=3, method="GET", times=2),
    dict(kind="resolve", path="config.json", corrupt=2, method="GET", times=1),
    dict(kind="info", status=502, times=2),
    dict(kind="info", silent=True, times=1),
    dict(kind="info", cut=50, times=1),
    dict(kind="tree", status=504, times=1),
    dict(kind="any", status=429, headers={"Retry-After": "1"}, times=2),
    dict(kind="any", status=429, headers={"RateLimit": '"api";r=0;t=1'}, times=1),
]


@pytest.fixture(scope="module")
def passed(the_hub, tmp_path_factory):
    results = in_parallel(the_hub, tmp_path_factory.mktemp("passing"), PASSING)
    yield results
    for hub, _, _ in results:
        hub.close()


@pytest.mark.parametrize("i", range(len(PASSING)), ids=[label(f) for f in PASSING])
def test_what_passes(passed, i):
    hub, cache, done = passed[i]
    assert done.returncode == 0, done.stderr
    assert hub.faults[0].used and hub.leaks() == []
    cache.check("acme/tiny")


FAILING = [
    (dict(kind="cdn", corrupt=1234567), ["model.safetensors", "sha256", "3 times"]),
    (dict(kind="resolve", path="config.json", corrupt=2, method="GET"), ["config.json", "sha1"]),
    (dict(kind="cdn", status=500), ["model.safetensors", "500", "again later"]),
    (dict(kind="cdn", status=403, headers={"X": "y"}), ["model.safetensors", "403", "storage"]),
    (dict(kind="cdn", stall=0), ["model.safetensors", "no byte came", "kept"]),
    (dict(kind="cdn", reset=True), ["model.safetensors", "kept"]),
    (dict(kind="cdn", size=1000), ["model.safetensors", "bytes where the hub told"]),
    (dict(kind="cdn", encoding="gzip"), ["model.safetensors", "compressed"]),
    (dict(kind="cdn", wrong_range=1000), ["model.safetensors", "another range"]),
    (dict(kind="cdn", redirect="{self}"), ["model.safetensors", "redirects"]),
    (dict(kind="resolve", path="model", size=1000), ["model.safetensors", "bytes where the hub told"]),
    (dict(kind="resolve", path="model", size=1 << 55), ["model.safetensors", "size"]),
    (dict(kind="info", redirect="{self}"), ["acme/tiny", "redirects"]),
    (dict(kind="info", status=500), ["acme/tiny", "500"]),
    (dict(kind="info", status=200, body=b"<html>Log in to the guest network</html>"), ["acme/tiny", "JSON"]),
    (dict(kind="info", status=200, body=b'{"sha":"../../etc"}'), ["acme/tiny", "commit"]),
    (dict(kind="tree", status=200, body=json.dumps([{"type": "file", "path": "../../../../etc/passwd", "size": 1,
                                                     "oid": "0" * 40}]).encode()), ["acme/tiny", "etc/passwd", "safe"]),
    (dict(kind="any", status=429, headers={"Retry-After": "100000"}), ["acme/tiny", "429", "100000", "HF_TOKEN"]),
    (dict(kind="any", status=403, body=b'{"error":"Access is disabled"}'), ["acme/tiny", "disabled"]),
    (dict(kind="resolve", status=302, headers={"Location": "ftp://127.0.0.1/x"}), ["acme/tiny", "ftp"]),
    (dict(kind="resolve", status=302, headers={"Location": "file:///etc/passwd"}), ["acme/tiny", "file"]),
    (dict(kind="resolve", status=302), ["acme/tiny", "Location"]),
]


@pytest.fixture(scope="module")
def failed(the_hub, tmp_path_factory):
    results = in_parallel(the_hub, tmp_path_factory.mktemp("failing"), [f for f, _ in FAILING])
    yield results
    for hub, _, _ in results:
        hub.close()


@pytest.mark.parametrize("i", range(len(FAILING)), ids=[label(f) for f, _ in FAILING])
def test_what_does_not_pass(failed, i):
    hub, cache, done = failed[i]
    assert done.returncode > 0, (done.stdout, done.stderr)
    for word in FAILING[i][1]:
        assert word in done.stderr, done.stderr
    assert done.took < 30 and hub.leaks() == []
    cache.nothing_visible("acme/tiny")
    hub.faults.clear()
    cache.pull("acme/tiny")  # and when the fault is gone all is well
    cache.check("acme/tiny")


def test_every_byte_that_came_is_kept(hub, cache):
    """A line that breaks after each 200 kB for good: pull after pull goes on."""
    hub.fault("cdn", cut=200000, times=8)
    hub.fault("cdn", reset=True)
    n = 0
    while cache.run("pull", "acme/tiny").returncode:
        hub.faults[0].used = 0
        n += 1
        assert n < 20
    cache.check("acme/tiny")
    assert n > 0 and hub.sent() < 1.02 * SIZE


def test_progress_never_falls_nor_stands_at_the_end(hub, cache):
    hub.rate = 2 << 20
    hub.fault("cdn", corrupt=3000000, times=1)
    p = cache.start("pull", "acme/tiny")
    assert p.wait(60) == 0
    assert p.stdout.read().count("done model.safetensors") == 1
    cache.check("acme/tiny")


def test_the_bandwidth_cap(hub, cache, tmp_path):
    def seconds(cache, **env):
        begin = time.monotonic()
        cache.pull("acme/tiny", **env)
        return time.monotonic() - begin

    free = seconds(Cache(hub, tmp_path / "free"))
    assert 0.8 < seconds(cache, INFERD_DOWNLOAD_RATE=str(SIZE)) < 4 + 5 * free
    cache.check("acme/tiny")


def test_a_wait_that_the_hub_asks_for_is_kept_and_told(hub, cache):
    hub.fault("info", status=429, headers={"Retry-After": "2"}, times=1)
    begin = time.monotonic()
    cache.pull("acme/tiny")
    assert time.monotonic() - begin >= 2


def test_several_connections_and_files(hub, cache):
    hub.rate = 128 << 10
    p = cache.start("pull", "acme/sharded")
    most = 0
    while p.poll() is None:
        most = max(most, sum(r.kind == "cdn" and r.status == 206 and not r.over for r in list(hub.requests)))
        if most >= 4:
            hub.rate = 0
        time.sleep(0.01)
    assert p.returncode == 0 and most >= 4
    cache.check("acme/sharded")


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=68m", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("a small tmpfs cannot be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk(hub, small_disk):
    """Refused before a byte is fetched; where the disk fills meanwhile: a clean end, and what came is kept."""
    cache = Cache(hub, small_disk / "home")
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * (3 << 20))
    message = cache.refuse("acme/tiny")
    assert "disk space" in message and "HF_HUB_CACHE" in message and hub.sent() == 0
    filler.unlink()
    hub.rate = 2 << 20
    p = cache.start("pull", "acme/tiny")
    while hub.sent() < 1 << 20:
        assert p.poll() is None
        time.sleep(0.01)
    hub.rate = 64 << 10  # however long it takes to fill the disk, the pull has not come to its end
    # Without a buffer: what a full disk refused would be written once more on closing, and fail there.
    with open(filler, "wb", buffering=0) as f:
        try:
            while f.write(b"x" * (1 << 16)):
                pass
        except OSError as e:
            assert e.errno == errno.ENOSPC
    hub.rate = 2 << 20
    assert p.wait(60) == 1
    message = p.stderr.read()
    assert "space" in message and "pull again" in message
    cache.nothing_visible("acme/tiny")
    filler.unlink()
    hub.rate = 0
    cache.pull("acme/tiny")
    cache.check("acme/tiny")
    assert hub.sent() < 1.15 * SIZE


def test_a_full_disk_under_the_store(start_at, small_disk):
    """What cannot be written is told, by /health too as long as it lasts; chat goes on."""
    s = start_at(small_disk / "data")
    chat = {"model": "gpt2-f32", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
    assert s.post("/chat", {**chat, "session_id": "old"}).status_code == 200
    with open(small_disk / "filler", "wb", buffering=0) as f:
        try:
            while f.write(b"x" * 4096):
                pass
        except OSError:
            pass
    r = s.post("/chat", {**chat, "session_id": "a"})
    assert r.status_code == 500 and "full" in r.json()["error"]["message"], r.text
    r = s.delete("/sessions/old")  # the store's log has no room for it, either
    error = r.json()["error"]
    assert (r.status_code, error["code"]) == (500, "io_error"), r.text
    assert "full" in error["message"] and "make room" in error["message"] and "delete" in error["message"], error
    assert s.get("/sessions/old").json()["message_count"] == 2
    for _ in range(30):  # reading succeeds meanwhile, and is no sign of health
        assert s.get("/jobs").status_code == 200
        health = s.get("/health").json()
        assert health["status"] == "degraded" and "full" in health["reasons"][0], health
        time.sleep(0.1)
    assert s.post("/chat", chat).status_code == 200
    (small_disk / "filler").unlink()
    assert until(lambda: s.get("/health").json()["status"] == "healthy")
    assert s.post("/chat", {**chat, "session_id": "a"}).status_code == 200
    assert s.delete("/sessions/old").status_code in (200, 204) and s.get("/sessions/old").status_code == 404


def test_a_repository_of_many_files(hub, cache):
    """More files than a page, an answer or a connection pool holds; two of them equal, one empty."""
    shards = {f"model-{i:05d}-of-00060.safetensors": noise(1000 + i, 100 + i) for i in range(1, 61)}
    shards["model-00007-of-00060.safetensors"] = shards["model-00008-of-00060.safetensors"]
    index = {"weight_map": {str(i): n for i, n in enumerate(shards)}}
    hub.add("acme/many", {**small_files(), **shards, "special_tokens_map.json": b"",
                          "model.safetensors.index.json": json.dumps(index).encode()})
    hub.page = 7
    cache.pull("acme/many")
    cache.check("acme/many")
    assert len(cache.files("acme/many")) == 66


def test_headers_without_end(cache):
    """Each line may be one that counts; nothing is kept of them, and the pull ends."""
    server = socket.create_server(("127.0.0.1", 0))

    def flood():
        while True:
            try:
                line, _ = server.accept()
            except OSError:
                return
            try:
                line.sendall(b"HTTP/1.1 200 OK\r\n")
                while True:
                    line.sendall(b"x-linked-etag: abc\r\nlink: <http://x>; rel=next\r\n" * 500)
            except OSError:
                line.close()

    threading.Thread(target=flood, daemon=True).start()
    message = cache.refuse("acme/tiny", HF_ENDPOINT=f"http://127.0.0.1:{server.getsockname()[1]}")
    server.close()
    assert "headers" in message and "acme/tiny" in message


def test_a_password_in_the_address_is_not_shown(hub, cache):
    for name in ("acme/nothing", "acme/gated"):
        message = cache.refuse(name, HF_ENDPOINT=hub.url.replace("//", "//somebody:s3cr%20et@"))
        assert name in message and "127.0.0.1" in message and "s3cr" not in message and "somebody" not in message
    message = cache.refuse("acme/tiny", HF_ENDPOINT="http://user:secret@127.0.0.1:9")
    assert "127.0.0.1:9" in message and "secret" not in message
