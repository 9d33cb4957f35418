"""`inferd pull`, `rm` and `verify` against a hub that behaves: which files, which revision, who may, and the cache's layout."""
import http.server
import json
import random
import re
import signal
import socket
import subprocess
import threading
import time

import pytest

from conftest import WAIT_S
from hub_tools import BINARY, Cache, noise, small_files

SMALL = {"config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"}


def test_safetensors_before_all_else(cache):
    out = cache.pull("acme/tiny")
    assert cache.files("acme/tiny") == SMALL | {"model.safetensors"}
    cache.check("acme/tiny")
    assert str(cache.snapshot("acme/tiny")) in out
    assert all("\r" not in line and "\033" not in line for line in out.splitlines())


def test_a_second_pull_fetches_nothing(hub, cache):
    cache.pull("acme/tiny")
    before = hub.sent("cdn") + hub.sent("resolve")
    assert "0 B fetched" in cache.pull("acme/tiny")
    assert hub.sent("cdn") + hub.sent("resolve") == before


def test_shards(cache):
    cache.pull("acme/sharded")
    shards = {f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)}
    assert cache.files("acme/sharded") == SMALL | shards | {"model.safetensors.index.json"}
    cache.check("acme/sharded")


@pytest.mark.parametrize("name, files", [
    ("acme/gguf", {"acme-Q4_K_M.gguf"}),
    ("acme/gguf:Q8_0", {"acme-Q8_0.gguf"}),
    ("acme/gguf:q8_0", {"acme-Q8_0.gguf"}),
    ("acme/gguf:latest", {"acme-Q4_K_M.gguf"}),
    ("hf.co/acme/gguf:F16", {"acme-f16.gguf"}),
    ("acme/gguf:Q6_K", {"Q6_K/acme-Q6_K-00001-of-00002.gguf", "Q6_K/acme-Q6_K-00002-of-00002.gguf"}),
    ("acme/tiny:Q8_0", {"tiny.Q8_0.gguf"}),
])
def test_gguf(cache, name, files):
    out = cache.pull(name)
    repo = re.sub(r"^hf.co/|:.*", "", name)
    assert cache.files(repo) == files
    cache.check(repo)
    assert out.rstrip().endswith(sorted(files)[0])


def test_revisions(hub, cache):
    tiny = hub.repos["acme/tiny"]
    cache.pull("acme/tiny@feature/x")
    assert "chat_template.jinja" in cache.files("acme/tiny", "feature/x")
    cache.check("acme/tiny", "feature/x")
    sent = hub.sent("cdn")
    cache.pull("acme/tiny@v1.0")  # shares the weights
    assert hub.sent("cdn") == sent
    cache.pull("acme/tiny@" + tiny.refs["main"])
    cache.check("acme/tiny", "v1.0")
    assert not (cache.folder("acme/tiny") / "refs" / "main").exists()


def test_a_branch_that_moves(hub, cache):
    moving = hub.add("acme/moving", {**small_files(), "model.safetensors": noise(50000, 50)})
    cache.pull("acme/moving")
    first = cache.snapshot("acme/moving")
    moving.commit({**small_files(), "model.safetensors": noise(50000, 51)})
    cache.pull("acme/moving")
    cache.check("acme/moving")
    assert first.exists() and cache.snapshot("acme/moving") != first


@pytest.mark.parametrize("name, says", [
    ("acme/pickle", ["acme/pickle", "pytorch_model.bin", "safetensors"]),
    ("acme/adapter", ["acme/adapter", "adapter"]),
    ("acme/gguf:Q2_K", ["Q2_K", "Q4_K_M", "Q8_0"]),
    ("acme/tiny@nowhere", ["acme/tiny", "nowhere"]),
    ("acme/missing", ["acme/missing", "private", "HF_TOKEN"]),
    ("acme/gated", ["acme/gated", "gated", "token"]),
    ("acme/private", ["acme/private", "HF_TOKEN"]),
])
def test_refusals_say_what_to_do(hub, cache, name, says):
    message = cache.refuse(name)
    for word in says:
        assert word in message
    assert hub.sent("cdn") == 0


@pytest.mark.parametrize("name", ["..", "a/b/c", "acme/../x", "acme/tiny@../../x", "acme/tiny:a/b", "", "acme//tiny", "-x/y"])
def test_names_that_are_none(cache, name):
    done = cache.run("pull", name)
    assert done.returncode == 2 and done.stderr.startswith("inferd: ")


