"""A Redis of a test's own."""
import shutil
import socket
import subprocess
import time

import pytest

from where import free_port


class Redis:
    def __init__(self, folder):
        if not shutil.which("redis-server"):
            pytest.skip("there is no redis-server")
        self.port = free_port()
        self.folder = folder
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.start()

    def start(self):
        self.process = subprocess.Popen(
            ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), "--save", "",
             "--appendonly", "yes"], stdout=subprocess.DEVNULL)
        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                time.sleep(0.01)
        raise AssertionError("Redis did not start")

    def send(self, commands):
        """Many commands at once, each a sequence of words; none may fail."""
        with socket.create_connection(("127.0.0.1", self.port), 10) as s:
            n = 0
            for words in commands:
                words = [w if isinstance(w, bytes) else str(w).encode() for w in words]
                s.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words))
                n += 1
            replies = s.makefile("rb")
            for _ in range(n):
                line = replies.readline()
                assert line[:1] in b"+:", line

    def kill(self):
        self.process.kill()
        self.process.wait()
