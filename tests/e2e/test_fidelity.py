"""Log-probabilities and greedy answers of the real binary against transformers' (tests/golden; tools/make_tiny_models.py
and tools/make_smollm2_vectors.py made them)."""
import json
import pathlib

import pytest

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden"
MODELS = sorted(p.parent.name for p in (GOLDEN / "models").glob("*/golden.json"))
SMOLLM2 = GOLDEN.parents[1] / "models" / "smollm2.gguf"
EXACT_MAX = 1e-3      # of any log-probability, weights and activations as in the file
MARGIN_MIN = 1e-3     # greedy ids may differ where the best two logits are closer
SMOLLM2_EXACT_MAX = 3e-3
SMOLLM2_NATIVE_MEAN = 0.02
SMOLLM2_INT8_MEAN = 0.1


@pytest.fixture(scope="module")
def exact(start_once):
    return start_once("--profile", "fp16")


def prompt_logprobs(server, model, ids):
    r = server.post("/v1/completions", {"model": model, "prompt": ids, "echo": True, "max_tokens": 0, "logprobs": 5,
                                        "return_tokens_as_token_ids": True})
    assert r.status_code == 200, r.text
    got = r.json()["choices"][0]["logprobs"]
    assert got["token_logprobs"][0] is None and len(got["token_logprobs"]) == len(ids)
    return got


def greedy(server, model, ids, n):
    r = server.post("/v1/completions", {"model": model, "prompt": ids, "max_tokens": n, "temperature": 0,
                                        "ignore_eos": True, "return_token_ids": True})
    assert r.status_code == 200, r.text
    return r.json()["choices"][0]["token_ids"]


def assert_same_greedy(got, want, margins):
    """Behind a near tie the two may go different ways."""
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        if a != b:
            assert margins[i] < MARGIN_MIN, f"id {i} is {a}, expected {b} (margin {margins[i]})"
            return


def test_goldens_are_there():
    assert len(MODELS) >= 52


@pytest.mark.parametrize("model", MODELS)
def test_tiny_model(exact, model):
    golden = json.loads((GOLDEN / "models" / model / "golden.json").read_text())
    got = prompt_logprobs(exact, model, golden["prompt"])
    bound = golden.get("logprob_max", EXACT_MAX)
    assert max(abs(a - b) for a, b in zip(got["token_logprobs"][1:], golden["next_logprobs"], strict=True)) < bound
    for i, top in enumerate(got["top_logprobs"][1:]):
        for id, p in zip(golden["top_ids"][i], golden["top_logprobs"][i]):
            assert f"token_id:{id}" not in top or abs(top[f"token_id:{id}"] - p) < bound
    assert_same_greedy(greedy(exact, model, golden["prompt"], 48), golden["greedy_ids"], golden["greedy_margins"])


@pytest.fixture(scope="module")
def chats():
    return json.loads((GOLDEN / "smollm2.json").read_text())


def differences(server, chats):
    for c in chats:
        ids = c["prompt"] + c["answer"]
        got = prompt_logprobs(server, "smollm2", ids)["token_logprobs"][1:]
        yield [abs(a - b) for a, b in zip(got, c["logprobs"], strict=True)]


@pytest.mark.skipif(not SMOLLM2.exists(), reason="models/smollm2.gguf is not there: tools/fetch_model.sh models")
def test_smollm2_exact(start_once, chats):
    s = start_once("--profile", "fp16", "--models-dir", str(SMOLLM2.parent))
    assert len(chats) == 20
    assert max(max(d) for d in differences(s, chats)) < SMOLLM2_EXACT_MAX
    for c in chats:
        r = s.post("/v1/chat/completions", {"model": "smollm2", "messages": c["messages"], "temperature": 0,
                                            "max_tokens": len(c["answer"]), "return_token_ids": True})
        assert r.status_code == 200, r.text
        assert r.json()["choices"][0]["prompt_token_ids"] == c["prompt"]
        assert_same_greedy(r.json()["choices"][0]["token_ids"], c["answer"], c["margins"])


@pytest.mark.skipif(not SMOLLM2.exists(), reason="models/smollm2.gguf is not there: tools/fetch_model.sh models")
def test_smollm2_native(start_once, chats):
    s = start_once("--profile", "native", "--models-dir", str(SMOLLM2.parent))
    d = [x for one in differences(s, chats) for x in one]
    assert sum(d) / len(d) < SMOLLM2_NATIVE_MEAN


@pytest.mark.skipif(not SMOLLM2.exists(), reason="models/smollm2.gguf is not there: tools/fetch_model.sh models")
def test_smollm2_activations_of_8_bits(start_once, chats):
    """int8 of a file of integers keeps its codes and rounds activations: off by more than native may be, and no more than that."""
    s = start_once("--profile", "int8", "--models-dir", str(SMOLLM2.parent))
    d = [x for one in differences(s, chats) for x in one]
    assert SMOLLM2_NATIVE_MEAN < sum(d) / len(d) < SMOLLM2_INT8_MEAN
