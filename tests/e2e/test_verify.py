"""inferd verify: checksums of what was pulled, and the model's own self-test (R3)."""
import json
import os
import shutil

import pytest

from conftest import MODELS
from hub_tools import Cache
from test_reload import NOT_A_NUMBER, change

NAMES = sorted(p.parent.name for p in MODELS.glob("*/golden.json"))
MODEL = "llama-bf16"


@pytest.fixture(scope="module", autouse=True)
def llama(the_hub):
    the_hub.add("acme/llama", {p.name: p for p in (MODELS / "llama-sharded-bf16").iterdir() if p.name != "golden.json"})


@pytest.fixture
def cache(hub, tmp_path):
    cache = Cache(hub, tmp_path / "home")
    plain = cache.env
    cache.env = lambda **more: plain(**{"INFERD_DATA_DIR": str(tmp_path / "data"), "INFERD_MODELS_DIR": str(MODELS), **more})
    return cache


@pytest.fixture
def own(cache, tmp_path):
    """A models folder of the test's own, without golden.json."""
    folder = tmp_path / "models" / MODEL
    shutil.copytree(MODELS / MODEL, folder)
    (folder / "golden.json").unlink()
    plain = cache.env
    cache.env = lambda **more: plain(INFERD_MODELS_DIR=str(tmp_path / "models"), **more)
    return folder


def good(cache, name, **env):
    done = cache.run("verify", name, **env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def bad(cache, name, status, **env):
    done = cache.run("verify", name, **env)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stderr


def overwrite(path, data):
    """Other bytes, the same size and time: what a failing disk does."""
    st = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(st.st_atime_ns, st.st_mtime_ns))


@pytest.mark.parametrize("name", NAMES)
def test_against_transformers(cache, name):
    out = good(cache, name)
    assert "finite, the same one by one and all at once" in out
    assert "golden.json: 199 log-probabilities within" in out


@pytest.mark.parametrize("name, config", [
    ("quant-gptq4", {"quant_method": "auto-round", "packing_format": "auto_round:auto_gptq", "bits": 4, "group_size": 32, "sym": True}),
    ("quant-awq", {"quant_method": "auto-round", "packing_format": "auto_round:auto_awq", "bits": 4, "group_size": 32, "sym": False}),
    ("quant-gptq4", {"quant_method": "gptq", "bits": 8, "group_size": 128, "dynamic": {"+:.*": {"bits": 4, "group_size": 32}}}),
    ("quant-gptq8-order", {"quant_method": "auto-round", "packing_format": "auto_round:auto_gptq", "bits": 4, "group_size": 64,
                           "sym": True, "extra_config": {"model.layers.0.mlp.up_proj": {"bits": 8}}}),
])
def test_the_same_tensors_described_otherwise(cache, own, name, config):
    """AutoRound's names for GPTQ's and AWQ's packing; rules for single modules, whose tensors tell bits and groups."""
    shutil.rmtree(own)
    shutil.copytree(MODELS / name, own)
    file = own / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": config}))
    assert "golden.json: 199 log-probabilities within" in good(cache, MODEL)


@pytest.mark.parametrize("isa", ["ref", "avx2", "avx512", "vnni", "amx"])
def test_on_every_isa(cache, isa):
    for name in (MODEL, "gguf-llama-q4_k_m", "quant-awq"):
        good(cache, name, INFERD_ISA=isa)
        assert "to the bit as on" in good(cache, name, INFERD_ISA=isa, INFERD_THREADS="1")


def test_of_the_hub(hub, cache):
    cache.pull("acme/llama")
    out = good(cache, "acme/llama")
    assert "checksum that the hub gave" in out and "kept in" in out and "golden.json" not in out
    assert "to the bit as on 20" in good(cache, "acme/llama")
    blob = next(cache.snapshot("acme/llama").glob("*.safetensors")).resolve()
    data = bytearray(blob.read_bytes())
    data[-1000] ^= 1
    blob.write_bytes(data)
    assert ".safetensors" in bad(cache, "acme/llama", 6)


def test_whole_files_of_no_model(cache):
    cache.pull("acme/tiny")
    done = cache.run("verify", "acme/tiny")
    assert done.returncode == 6 and "checksum that the hub gave" in done.stdout
    assert "cannot load them" in done.stderr and "another pull would not help" in done.stderr and "acme/tiny" in done.stderr


def test_whole_files_of_an_architecture_that_is_not_known(hub, cache):
    files = {p.name: p.read_bytes() for p in (MODELS / MODEL).iterdir() if p.name != "golden.json"}
    config = json.loads(files["config.json"])
    hub.add("acme/strange", {**files, "config.json": json.dumps({**config, "model_type": "strange"}).encode()})
    cache.pull("acme/strange")
    message = bad(cache, "acme/strange", 6)
    assert "files are whole" in message and "cannot load" in message and '"strange"' in message and "llama" in message


def test_whole_files_that_do_not_fit(cache):
    cache.pull("acme/llama")
    message = bad(cache, "acme/llama", 7, INFERD_MEMORY="40M")
    assert "files are whole" in message and "needs" in message


def test_files_that_are_not_all(cache):
    cache.pull("acme/llama")
    next(cache.snapshot("acme/llama").glob("*-00001-*.safetensors")).unlink()
    assert "acme/llama" in bad(cache, "acme/llama", 3)


def test_no_model(cache):
    message = bad(cache, "nothere", 3)
    assert "'nothere' is no model of the folder " in message and "inferd list" in message and "not in the cache" in message


def test_a_bit_that_fell_over(cache, own):
    weights = (own / "model.safetensors").read_bytes()
    assert "kept in" in good(cache, MODEL)
    flipped = change(weights, "model.layers.0.mlp.down_proj.weight", lambda t: t[:40] + bytes([t[40] ^ 1]) + t[41:])
    overwrite(own / "model.safetensors", flipped)
    assert "differs from the one that was kept" in bad(cache, MODEL, 6)
    overwrite(own / "model.safetensors", weights)
    assert "to the bit as on" in good(cache, MODEL)
    (own / "model.safetensors").write_bytes(flipped)  # of another time: somebody put it there
    os.utime(own / "model.safetensors", (1e9, 1e9))
    for p in own.iterdir():
        os.utime(p, (1e9, 1e9))
    assert "kept in" in good(cache, MODEL)
    (own / "model.safetensors").write_bytes(change(weights, "lm_head.weight", lambda t: NOT_A_NUMBER + t[2:]))
    assert "not finite" in bad(cache, MODEL, 6)
    (own / "model.safetensors").write_bytes(weights[:-100])
    assert MODEL in bad(cache, MODEL, 6)


@pytest.mark.parametrize("kv", ["f32", "int24", "int16", "int8"])
def test_what_is_no_number_shows_with_every_cache(cache, own, kv):
    """Caches of integers cannot hold it: it must not become a number there."""
    weights = (own / "model.safetensors").read_bytes()
    for tensor in ("q_proj", "k_proj", "v_proj"):
        (own / "model.safetensors").write_bytes(
            change(weights, f"model.layers.0.self_attn.{tensor}.weight", lambda t: NOT_A_NUMBER + t[2:]))
        assert "not finite" in bad(cache, MODEL, 6, INFERD_KV_TYPE=kv)


@pytest.mark.parametrize("kv", ["int16", "int8"])
def test_golden_is_computed_exactly(cache, kv):
    assert "golden.json: 199 log-probabilities within" in good(cache, MODEL, INFERD_KV_TYPE=kv)


def test_profiles_are_told_apart(cache, own):
    assert "self-test (int8" in good(cache, MODEL, INFERD_PROFILE="int8")
    assert "self-test (fp16" in good(cache, MODEL) and "to the bit" in good(cache, MODEL)
    assert "to the bit" in good(cache, MODEL, INFERD_PROFILE="int8")


def test_golden_of_other_weights(cache, own):
    golden = json.loads((MODELS / MODEL / "golden.json").read_text())
    file = own / "golden.json"
    shutil.copy(MODELS / MODEL / "golden.json", file)
    good(cache, MODEL, INFERD_PROFILE="int8")  # held against the exact profile all the same
    moved = [p + (0.002 if i == 100 else 0) for i, p in enumerate(golden["next_logprobs"])]
    for wrong, says in (({"next_logprobs": moved}, "differ by up to 0.00"),
                        ({"greedy_ids": [7] + golden["greedy_ids"][1:]}, "0 of 1 greedy ids")):
        file.write_text(json.dumps({**golden, **wrong}))
        message = bad(cache, MODEL, 6)
        assert says in message and str(file) in message
    for wrong in ({"prompt": [1, 2, 3]}, {"prompt": golden["prompt"][:-1] + [288]}, {"greedy_margins": []}, {"prompt": "x"}):
        file.write_text(json.dumps({**golden, **wrong}))
        assert str(file) in bad(cache, MODEL, 2)
    file.write_text("{")
    assert "no JSON" in bad(cache, MODEL, 2)


def test_a_record_that_is_damaged_is_made_anew(cache, own, tmp_path):
    good(cache, MODEL)
    record, = (tmp_path / "data" / "golden").iterdir()
    kept = json.loads(record.read_text())
    assert kept["profile"] == "fp16" and len(kept["ids"]) == 32
    record.write_text(record.read_text()[:-20])
    assert "kept in" in good(cache, MODEL)
    assert json.loads(record.read_text())["bits"] == kept["bits"]


def test_no_room_for_it(cache, own):
    message = bad(cache, MODEL, 7, INFERD_MEMORY="40M")
    assert message.count(f"Model '{MODEL}'") == 1 and "does not fit" in message and "needs" in message
