"""Plans, the packed cache, the memory and the time of a load, with the real binary."""
import concurrent.futures
import json
import os
import re
import subprocess
import sys
import time
import urllib.request

import pytest

from conftest import BINARY, MODELS, ROOT, Server

SMOLLM2 = ROOT / "models" / "smollm2.gguf"
needs_smollm2 = pytest.mark.skipif(not SMOLLM2.exists(), reason="models/smollm2.gguf is not there: tools/fetch_model.sh models")


def plan(*args):
    r = subprocess.run([str(BINARY), "plan", *map(str, args)], capture_output=True, text=True, timeout=30)
    return r.returncode, r.stdout, r.stderr


def number(text, what):
    return int(re.search(rf"{re.escape(what)} +(\d+)", text).group(1))


def test_plan_of_a_model(tmp_path):
    status, out, _ = plan("quant-gptq4", "--models-dir", MODELS, "--data-dir", tmp_path, "--memory", "2G")
    assert status == 0 and "gptq, 4 bits, groups of 32: kept as stored" in out and "It fits." in out
    assert number(out, "together") <= number(out, "the ceiling (--memory)") == 2 << 30
    kinds = ["embedding", "attention", "MLP", "output matrix", "norms and biases"]
    assert sum(number(out, "\n  " + k) for k in kinds) == number(out, "all weights")


def test_keys_and_values_by_profile(tmp_path):
    bytes_of = {}
    for profile, kv, want in (("fp16", "auto", "int24"), ("int8", "auto", "int16"), ("int4", "auto", "int16"), ("int8", "int24", "int24")):
        status, out, err = plan("llama-bf16", "--models-dir", MODELS, "--data-dir", tmp_path, "--profile", profile, "--kv-type", kv)
        assert status == 0 and f"profile {profile}, keys and values {want}" in out, out + err
        bytes_of[profile, kv] = number(out, "bytes of a page of keys and values")
    assert bytes_of["int8", "auto"] < 0.75 * bytes_of["int8", "int24"] and bytes_of["int8", "int24"] == bytes_of["fp16", "auto"]


def test_plan_from_a_configuration(tmp_path):
    config = dict(model_type="llama", hidden_size=8192, intermediate_size=28672, num_hidden_layers=80,
                  num_attention_heads=64, num_key_value_heads=8, vocab_size=128256, torch_dtype="bfloat16")
    (tmp_path / "config.json").write_text(json.dumps(config))
    status, out, err = plan(tmp_path, "--memory", "16G")
    assert status == 7 and "70553706496" in out and "does not fit" in out and str(16 << 30) in err
    status, out, err = plan(tmp_path, "--memory", "64G")
    assert status == 0 and "\nprofile int4" in out  # too large for 16 bits
    status, out, err = plan(tmp_path, "--memory", "64G", "--profile", "fp16")
    assert status == 7 and "fp16 it needs" in err
    status, out, err = plan(tmp_path, "--memory", "200G", "--kv-type", "int16")
    assert status == 0 and "\nprofile int4" in out  # over 14 GB of 16-bit weights
    (tmp_path / "config.json").write_text(json.dumps(dict(config, model_type="abacus")))
    status, out, err = plan(tmp_path)
    assert status == 6 and "abacus" in err and "llama" in err
    assert plan()[0] == 2


