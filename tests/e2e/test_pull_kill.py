"""kill -9 at random moments of a pull: what shows is whole at every moment, the next pull goes on from the journal, and
nearly nothing is fetched twice."""
import concurrent.futures
import contextlib
import os
import random
import signal
import subprocess
import time

import pytest

from hub_server import Hub
from hub_tools import Cache, noise, small_files

SIZE = 6 << 20
RATE = 1 << 20
FILES = {**small_files(), "model-00001-of-00002.safetensors": noise(SIZE // 2, 1),
         "model-00002-of-00002.safetensors": noise(SIZE // 2, 2),
         "model.safetensors.index.json": b'{"weight_map":{"a":"model-00001-of-00002.safetensors",'
                                         b'"b":"model-00002-of-00002.safetensors"}}'}
WANTED = set(FILES) - {"README.md", ".gitattributes"}


def wait_for_moment(rng, hub, process):
    """At the start, while bytes come, or just when the last one came."""
    kind = rng.choice(["start", "bytes", "bytes", "bytes", "end"])
    if kind == "start":
        time.sleep(rng.random() * 0.15)
        return kind
    share = rng.random() if kind == "bytes" else 1
    while hub.sent() < share * SIZE and process.poll() is None:
        time.sleep(0.002)
    if kind == "end":
        time.sleep(rng.random() * 0.03)
    return kind


def consistent(cache):
    """Every blob is whole; a snapshot that is there is complete; a ref points to one."""
    root = cache.folder("acme/killed")
    etags = {f.etag: f for c in cache.hub.repos["acme/killed"].commits.values() for f in c.values()}
    for blob in (root / "blobs").iterdir() if root.exists() else []:
        if not blob.name.endswith((".incomplete", ".incomplete.next")):
            assert blob.read_bytes() == bytes(etags[blob.name].data), blob.name
    for snapshot in (root / "snapshots").iterdir() if (root / "snapshots").exists() else []:
        assert {p.name for p in snapshot.iterdir()} == WANTED
        assert all(p.exists() for p in snapshot.iterdir())
    for ref in (root / "refs").iterdir() if (root / "refs").exists() else []:
        assert ref.name.endswith(".tmp") or (root / "snapshots" / ref.read_text()).is_dir()


def unread(process):
    """Bytes that wait for a process in its sockets: sent, and not its own yet, however long it was not run. 0 where not told."""
    sockets, n = set(), 0
    for fd in os.listdir(f"/proc/{process.pid}/fd"):
        with contextlib.suppress(OSError):
            sockets.add(os.readlink(f"/proc/{process.pid}/fd/{fd}"))
    with contextlib.suppress(OSError), open("/proc/net/tcp") as f:
        for line in list(f)[1:]:
            words = line.split()
            if f"socket:[{words[9]}]" in sockets:
                n += int(words[4].partition(":")[2], 16)
    return n


def kill(process):
    """Returns what it had not read."""
    process.send_signal(signal.SIGSTOP)
    lost = unread(process) if process.poll() is None else 0
    process.kill()
    process.communicate()
    return lost


def one(args):
    folder, seed = args
    rng, hub = random.Random(seed), Hub()
    try:
        hub.add("acme/killed", FILES)
        hub.rate = RATE
        cache = Cache(hub, folder / str(seed))
        process = cache.start("pull", "acme/killed")
        kind = wait_for_moment(rng, hub, process)
        lost = kill(process)
        consistent(cache)
        hub.rate = 0
        cache.pull("acme/killed")
        cache.check("acme/killed")
        assert cache.files("acme/killed") == WANTED
        return kind, hub.sent() - lost
    except AssertionError as e:
        raise AssertionError(f"seed {seed}: {e}") from e
    finally:
        hub.close()


def kill_many(folder, n):
    start = int(os.environ.get("SEED", time.time_ns() % 1000000))
    print("SEED =", start)
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        results = list(pool.map(one, [(folder, start + i) for i in range(n)]))
    twice = sum(sent - SIZE for _, sent in results) / (n * SIZE)
    worst = max(sent - SIZE for _, sent in results) / SIZE
    print(f"{n} kills: {100 * twice:.2f} % fetched twice, at worst {100 * worst:.2f} %")
    assert 0 <= twice < 0.02


def test_kill_at_random_moments(tmp_path):
    kill_many(tmp_path, 12)


@pytest.mark.slow
def test_kill_at_200_random_moments(tmp_path):
    kill_many(tmp_path, 200)


def test_kill_again_and_again(tmp_path):
    """One pull that never gets more than a moment still ends."""
    hub = Hub()
    hub.add("acme/killed", FILES)
    hub.rate = 8 << 20
    cache, rng, n = Cache(hub, tmp_path), random.Random(3), 0
    hub.add("acme/small", {**small_files(), "model.safetensors": b"x"})
    begin = time.monotonic()
    for i in range(3):
        Cache(hub, tmp_path / str(i)).pull("acme/small")
    all_but_bytes = (time.monotonic() - begin) / 3
    while True:
        process = cache.start("pull", "acme/killed")
        try:  # the bytes alone take 0.75 s
            process.communicate(timeout=all_but_bytes + 0.1 + 0.1 * rng.random())
            assert process.returncode == 0
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        consistent(cache)
        n += 1
        assert n < 60
    cache.check("acme/killed")
    hub.close()


def test_ctrl_c_leaves_what_came(tmp_path):
    hub = Hub()
    hub.add("acme/killed", FILES)
    hub.rate = RATE
    cache = Cache(hub, tmp_path)
    process = cache.start("pull", "acme/killed")
    while hub.sent() < SIZE // 2:
        assert process.poll() is None
        time.sleep(0.01)
    hub.rate = 64 << 10  # the rest would take most of a minute
    process.send_signal(2)
    begin = time.monotonic()
    assert process.wait(60) == 130 and time.monotonic() - begin < 10
    assert "pull again to go on" in process.stderr.read()
    hub.rate = 0
    cache.pull("acme/killed")
    cache.check("acme/killed")
    assert hub.sent() < 1.01 * SIZE
    hub.close()
