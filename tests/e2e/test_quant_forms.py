"""Forms of quantized checkpoints that older tools wrote: what says the same gives the same answer, and what says otherwise is refused."""
import array
import json
import shutil

import pytest

from conftest import MODELS

PROMPT = [5, 6, 7, 8, 9, 10, 11, 12]


def read_tensors(path):
    """{name: (dtype, shape, bytes)}"""
    data = path.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    head = json.loads(data[8:begin])
    head.pop("__metadata__", None)
    return {k: (v["dtype"], v["shape"], data[begin + v["data_offsets"][0]:begin + v["data_offsets"][1]])
            for k, v in head.items()}


def write_tensors(path, tensors):
    head, at = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        head[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(head).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(data for _, _, data in tensors.values()))


def ints(values):
    return array.array("i", values).tobytes()


def of(tensors, ending):
    return [name for name in tensors if name.endswith(ending)]


def unset_groups(tensors, config):
    for name in of(tensors, ".weight_packed"):
        n_in = 8 * tensors[name][1][1]
        tensors[name.replace("_packed", "_g_idx")] = ("I32", [n_in], ints([-1] * n_in))


def zero_points_unpacked(tensors, config):
    for name in of(tensors, ".weight_zero_point"):
        (words, groups), packed = tensors[name][1], array.array("I", tensors[name][2])
        zeros = [(packed[out // 8 * groups + g] >> out % 8 * 4 & 15) - 8 for out in range(8 * words) for g in range(groups)]
        tensors[name] = ("I8", [8 * words, groups], array.array("b", zeros).tobytes())


def scales_of_a_cache(tensors, config):
    for layer in range(config["num_hidden_layers"]):
        for name in ("self_attn.k_scale", "self_attn.v_scale", "self_attn.q_scale"):
            tensors[f"model.layers.{layer}.{name}"] = ("F32", [1], array.array("f", [0.25]).tobytes())


def shapes_of_32_bits(tensors, config):
    for name in of(tensors, ".weight_shape"):
        tensors[name] = ("I32", [2], ints(array.array("q", tensors[name][2])))


def groups_all_zero(tensors, config):
    for name in of(tensors, ".g_idx"):
        tensors[name] = ("I32", tensors[name][1], bytes(len(tensors[name][2])))


def groups_all_zero_but_one(tensors, config):
    groups_all_zero(tensors, config)
    name = of(tensors, "layers.0.self_attn.o_proj.g_idx")[0]
    tensors[name] = ("I32", tensors[name][1], tensors[name][2][:-4] + ints([1]))


def one_group_unset(tensors, config):
    name = of(tensors, "layers.0.self_attn.o_proj.weight_g_idx")[0]
    tensors[name] = ("I32", tensors[name][1], ints([-1]) + tensors[name][2][4:])


def another_shape(tensors, config):
    name = of(tensors, "layers.0.mlp.down_proj.weight_shape")[0]
    tensors[name] = ("I64", [2], array.array("q", [64, 95]).tobytes())


def rope_parameters(value, scaling=None):
    def change(tensors, config):
        config["rope_scaling"] = scaling
        config["rope_parameters"] = value
    return change


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def s(start_once, models):
    return start_once("--models-dir", str(models))


def variant(models, base, change):
    folder = models / f"{base}-{len(list(models.iterdir()))}"
    shutil.copytree(MODELS / base, folder)
    config = json.loads((folder / "config.json").read_text())
    tensors = read_tensors(folder / "model.safetensors")
    change(tensors, config)
    write_tensors(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps(config))
    return folder.name


def ask(s, model):
    return s.post("/v1/completions", {"model": model, "prompt": PROMPT, "max_tokens": 8, "temperature": 0, "logprobs": 3})


@pytest.mark.parametrize("base, change", [("quant-ct-int4-asym", unset_groups), ("quant-ct-int4-asym", zero_points_unpacked),
                                          ("quant-ct-int4-asym", shapes_of_32_bits), ("quant-ct-fp8", scales_of_a_cache),
                                          ("quant-gptq4", groups_all_zero)])
def test_says_the_same(s, models, base, change):
    answers = [ask(s, variant(models, base, c)) for c in (lambda tensors, config: None, change)]
    assert [a.status_code for a in answers] == [200, 200], answers[1].text
    assert answers[0].json()["choices"] == answers[1].json()["choices"]


@pytest.mark.parametrize("base, change, words", [
    ("quant-gptq4-order", groups_all_zero, "puts input 32 into group 0"),
    ("quant-gptq4", groups_all_zero_but_one, "puts input 32 into group 0"),
    ("quant-ct-int4-order", one_group_unset, "puts input 0 into group -1"),
    ("quant-ct-int4-asym", another_shape, "down_proj.weight_shape' tells of 64 x 95 codes, but the configuration asks for 64 x 96"),
    ("llama-bf16", scales_of_a_cache, "has no place"),
    ("llama-bf16", rope_parameters(5, {"rope_type": "default"}), '"rope_parameters" is 5, expected an object'),
    ("llama-bf16", rope_parameters({"full_attention": [1]}), '"full_attention" is [1], expected an object'),
    ("gemma3-bf16", rope_parameters({"sliding_attention": 7}), '"sliding_attention" is 7, expected an object'),
    ("gemma3-bf16", rope_parameters({"full_attention": {}, "sliding_attention": {"rope_type": 7}}), "(no string)")])
def test_says_otherwise(s, models, base, change, words):
    r = ask(s, variant(models, base, change))
    assert 400 <= r.status_code < 600 and words in r.json()["error"]["message"], r.text
