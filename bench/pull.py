"""Download speed over loopback: inferd pull (several connections, sha256, journal) against curl alone from the same server.

Usage: bench/pull.py [MEGABYTES] [REPEATS]"""
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "e2e"))
from hub_server import Hub  # noqa: E402
from hub_tools import Cache, small_files  # noqa: E402


def main():
    megabytes, repeats = int((sys.argv + ["1000"])[1]), int((sys.argv + ["", "3"])[2])
    folder = pathlib.Path(tempfile.mkdtemp(prefix="inferd-bench-"))
    weights = folder / "weights"
    block = os.urandom(1 << 20)
    with open(weights, "wb") as f:
        for i in range(megabytes):
            f.write(i.to_bytes(8, "little") + block[8:])
    pid = os.fork()  # the server is a process of its own
    hub = Hub() if pid == 0 else None
    if pid == 0:
        hub.add("acme/large", {**small_files(), "model.safetensors": weights})
        (folder / "url.next").write_text(hub.url)
        (folder / "url.next").rename(folder / "url")
        while os.getppid() != 1 and folder.exists():
            time.sleep(0.1)
        os._exit(0)
    while not (folder / "url").exists():
        time.sleep(0.05)
    url = (folder / "url").read_text()
    best = {}
    try:
        for _ in range(repeats):
            for name in ("curl", "inferd"):
                cache = Cache(type("Hub", (), {"url": url}), folder / "home")
                env = cache.env()
                for k in list(env):
                    if k.startswith("INFERD_DOWNLOAD"):
                        del env[k]
                command = (["curl", "-sfL", "-o", str(folder / "got"), f"{url}/acme/large/resolve/main/model.safetensors"]
                           if name == "curl" else [str(ROOT / "build" / "inferd"), "pull", "acme/large"])
                os.sync()
                begin = time.monotonic()
                subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)
                took = time.monotonic() - begin
                best.setdefault(name, []).append(megabytes * 1.048576 / took)
                (folder / "got").unlink(missing_ok=True)
                shutil.rmtree(cache.home, ignore_errors=True)
    finally:
        shutil.rmtree(folder)
        os.waitpid(pid, 0)
    for name, rates in best.items():
        print(f"{name:8} MB/s: best {max(rates):.0f}, all {' '.join(f'{r:.0f}' for r in rates)}")
    print(f"inferd / curl: {max(best['inferd']) / max(best['curl']):.2f}")


if __name__ == "__main__":
    main()
