"""Starts the real binary on a free port with the small golden models, once for all tests that do not need their own; the hub
that models are pulled from."""
import os
import pathlib
import socket
import subprocess
import time

import pytest
import requests

from hub_server import Hub
from hub_tools import Cache, add_repositories
from where import BINARY, MODELS, ROOT, free_port  # noqa: F401: tests take them from here


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes minutes; run by .ci/run, not by make test")


WAIT_S = 60  # for what must come: as long as a slow machine may take, which costs time only where it does not come


def until(condition, seconds=WAIT_S):
    """What `condition` gave as soon as that is true, or at last."""
    end = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(0.02)
    return found


def best_of(n, condition):
    """Whether it holds in one of n tries: a bound in time is missed by a busy machine now and then, by a defect always."""
    return any(condition() for _ in range(n))


class Server:
    def __init__(self, tmp, *flags, env=None):
        self.tmp = tmp  # its data directory
        self.log = open(tmp / "log", "w+")
        command = [str(BINARY), "serve", "--port", "0", "--models-dir", str(MODELS), "--data-dir", str(tmp), *flags]
        own = {"HF_HUB_CACHE": str(tmp / "hub")}  # what is on this machine is no part of a test
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log, text=True,
                                        env={**os.environ, **own, **(env or {})})
        self.url = self._wait()

    def _wait(self):
        line = self.process.stdout.readline()  # "inferd is ready: http://..."; empty when it ended
        assert line, self.text()
        return line.split()[-1]

    def get(self, path, **kw):
        return requests.get(self.url + path, timeout=60, **kw)

    def post(self, path, body, **kw):
        return requests.post(self.url + path, json=body, timeout=120, **kw)

    def metric(self, name, model):
        total = 0.0
        for line in self.get("/metrics").text.splitlines():
            if line.startswith(name + "{") and f'model_name="{model}"' in line:
                total += float(line.rsplit(" ", 1)[1])
        return total

    def metric_value(self, series):
        return next((float(x.rsplit(" ", 1)[1]) for x in self.get("/metrics").text.splitlines()
                     if x.startswith((series + " ", series + "{"))), None)

    def text(self):
        return pathlib.Path(self.log.name).read_text()

    def delete(self, path):
        return requests.delete(self.url + path, timeout=60)

    def connect(self):
        host, port = self.url[7:].split(":")
        return socket.create_connection((host, int(port)), timeout=60)

    def status(self, key):
        """Of /proc: VmHWM or VmRSS in bytes."""
        for line in open(f"/proc/{self.process.pid}/status"):
            if line.startswith(key + ":"):
                return int(line.split()[1]) << 10

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def stop(self):
        self.process.terminate()
        try:
            return self.process.wait(40)
        finally:
            self.process.kill()


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    s = Server(tmp_path_factory.mktemp("server"))
    yield s
    assert s.process.poll() is None, "the server died during the tests:\n" + s.text()[-3000:]
    assert s.stop() == 0


@pytest.fixture(scope="module")
def start_once(tmp_path_factory):
    """Servers that a module's tests share."""
    started = []

    def run(*flags):
        started.append(Server(tmp_path_factory.mktemp("server"), *flags))
        return started[-1]

    yield run
    for s in started:
        s.process.kill()


@pytest.fixture
def start(tmp_path):
    started = []

    def run(*flags, env=None):
        folder = tmp_path / str(len(started))
        folder.mkdir()
        started.append(Server(folder, *flags, env=env))
        return started[-1]

    yield run
    for s in started:
        s.process.kill()


@pytest.fixture
def start_at():
    """Starts a server on a data directory that may have been used before."""
    started = []

    def run(folder, *flags, env=None):
        folder.mkdir(parents=True, exist_ok=True)
        started.append(Server(folder, *flags, env=env))
        return started[-1]

    yield run
    for s in started:
        s.process.kill()


@pytest.fixture
def start_fails():
    """What a server says that does not start."""
    def run(folder, *flags):
        done = subprocess.run([str(BINARY), "serve", "--port", "0", "--models-dir", str(MODELS), "--data-dir", str(folder),
                               *flags], capture_output=True, text=True, timeout=WAIT_S)
        assert done.returncode not in (0, None) and done.returncode > 0
        return done.stderr

    return run


@pytest.fixture(scope="module")
def the_hub():
    """With the repositories of hub_tools; a module's tests may add their own."""
    hub = Hub()
    add_repositories(hub)
    yield hub
    hub.close()


@pytest.fixture
def hub(the_hub):
    """The module's, on which nothing is amiss and which nobody has asked yet."""
    the_hub.reset()
    yield the_hub
    assert the_hub.leaks() == [], "a token went to another origin"


@pytest.fixture
def cache(hub, tmp_path):
    """To pull into; nothing is in it yet."""
    return Cache(hub, tmp_path / "home")
