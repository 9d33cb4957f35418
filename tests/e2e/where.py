"""Where things are that the tests run and read, and a port for what cannot choose one itself."""
import os
import pathlib
import random
import socket

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODELS = ROOT / "tests" / "golden" / "models"
BINARY = ROOT / os.environ.get("INFERD_BINARY", "build/inferd")


def free_port():
    """Below those that the system gives to connections: none of them takes it before it is bound, or between two uses of it."""
    told = pathlib.Path("/proc/sys/net/ipv4/ip_local_port_range")
    lowest = int(told.read_text().split()[0]) if told.exists() else 32768
    while True:
        port = random.randrange(lowest // 2, lowest)
        with socket.socket() as s:
            try:
                s.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue
