"""Plans, the packed cache and the memory of a load, with the real binary."""
import json
import re
import subprocess
import time

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


def hwm(server):
    text = open(f"/proc/{server.process.pid}/status").read()
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", text).group(1))


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
                for _ in range(600):
                    if "bytes kept" in server.text():
                        break
                    time.sleep(0.05)
        finally:
            assert server.stop() == 0
    assert answers[0] == answers[1]
    kept = list((tmp_path / "cache").glob("*.pack"))
    assert len(kept) == 1 and kept[0].stat().st_size < 1.01 * packed + 1e6