@pytest.mark.parametrize("name", ["acme/gated", "acme/private"])
def test_a_token_opens(hub, cache, name):
    assert name in cache.refuse(name, HF_TOKEN="hf_stranger")
    cache.pull(name, HF_TOKEN="hf_member")
    cache.check(name)
    assert any("authorization" in r.headers for r in hub.requests)


def test_the_token_file(cache):
    (cache.home / "token").write_text("hf_member\n")
    cache.pull("acme/gated")
    cache.check("acme/gated")


def test_small_files_by_a_relative_redirect(hub, cache):
    hub.git_redirect = True
    cache.pull("acme/tiny")
    cache.check("acme/tiny")


def test_the_list_of_files_in_pages_or_not_at_all(hub, cache, tmp_path):
    hub.page = 3
    cache.pull("acme/sharded")
    cache.check("acme/sharded")
    assert hub.count("tree") > 3
    hub.tree = False
    other = Cache(hub, tmp_path / "other")
    other.pull("acme/sharded")
    other.check("acme/sharded")


def test_offline(hub, cache):
    assert "HF_HUB_OFFLINE" in cache.refuse("acme/tiny", HF_HUB_OFFLINE="1")
    assert hub.requests == []
    cache.pull("acme/tiny")
    n = len(hub.requests)
    cache.pull("acme/tiny", HF_HUB_OFFLINE="1")
    assert len(hub.requests) == n
    cache.pull("acme/tiny", HF_ENDPOINT="http://127.0.0.1:9")  # nobody there: the cache serves


def test_where_the_cache_is(hub, cache, tmp_path):
    cache.pull("acme/gguf", HF_HUB_CACHE=str(tmp_path / "elsewhere"))
    assert (tmp_path / "elsewhere" / "models--acme--gguf").is_dir() and not cache.folder("acme/gguf").exists()
    env = cache.env(XDG_CACHE_HOME=str(tmp_path / "xdg"))
    del env["HF_HOME"]
    subprocess.run([str(BINARY), "pull", "acme/gguf"], env=env, check=True)
    assert (tmp_path / "xdg" / "huggingface" / "hub" / "models--acme--gguf").is_dir()


def test_no_network_is_said(cache):
    message = cache.refuse("acme/tiny", HF_ENDPOINT="http://127.0.0.1:9")
    assert "acme/tiny" in message and "127.0.0.1:9" in message and "HF_ENDPOINT" in message


class Busy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(503)
        self.send_header("Retry-After", "2")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args):
        pass


