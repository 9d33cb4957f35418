"""A request can be followed in the log by its id; prompts are not in it unless asked for; monitoring does not fill it."""
import re
import subprocess
import time

import pytest
import requests

from conftest import BINARY, until
from redis_tools import Redis

MODEL = "qwen2-f32"
BODY = {"model": MODEL, "messages": [{"role": "user", "content": "a secret phrase"}], "max_tokens": 3, "temperature": 0}


def lines(s, request_id):
    return [line for line in s.text().splitlines() if f"id={request_id} " in line]


@pytest.mark.parametrize("stream", [False, True])
def test_follow(start, stream):
    s = start()
    s.post("/chat", {**BODY, "stream": stream}, headers={"x-request-id": "mine"})
    assert until(lambda: any("request_done" in x for x in lines(s, "mine")))
    got = lines(s, "mine")
    assert [x.split()[2] for x in got] == ["request_received", "request_admitted", "request_first_token", "request_done"]
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z info ", x) for x in got)
    for word in ("status=200", "prompt_tokens=", "output_tokens=", "ttft_ms=", "total_ms="):
        assert word in got[-1]
    assert f'model="{MODEL}"' in got[1] and "secret" not in s.text()


def test_prompts_when_asked_for(start):
    s = start("--log-prompts")
    s.post("/chat", BODY, headers={"x-request-id": "mine"})
    assert until(lambda: any("a secret phrase" in x for x in lines(s, "mine")))


@pytest.mark.parametrize("flags, told", [(["--host", "127.0.0.1"], False), (["--host", "0.0.0.0"], True),
                                         (["--host", "0.0.0.0", "--api-key", "k"], False)])
def test_open_to_the_network(start, flags, told):
    assert ("open_to_network" in start(*flags).text()) == told


def test_levels(start):
    s = start("--log-level", "warn")
    s.post("/chat", BODY)
    assert " info " not in s.text()
    s = start()
    s.get("/health"), s.get("/metrics"), s.get("/models")
    assert until(lambda: 'path="/models"' in s.text()) and "/health" not in s.text() and '"/metrics"' not in s.text()


def test_no_line_is_made_by_a_client(start):
    s = start()
    s.get("/a%0afake", headers={"x-request-id": "x\ty"})
    s.post("/chat", {**BODY, "model": "a\nb fake_event"})
    assert until(lambda: s.text().count("request_done") >= 2)
    assert all(re.match(r"\d{4}-", x) for x in s.text().splitlines())


def test_quotes_in_values_are_told_from_those_around_them(start):
    s = start()
    name = 'a" status=200 b="\\'
    s.post("/chat", {**BODY, "model": name}, headers={"x-request-id": "mine"})
    requests.put(s.url + '/a"b', timeout=20)
    assert until(lambda: s.text().count("request_done") >= 2)
    done = [x for x in s.text().splitlines() if " request_done " in x]
    quoted = r'"((?:[^"\\]|\\.)*)"'
    assert [re.search("model=" + quoted, x).group(1) for x in done[:1]] == [r'a\" status=200 b=\"\\']
    assert 'status=404 reason=model_not_found param="model"' in done[0]
    assert all(re.fullmatch(rf"\S+ \w+ \w+( \w+=({quoted}|[^\s\"]+))*", x) for x in s.text().splitlines()), s.text()


def test_quotes_of_a_path_of_any_bytes(tmp_path):
    """No byte that a file's name may have stands for a quote."""
    for folder in [bytes([first]) + bytes([second]) + b" forged=1 b=" + bytes([first]) + bytes([second])
                   for first in (1, 0xfe, 0xff) for second in (1, 2, 0xfe)]:
        p = subprocess.Popen([BINARY, "serve", "--port", "0", "--models-dir", bytes(tmp_path) + b"/" + folder, "--data-dir",
                              str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            assert b"http://" in p.stdout.readline()
            p.terminate()
            text = p.communicate(timeout=60)[1]
        finally:
            p.kill()
        lines = [x for x in text.splitlines() if b" no_models_dir " in x or b" listening " in x]
        assert len(lines) == 2, text
        for line in lines:
            assert re.search(rb' models_dir="[^"]*forged=1[^"]*"( |$)', line), line


@pytest.mark.parametrize("flags,asked", [(["--max-connections", "2"], 2), (["--max-connections", "4000", "--memory", "64M"], 4000)])
def test_clients_that_wait_to_connect(start, flags, asked):
    """They are told of in the log, once a minute, not before there are any."""
    s = start(*flags)
    places = 2 if asked == 2 else s.get("/health").json()["memory_plan"]["max_connections"]
    assert places <= asked
    taken = [s.connect() for _ in range(places)]
    for c in taken:
        c.sendall(b"GET")  # who is idle would make place
    time.sleep(1.2)  # longer than it takes to look
    assert "connections_full" not in s.text()
    waits = s.connect()
    waits.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
    assert until(lambda: "connections_full" in s.text())
    line = next(x for x in s.text().splitlines() if "connections_full" in x)
    assert f" warn connections_full connections={places} max_connections={asked} " in line and "--max-connections" in line
    assert ("--memory" in line) == (places < asked)
    time.sleep(2.2)
    assert s.text().count("connections_full") == 1
    taken.pop().close()
    assert waits.recv(100).startswith(b"HTTP/1.1 200")


def test_nobody_reads_the_log(tmp_path):
    """A full pipe at standard error must not stop the server."""
    p = subprocess.Popen([BINARY, "serve", "--port", "0", "--models-dir", str(tmp_path), "--data-dir", str(tmp_path)],
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        url = re.search(r"http://\S+", p.stdout.readline()).group()
        with requests.Session() as session:
            for _ in range(800):
                assert session.get(url + "/nowhere", timeout=60).status_code == 404
        p.terminate()
        p.wait(60)
    finally:
        p.kill()


def test_a_store_that_goes_is_told(start, tmp_path):
    redis = Redis(tmp_path)
    s = start("--store", redis.url)
    assert until(lambda: s.get("/health").json()["status"] == "healthy")
    time.sleep(0.2)
    assert "store_" not in s.text()
    redis.kill()
    assert until(lambda: f"warn store_unavailable kind=redis error=\"Redis at 127.0.0.1:{redis.port}" in s.text())
    redis.start()
    assert until(lambda: "info store_available kind=redis" in s.text())
    assert s.text().count("store_unavailable") == s.text().count("store_available") == 1
    redis.kill()
