"""kill -9 at random moments of a reload: after the restart the model answers with the weights that are on the disk, wholly;
nothing of the models folder was touched, what the packed cache shows is whole, and what the killed one left goes."""
import concurrent.futures
import hashlib
import os
import random
import threading
import time

import pytest
import requests

from conftest import until
from test_reload import MODEL, OTHER, PROMPTS, answer, models, put, reload, weights  # noqa: F401 (fixtures)


def files(folder):
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


def stream_until_killed(s, i, right):
    """Whole answers, of one of the sets of weights, until the connection is cut."""
    n = 0
    while True:
        try:
            ids = answer(s, MODEL, i)
        except (requests.RequestException, AssertionError, StopIteration):
            assert s.process.poll() is not None or until(lambda: s.process.poll() is not None), s.text()[-2000:]
            return n
        assert ids in [r[i % len(PROMPTS)] for r in right]
        n += 1


def kill_in_a_reload(s, dice, right, longest_s):
    """Returns how far the reload had come, as the log tells."""
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        clients = [pool.submit(stream_until_killed, s, i, right) for i in range(2)]
        asked = threading.Event()

        def ask():
            asked.set()
            try:
                return reload(s).status_code
            except requests.RequestException:
                return None

        reloading = pool.submit(ask)
        asked.wait()
        if dice.random() < 0.8:  # inside: from the moment that the log tells
            end = time.monotonic() + 60
            while "model_reloading" not in s.text() and time.monotonic() < end:
                pass
        time.sleep(dice.random() * longest_s)
        s.process.kill()
        s.process.wait()
        status = reloading.result()
        for c in clients:
            c.result()
    _, begun, then = s.text().partition("model_reloading")
    return ("not begun" if not begun else "replaced" if "why=replaced" in then else
            "switched" if status == 200 or "model_ready" in then else "loading")


def check_leftovers(start_at, data, models, weights):  # noqa: F811
    """What the killed ones were writing is no file of the cache; once it is old, the next that is written takes it away."""
    for p in (data / "cache").iterdir():
        if p.suffix != ".pack":
            assert p.suffix == ".tmp", p
            os.utime(p, (time.time() - 7200, time.time() - 7200))
    put(models / MODEL, weights[0])
    s = start_at(data, "--models-dir", str(models))
    answer(s, MODEL, 0)
    assert until(lambda: {p.suffix for p in (data / "cache").iterdir()} == {".pack"}), os.listdir(data / "cache")
    assert s.stop() == 0


def kill_reloads(start_at, tmp_path, models, weights, n):
    seed = int(os.environ.get("SEED", time.time_ns() % 1000000))
    print("SEED =", seed)
    dice, data = random.Random(seed), tmp_path / "data"
    right = []
    for w in weights:
        put(models / MODEL, w)
        s = start_at(data, "--models-dir", str(models))
        right.append([answer(s, MODEL, i) for i in range(len(PROMPTS))])
        assert s.stop() == 0
    assert right[0] != right[1]
    began = time.monotonic()
    s = start_at(data, "--models-dir", str(models))
    assert answer(s, MODEL, 0) == right[1][0]
    assert reload(s).status_code == 200
    longest = 1.5 * float(s.text().rsplit(" seconds=", 1)[1].split()[0])
    how_far = {}
    for i in range(n):
        put(models / MODEL, weights[i % 2])
        before = files(models)
        far = kill_in_a_reload(s, dice, right, longest)
        how_far[far] = how_far.get(far, 0) + 1
        assert files(models) == before
        s = start_at(data, "--models-dir", str(models))
        assert s.get("/health").json()["models_loaded"] == 0
        got = [answer(s, MODEL, k) for k in range(len(PROMPTS))]
        assert got == right[i % 2], (i, far)
        assert len(answer(s, OTHER, 0)) == 24
    print(f"{n} kills in {time.monotonic() - began:.0f} s: {how_far}")
    assert s.stop() == 0
    check_leftovers(start_at, data, models, weights)
    return how_far


def test_kill_in_a_reload(start_at, tmp_path, models, weights):  # noqa: F811
    kill_reloads(start_at, tmp_path, models, weights, 4)


@pytest.mark.slow
def test_kill_in_100_reloads(start_at, tmp_path, models, weights):  # noqa: F811
    how_far = kill_reloads(start_at, tmp_path, models, weights, 100)
    assert how_far.get("loading", 0) >= 5, how_far