SHAPES = {  # published models: parameters, and the configuration's numbers
    "qwen2-72b": (72_706_203_648, dict(model_type="qwen2", hidden_size=8192, intermediate_size=29568, num_hidden_layers=80,
                                       num_attention_heads=64, num_key_value_heads=8, vocab_size=152064)),
    "mistral-123b": (122_610_069_504, dict(model_type="mistral", hidden_size=12288, intermediate_size=28672, num_hidden_layers=88,
                                           num_attention_heads=96, num_key_value_heads=8, head_dim=128, vocab_size=32768)),
    "llama-405b": (405_853_388_800, dict(model_type="llama", hidden_size=16384, intermediate_size=53248, num_hidden_layers=126,
                                         num_attention_heads=128, num_key_value_heads=8, vocab_size=128256)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_plan_of_shapes_that_no_machine_here_holds(tmp_path, name):
    parameters, config = SHAPES[name]
    (tmp_path / "config.json").write_text(json.dumps(dict(config, torch_dtype="bfloat16", max_position_embeddings=32768)))
    needs = {}
    for profile, low, high in (("fp16", 2.0, 2.01), ("int8", 1.0, 1.02), ("int4", 0.5, 0.6)):
        status, out, _ = plan(tmp_path, "--memory", "1T", "--profile", profile)
        weights, needs[profile] = (int(x) for x in re.search(rf"^{profile} +(\d+) +(\d+)", out, re.M).groups())
        assert status == 0 and number(out, "parameters") == parameters
        assert low * parameters <= weights <= high * parameters
    one_less = str(needs["int4"] - 1)
    status, out, err = plan(tmp_path, "--memory", one_less, "--profile", "int4")
    assert status == 7 and one_less in err
    status, out, err = plan(tmp_path, "--memory", str(needs["int4"] + (2 << 30)))
    assert status == 0 and "\nprofile int4" in out  # picked: it is what fits


def alone():
    """Seconds that this machine takes to start anything: what is slow there has so many times that."""
    began = time.monotonic()
    subprocess.run([BINARY, "version"], stdout=subprocess.DEVNULL, check=True)
    return time.monotonic() - began


def hwm(server):
    return server.status("VmHWM")


def wait_kept(server):
    for _ in range(2400):
        if "bytes kept" in server.text():
            return
        time.sleep(0.05)
    raise AssertionError(server.text())


@needs_smollm2
def test_load_memory_and_packed_cache(tmp_path):
    ask = {"model": "smollm2", "prompt": [1, 2, 3], "max_tokens": 8, "temperature": 0, "return_token_ids": True,
           "logprobs": 1}
    answers = []
    for source in ("files", "cache"):
        server = Server(tmp_path, "--models-dir", str(SMOLLM2.parent), "--profile", "fp16", "--threads", "2")
        try:
            answer = server.post("/v1/completions", ask).json()["choices"][0]
            ready = re.search(r"model_ready.*from=(\w+).*weights_mib=([\d.]+)", server.text())
            assert ready.group(1) == source
            packed = float(ready.group(2)) * 2**20
            assert packed > 500e6 and hwm(server) <= 1.1 * packed + 100e6
            answers.append((answer["token_ids"], answer["logprobs"]["token_logprobs"]))
            if source == "files":
                wait_kept(server)
        finally:
            assert server.stop() == 0
    assert answers[0] == answers[1]
    kept = list((tmp_path / "cache").glob("*.pack"))
    assert len(kept) == 1 and kept[0].stat().st_size < 1.01 * packed + 1e6


def test_pipe_in_place_of_a_kept_file(tmp_path):
    """Nobody writes into it: a load that waited for that would never end."""
    for source in ("files", "files", "cache"):
        server = Server(tmp_path, "--models-dir", str(MODELS), "--profile", "int8")
        try:
            assert server.post("/models/qwen2-f32/load", {}).json()["loaded"]
            assert f"from={source}" in server.text()
            if source == "files":
                wait_kept(server)
        finally:
            server.stop()
        kept, = (tmp_path / "cache").glob("*.pack")
        assert kept.is_file()
        if source == "files" and not (tmp_path / "piped").exists():
            (tmp_path / "piped").touch()
            kept.unlink()
            os.mkfifo(kept)


def test_health_soon_after_the_start(tmp_path):
    times = []
    for i in range(5):  # the least: the others are what this machine does beside
        (tmp_path / str(i)).mkdir()
        start = time.monotonic()
        server = Server(tmp_path / str(i))
        with urllib.request.urlopen(server.url + "/health") as r:
            assert r.status == 200
        times.append(time.monotonic() - start)
        assert server.stop() == 0
    assert min(times) < max(0.05, 6 * min(alone() for _ in range(5))), times


# ---- Qwen3-0.6B's shape with random weights and a tokenizer of its size: 1.2 GB of bf16, half of that at int8 ------------------
SHAPE = "qwen3-0.6b"


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    subprocess.run([sys.executable, str(ROOT / "tools/make_shape.py"), SHAPE, str(folder / SHAPE)], check=True)
    yield folder
    (folder / SHAPE / "model.safetensors").unlink()


def first_token(server):
    """Seconds from the request that loads the model to its first token, and what the log says of the load."""
    body = json.dumps({"model": SHAPE, "prompt": [5, 6, 7], "max_tokens": 1, "temperature": 0}).encode()
    request = urllib.request.Request(server.url + "/v1/completions", body, {"Content-Type": "application/json"})
    start = time.monotonic()
    with urllib.request.urlopen(request, timeout=600) as r:
        r.read()
    took = time.monotonic() - start
    ready = re.search(r"model_ready.*from=(\w+) seconds=([\d.]+) weights_mib=([\d.]+)", server.text())
    return took, ready.group(1), float(ready.group(2)), float(ready.group(3)) * 2**20


def plain_read(path):
    """Seconds that this machine takes to read the file into memory that was never used."""
    start = time.monotonic()
    with open(path, "rb", buffering=0) as f:
        f.readinto(bytearray(path.stat().st_size))
    return time.monotonic() - start


@pytest.mark.slow
@pytest.mark.parametrize("profile", ["int8", "int4"])
def test_loads_of_a_larger_model(tmp_path, shapes, profile):
    """Loads from the packed cache are several times faster than the first one (SPEED.md has the figures, which vary with the
    machine), and the first token comes soon after the time that reading the file takes."""
    def load():
        server = Server(tmp_path, "--models-dir", str(shapes), "--profile", profile)
        try:
            took, source, seconds, packed = first_token(server)
            assert hwm(server) <= 1.1 * packed + 100e6, source
            if source == "files":
                wait_kept(server)
            return took, source, seconds
        finally:
            assert server.stop() == 0

    _, source, packing = load()
    assert source == "files"
    file, = (tmp_path / "cache").glob("*.pack")
    pairs = [(load(), plain_read(file)) for _ in range(5)]
    assert {source for (_, source, _), _ in pairs} == {"cache"}
    assert packing >= 3 * min(seconds for (_, _, seconds), _ in pairs)
    assert min(took - 2 * read for (took, _, _), read in pairs) <= max(0.2, 20 * min(alone() for _ in range(5))), pairs


@pytest.mark.slow
def test_memory_of_sixteen_streams(tmp_path, shapes):
    flags = ["--profile", "int8", "--memory", "1500000000", "--max-cache-models", "1", "--max-streams", "16", "--max-context",
             "192", "--max-batch-tokens", "128"]
    status, out, _ = plan(SHAPE, "--models-dir", shapes, "--data-dir", tmp_path, *flags)
    assert status == 0 and int(re.search(r"(\d+) tokens\)", out).group(1)) >= 16 * 164
    server = Server(tmp_path, "--models-dir", str(shapes), *flags)
    try:
        def ask(i):
            body = {"model": SHAPE, "prompt": [100 * i + k for k in range(100)], "max_tokens": 64, "ignore_eos": True}
            return server.post("/v1/completions", body).json()["usage"]["completion_tokens"]

        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            assert list(pool.map(ask, range(16))) == [64] * 16
        planned = number(out, "together")
        assert 0.7 * planned <= hwm(server) <= planned <= 1.5e9
        assert server.metric("vllm:num_preemptions_total", SHAPE) == 0
    finally:
        assert server.stop() == 0
