"""A new binary takes over the listening socket without a lost request (R67)."""
import concurrent.futures
import json
import os
import signal
import socket
import subprocess
import threading
import time

import pytest
import requests

from conftest import BINARY, MODELS

MODEL = "llama-tied-f32"
MESSAGES = [{"role": "user", "content": "Tell me something"}]


@pytest.fixture
def listener():
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind(("127.0.0.1", 0))
        s.listen(1024)
        yield s


@pytest.fixture
def begin(listener, tmp_path):
    """Starts a server on the test's socket, as systemd does."""
    started = []

    def run(fds="1", socket_fd=None):
        fd = listener.fileno() if socket_fd is None else socket_fd
        command = ["/bin/sh", "-c", f'export LISTEN_PID=$$ LISTEN_FDS={fds}; exec "$@"', "sh", str(BINARY), "serve",
                   "--models-dir", str(MODELS), "--data-dir", str(tmp_path / "data")]
        p = subprocess.Popen(command, preexec_fn=lambda: os.dup2(fd, 3, inheritable=True), pass_fds=[3],
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(p)
        return p

    yield run
    for p in started:
        p.kill()


def test_no_request_is_lost(begin, listener):
    url = "http://127.0.0.1:%d" % listener.getsockname()[1]
    servers = [begin()]
    assert url in servers[0].stdout.readline()
    body = {"model": MODEL, "messages": MESSAGES, "max_tokens": 20, "temperature": 0}
    right = requests.post(url + "/chat", json=body, timeout=60).json()["message"]["content"]
    over, results = threading.Event(), []

    def ask(i):
        session = requests.Session() if i % 2 else requests  # connections that are kept, and new ones
        while not over.is_set():
            results.append(session.post(url + "/chat", json=body, timeout=60))

    with concurrent.futures.ThreadPoolExecutor(9) as pool:
        askers = [pool.submit(ask, i) for i in range(8)]
        long = {**body, "max_tokens": 400, "ignore_eos": True, "stream": True}
        stream = requests.post(url + "/chat", json=long, stream=True, timeout=60)
        for _ in range(3):
            time.sleep(0.5)
            servers.append(begin())
            assert url in servers[-1].stdout.readline()
            servers[-2].send_signal(signal.SIGTERM)
            assert servers[-2].wait(60) == 0
        over.set()
        for a in askers:
            a.result(120)  # no connection was refused, reset or cut
    assert len(results) > 20 and {r.status_code for r in results} == {200}
    assert {r.json()["message"]["content"] for r in results} == {right}
    events = [json.loads(x[6:]) for x in stream.iter_lines() if x.startswith(b"data: ")]
    assert events[-1]["done"] is True and events[-1]["eval_count"] == 400


def test_who_was_accepted_is_answered(begin, listener):
    first = begin()
    url = first.stdout.readline().split()[-1]
    with socket.create_connection(listener.getsockname()) as late:
        requests.get(url + "/health/live", timeout=60)  # so `late` is accepted
        second = begin()
        second.stdout.readline()
        first.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        data = json.dumps({"model": MODEL, "messages": MESSAGES, "max_tokens": 1}).encode()
        late.sendall(b"POST /chat HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(data), data))
        late.settimeout(60)
        answer = b""
        while part := late.recv(65536):
            answer += part
    assert answer.startswith(b"HTTP/1.1 200") and b"Connection: close" in answer.replace(b"connection", b"Connection")
    began = time.monotonic()
    assert first.wait(60) == 0 and time.monotonic() - began < 10  # not for the time that a connection may be idle, nor that of a drain


def test_wrong_descriptors(begin, tmp_path):
    for fds, file in (("2", None), ("1", os.open(tmp_path, os.O_RDONLY))):
        p = begin(fds, file)
        error = p.communicate(timeout=60)[1]
        assert p.returncode == 2 and "LISTEN_FDS" in error and f"'{fds}'" in error