def test_what_a_pull_waits_for_is_told_without_a_terminal_too(cache):
    """Before the hub has said a word: by a line at once, and one for each reason that it goes on."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        p = cache.start("pull", "acme/tiny", HF_ENDPOINT=f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert p.stdout.readline() == "asking the hub ...\n"
        p.send_signal(signal.SIGINT)
        assert p.wait(WAIT_S) == 130
    lines = cache.run("pull", "acme/tiny", HF_ENDPOINT="http://127.0.0.1:1").stdout.splitlines()
    assert "no answer" in lines[1] and "attempt 3" in lines[-1], lines
    # A hub that says how long: each reason lasts longer than it takes to look at it.
    with http.server.HTTPServer(("127.0.0.1", 0), Busy) as busy:
        threading.Thread(target=busy.serve_forever, daemon=True).start()
        lines = cache.run("pull", "acme/tiny", HF_ENDPOINT=f"http://127.0.0.1:{busy.server_port}").stdout.splitlines()
        busy.shutdown()
    assert len(lines) == 3 and "503" in lines[1] and "attempt 2" in lines[1] and "attempt 3" in lines[2], lines


@pytest.mark.parametrize("kind", ["dumb", ""])
def test_a_terminal_that_cannot_redraw_gets_lines(cache, kind):
    shown = cache.pull_on_terminal("acme/tiny", TERM=kind)
    assert "\x1b" not in shown and "done model.safetensors" in shown


def test_a_proxy_is_used(hub, cache):
    """A proxy of http is asked with the whole address: the hub takes the request as its own after the host is cut off."""
    message = cache.refuse("acme/tiny", HF_ENDPOINT="http://hub.example", http_proxy="http://127.0.0.1:9")
    assert "hub.example" in message
    cache.pull("acme/tiny", http_proxy="http://127.0.0.1:9", no_proxy="127.0.0.1")


def test_verify_finds_a_flipped_bit(cache):
    cache.pull("acme/tiny")
    cache.verify_noise("acme/tiny")
    blob = (cache.snapshot("acme/tiny") / "model.safetensors").resolve()
    data = bytearray(blob.read_bytes())
    data[1234567] ^= 4
    blob.write_bytes(data)
    done = cache.run("verify", "acme/tiny")
    assert done.returncode == 6 and "model.safetensors" in done.stderr and "acme/tiny" in done.stderr
    assert "files are whole" not in done.stderr
    small = (cache.snapshot("acme/tiny") / "config.json").resolve()
    small.write_bytes(b"{}")
    assert "config.json" in cache.run("verify", "acme/tiny").stderr
    assert cache.run("verify", "acme/nothing").returncode == 3


def test_rm(cache):
    cache.pull("acme/gguf:Q8_0")
    cache.pull("acme/gguf:Q4_K_M")
    assert cache.files("acme/gguf") == {"acme-Q8_0.gguf", "acme-Q4_K_M.gguf"}
    assert "300.0 kB" in cache.run("rm", "acme/gguf:Q8_0").stdout
    assert cache.files("acme/gguf") == {"acme-Q4_K_M.gguf"}
    cache.check("acme/gguf")
    cache.pull("acme/tiny")
    cache.pull("acme/tiny@feature/x")
    assert cache.run("rm", "acme/tiny@feature/x").returncode == 0
    cache.check("acme/tiny")
    assert cache.run("rm", "acme/tiny").returncode == 0
    assert not cache.folder("acme/tiny").exists()
    done = cache.run("rm", "acme/tiny")
    assert done.returncode == 3 and "acme/tiny" in done.stderr


def test_rm_leaves_a_running_transfer_alone(hub, cache):
    hub.rate = 100000
    p = cache.start("pull", "acme/tiny")
    while hub.sent() == 0:
        assert p.poll() is None
        time.sleep(0.01)
    assert "being fetched" in cache.run("rm", "acme/tiny").stderr
    hub.rate = 0
    assert p.wait(60) == 0
    cache.check("acme/tiny")


def test_rm_leaves_alone_what_a_pull_has_found(hub, cache):
    """A pull that fetches nothing, because all is there, still counts on its files."""
    cache.pull("acme/tiny")
    slow = hub.fault("info", hold=threading.Event(), times=1)
    p = cache.start("pull", "acme/tiny")
    while slow.used == 0:
        assert p.poll() is None
        time.sleep(0.01)
    for name in ("acme/tiny", "acme/tiny@feature/x"):
        done = cache.run("rm", name)
        assert done.returncode == 1 and "being fetched" in done.stderr, done.stderr
    slow.hold.set()
    assert p.wait(60) == 0
    cache.check("acme/tiny")
    assert cache.run("rm", "acme/tiny").returncode == 0


def test_rm_and_pulls_at_random(hub, cache):
    """Whatever the order: what is visible is whole, and after the last pull all of it is there."""
    for _ in range(20):
        p = cache.start("pull", "acme/gguf:Q4_K_M")
        time.sleep(random.random() * 0.05)
        done = cache.run("rm", "acme/gguf")
        assert done.returncode in (0, 1, 3), done.stderr
        out, error = p.communicate(timeout=60)
        assert p.returncode == 0, error
        if done.returncode != 0:
            cache.check("acme/gguf")
    cache.pull("acme/gguf:Q4_K_M")
    cache.check("acme/gguf")


def test_two_processes_share_one_transfer(hub, cache):
    hub.rate = 2000000
    both = [cache.start("pull", "acme/tiny") for _ in range(2)]
    assert [p.wait(60) for p in both] == [0, 0]
    cache.check("acme/tiny")
    assert hub.sent() < 3.1 * (1 << 20)


def test_a_terminal_gets_a_bar(hub, cache):
    hub.rate = 1000000
    text = cache.pull_on_terminal("acme/tiny")
    assert re.search(r"\[#+-*\] .*model\.safetensors", text) and re.search(r"\d [kM]B/s  .*\d left\r", text)
    shares = [int(x) for x in re.findall(r"(\d+) %", text)]
    assert shares == sorted(shares) and len(shares) > 2


def test_numbers_of_the_index_are_looked_at(hub, cache):
    index = json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00009-of-00002.safetensors"}})
    hub.add("acme/liar", {**small_files(), "model-00001-of-00002.safetensors": b"1", "model-00002-of-00002.safetensors": b"2",
                          "model.safetensors.index.json": index.encode()})
    assert "model-00009-of-00002.safetensors" in cache.refuse("acme/liar")
