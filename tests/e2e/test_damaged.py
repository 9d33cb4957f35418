"""Models that cannot be loaded, through the real binary: an answer that names the file, and the server goes on (C17)."""
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading

import pytest

from conftest import MODELS, ROOT, until

GGUF = MODELS / "gguf-qwen2-q4_0" / "model.gguf"
FOLDER = MODELS / "qwen2-f32"


def ask(s, name):
    return s.post("/v1/completions", {"model": name, "prompt": [5, 6], "max_tokens": 1})


@pytest.fixture
def models(tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    shutil.copytree(FOLDER, folder / "good")
    return folder


def variant(models, name, **files):
    """A copy of the good model with other contents for some files."""
    (models / name).mkdir()
    for f in os.listdir(FOLDER):
        if f not in files:
            os.link(models / "good" / f, models / name / f)
    for f, data in files.items():
        (models / name / f).write_bytes(data)


def cuts_and_flips(data, header, n):
    """Cut everywhere in the header (every byte at first), and bytes changed there."""
    rng = random.Random(7)
    for at in sorted({*range(0, min(32, header)), *(header * i // n for i in range(n)), header, len(data) - 1}):
        yield data[:at]
    for _ in range(n):
        at = rng.randrange(header)
        yield data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1:]


def test_damaged_files(start, models):
    whole = (FOLDER / "model.safetensors").read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for i, data in enumerate(cuts_and_flips(whole, header, 40)):
        variant(models, f"st{i}", **{"model.safetensors": data})
    whole = GGUF.read_bytes()
    for i, data in enumerate(cuts_and_flips(whole, whole.index(b"blk.0"), 40)):
        (models / f"gg{i}.gguf").write_bytes(data)
    s = start("--models-dir", str(models), "--keep-alive", "0")
    refused = 0
    for name in sorted(m["name"] for m in s.get("/models").json()["models"]):
        r = ask(s, name)
        if r.status_code == 200:  # a flip that no reader could notice, as in the name of a metadata key
            continue
        refused += 1
        error = r.json()["error"]
        assert 400 <= r.status_code < 600 and name in error["message"], r.text
        assert error["code"] in ("model_damaged", "model_unsupported", "io_error", "insufficient_memory"), r.text
        assert s.get("/models/" + name).status_code == 200  # and it can be looked at
    assert refused > 120
    assert ask(s, "good").status_code == 200 and s.get("/health").json()["status"] == "healthy"


def test_lies(start, models):
    whole = (FOLDER / "model.safetensors").read_bytes()
    size = int.from_bytes(whole[:8], "little")
    head = json.loads(whole[8:8 + size])
    config = json.loads((FOLDER / "config.json").read_text())

    def with_head(change):
        h = json.loads(json.dumps(head))
        change(h, next(k for k in h if k != "__metadata__"))
        text = json.dumps(h).encode()
        return len(text).to_bytes(8, "little") + text + whole[8 + size:]

    cases = {
        "dtype": ({"model.safetensors": with_head(lambda h, k: h[k].update(dtype="F3"))}, "F3"),
        "shape": ({"model.safetensors": with_head(lambda h, k: h[k].update(shape=[1 << 40, 1 << 40]))}, "model.safetensors"),
        "offsets": ({"model.safetensors": with_head(lambda h, k: h[k].update(data_offsets=[0, 1 << 50]))}, "model.safetensors"),
        "missing": ({"model.safetensors": with_head(lambda h, k: h.pop(k))}, ""),
        "arch": ({"config.json": json.dumps({**config, "model_type": "martian"}).encode()}, "martian"),
        "nojson": ({"config.json": b"{"}, "config.json"),
        "wide": ({"config.json": json.dumps({**config, "hidden_size": 1 << 30}).encode()}, ""),
        "tokenizer": ({"tokenizer.json": b"[]"}, "tokenizer"),
    }
    for name, (files, _) in cases.items():
        variant(models, name, **files)
    s = start("--models-dir", str(models))
    for name, (_, word) in cases.items():
        r = ask(s, name)
        assert 400 <= r.status_code < 600 and word in r.json()["error"]["message"], (name, r.text)
    assert ask(s, "good").status_code == 200


def test_failure_does_not_stay(start, models):
    variant(models, "mended", **{"model.safetensors": b"cut"})
    s = start("--models-dir", str(models))
    for _ in range(2):
        assert ask(s, "mended").status_code == 500
    shutil.copy(FOLDER / "model.safetensors", models / "mended" / "new")
    os.replace(models / "mended" / "new", models / "mended" / "model.safetensors")
    assert ask(s, "mended").status_code == 200
    assert until(lambda: s.get("/health").json()["status"] == "healthy")


def cut_while_it_loads(s, path):
    """Asks for the model `large`, and cuts its weights as soon as the server has them open: the answer."""
    answers = []
    asking = threading.Thread(target=lambda: answers.append(ask(s, "large")))
    asking.start()
    maps = f"/proc/{s.process.pid}/maps"
    while asking.is_alive() and s.process.poll() is None and str(path) not in open(maps).read():
        pass
    os.kill(s.process.pid, signal.SIGSTOP)
    os.truncate(path, 100_000)
    os.kill(s.process.pid, signal.SIGCONT)
    asking.join()
    return answers[0] if answers else None


def test_a_file_that_is_cut_while_it_loads(start, models, tmp_path):
    """The load is refused, and the server goes on answering; a load that was over before the cut is tried again."""
    made = tmp_path / "made"
    subprocess.run([sys.executable, str(ROOT / "tools/make_shape.py"), "smollm2-135m", str(made), "--quick"], check=True)
    shutil.copytree(made, models / "large")
    s = start("--models-dir", str(models), "--keep-alive", "0", "--cache-bytes", "0")
    assert ask(s, "good").status_code == 200
    path = models / "large" / "model.safetensors"
    for _ in range(20):
        r = cut_while_it_loads(s, path)
        assert s.process.poll() is None, s.text()[-2000:]
        shutil.copy(made / "model.safetensors", models / "large" / "new")
        os.replace(models / "large" / "new", path)
        if r.status_code != 200:
            break
    assert r.status_code == 500 and "model.safetensors was cut while it was read" in r.json()["error"]["message"], r.text
    assert ask(s, "good").status_code == 200
    assert ask(s, "large").status_code == 200


def test_numbers_that_are_none(start, models):
    """Seen by the load, before anybody gets an answer of it."""
    data = (FOLDER / "model.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    name, norm = next((k, v) for k, v in json.loads(data[8:8 + size]).items() if k.endswith("norm.weight"))
    begin, end = (8 + size + x for x in norm["data_offsets"])
    nan = {"F32": b"\0\0\xc0\x7f", "BF16": b"\xc0\x7f", "F16": b"\0\x7e"}[norm["dtype"]]
    variant(models, "nan", **{"model.safetensors": data[:begin] + nan * ((end - begin) // len(nan)) + data[end:]})
    s = start("--models-dir", str(models))
    r = s.post("/models/nan/load", {})
    assert r.status_code == 500 and r.json()["error"]["code"] == "model_damaged", (name, r.text)
    assert "not finite" in r.json()["error"]["message"] and s.get("/health").json()["models_loaded"] == 0
    assert ask(s, "nan").status_code == 500


@pytest.mark.parametrize("profile", ["fp16", "int8", "int4"])
def test_one_number_that_is_none(start, models, profile):
    """Rounded to few bits it is still seen, in whatever matrix and place: a row's first weights or its last."""
    data = (FOLDER / "model.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    tensors = {k: v for k, v in json.loads(data[8:8 + size]).items() if ".layers.0." in k and len(v.get("shape", [])) == 2}
    assert len(tensors) >= 7
    for name, t in tensors.items():
        begin, end = (8 + size + x for x in t["data_offsets"])
        nan = {"F32": b"\0\0\xc0\x7f", "BF16": b"\xc0\x7f", "F16": b"\0\x7e"}[t["dtype"]]
        for place, at in (("first", begin), ("last", end - len(nan))):
            variant(models, f"{name}-{place}", **{"model.safetensors": data[:at] + nan + data[at + len(nan):]})
    s = start("--models-dir", str(models))
    assert s.post("/models/good/load", {"profile": profile}).json()["profile"] == profile
    for name in sorted(m["name"] for m in s.get("/models").json()["models"] if m["name"] != "good"):
        r = s.post(f"/models/{name}/load", {"profile": profile})
        assert r.status_code == 500 and "not finite" in r.json()["error"]["message"], (name, r.text)


def test_what_is_no_model_says_why(start, models):
    for name, files in (("pickle", {"config.json": b"{}", "pytorch_model.bin": b"x"}), ("bare", {"model.safetensors": b"x"}),
                        ("empty", {}), ("two", {"a.gguf": GGUF.read_bytes(), "b.gguf": GGUF.read_bytes()})):
        (models / name).mkdir()
        for file, data in files.items():
            (models / name / file).write_bytes(data)
    os.mkfifo(models / "pipe.gguf")
    s = start("--models-dir", str(models))
    for name, code, words in (("pickle", "model_unsupported", ["pytorch_model.bin", "safe_serialization"]),
                              ("bare", "model_damaged", ["config.json"]), ("empty", "model_not_found", ["*.safetensors", "*.gguf"]),
                              ("two", "model_unsupported", ["a.gguf", "b.gguf", "move the others"]),
                              ("pipe.gguf", "model_damaged", ["regular file"])):
        for r in (ask(s, name), s.get("/v1/models/" + name)):
            error = r.json()["error"]
            assert error["code"] == code and all(w in error["message"] for w in [name, *words]), error
    assert [m["name"] for m in s.get("/models").json()["models"]] == ["good", "two/a", "two/b"]


def test_names_by_file_and_path(start, models):
    shutil.copy(GGUF, models / "whole.gguf")
    for name in ("load", "reload"):
        shutil.copytree(models / "good", models / name)
    s = start("--models-dir", str(models))
    for name in ("load", "reload"):  # verbs too, elsewhere
        assert s.get("/models/" + name).json()["name"] == name
        assert s.post(f"/models/{name}/load", {}).json()["name"] == s.post(f"/models/{name}/unload", {}).json()["name"] == name
    assert until(lambda: s.get("/health").json()["models_loaded"] == 0)
    for name in ("whole", "whole.gguf", f"{models}/whole.gguf", f"{models}/good", "good:latest"):
        r = ask(s, name)
        assert r.status_code == 200 and r.json()["model"] == name, r.text
    assert s.get("/health").json()["models_loaded"] == 2
    for name in (f"{models}/good/config.json", f"{models}/../models/good", "good.gguf/x", "./good", "good\0"):
        assert ask(s, name).json()["error"]["code"] == "model_not_found", name


def test_element_types_that_are_not_read(start, models):
    """The text names the type and what to take."""
    whole = (MODELS / "gguf-llama-mixed" / "model.gguf").read_bytes()
    name = b"blk.0.ffn_down.weight"
    at = whole.index(name) + len(name) + 4 + 2 * 8  # behind the number of dimensions and two of them
    for file, number in (("iq2", 16), ("tq1", 34)):
        (models / f"{file}.gguf").write_bytes(whole[:at] + number.to_bytes(4, "little") + whole[at + 4:])
    s = start("--models-dir", str(models))
    for file, word in (("iq2", "IQ2_XXS"), ("tq1", "ggml type 34")):
        error = ask(s, file).json()["error"]
        assert error["code"] == "model_unsupported" and name.decode() in error["message"], error
        assert word in error["message"] and " take the model in " in error["message"].lower(), error
        assert "Q4_K" in error["message"] or "Q4_0" in error["message"]
