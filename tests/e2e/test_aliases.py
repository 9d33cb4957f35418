"""Short names: shipped ones and those of DATA_DIR/aliases.json, read again while the server runs (C12, R18)."""
import json
import os
import shutil
import signal

import pytest
import requests

from conftest import MODELS, until


@pytest.fixture
def aliased(start, tmp_path):
    """A server with a way to write its aliases; the file is replaced in one step, as an editor does."""
    s = start()

    def write(text, hup=False):
        text = text if isinstance(text, str) else json.dumps(text)
        (s.tmp / "aliases.new").write_text(text)
        os.replace(s.tmp / "aliases.new", s.tmp / "aliases.json")
        if hup:
            s.process.send_signal(signal.SIGHUP)

    s.write = write
    return s


def found(s, name):
    r = s.get("/models/" + name)
    return r.json().get("name") if r.status_code == 200 else None


def test_of_a_model_that_is_called_like_a_shipped_alias(start, tmp_path):
    """The folder's model goes before what the shipped alias stands for, by the file's alias too."""
    models = tmp_path / "models"
    shutil.copytree(MODELS / "qwen2-f32", models / "smollm2")
    s = start("--models-dir", str(models))
    (s.tmp / "aliases.json").write_text('{"default": "first", "first": "smollm2", "hub": "gpt2"}')
    s.process.send_signal(signal.SIGHUP)
    assert until(lambda: found(s, "default")) == "smollm2" == found(s, "first")
    assert "openai-community/gpt2" not in str(found(s, "hub")) and "inferd pull hub" in s.get("/models/hub").text


def test_every_endpoint(aliased):
    aliased.write({"short": "qwen2-f32", "other": {"model": "short"}}, hup=True)
    assert until(lambda: found(aliased, "other")) == "qwen2-f32"
    messages = [{"role": "user", "content": "hi"}]
    for path, body in [("/chat", {"messages": messages, "max_tokens": 2}),
                       ("/v1/chat/completions", {"messages": messages, "max_tokens": 2}),
                       ("/v1/completions", {"prompt": "hi", "max_tokens": 2}),
                       ("/tokenize", {"prompt": "hi"}), ("/detokenize", {"tokens": [5]}),
                       ("/apply-template", {"messages": messages})]:
        for name in ("short", "other", "other:latest"):
            r = aliased.post(path, {"model": name, **body})
            assert r.status_code == 200, (path, r.text)
    assert requests.post(aliased.url + "/models/short/load", timeout=20).json()["name"] == "qwen2-f32"
    assert aliased.get("/v1/models/short").json()["id"] == "qwen2-f32"
    assert aliased.get("/health").json()["models_loaded"] == 1  # one model, however it was called
    assert requests.post(aliased.url + "/models/other/unload", timeout=20).json()["name"] == "qwen2-f32"


def listed(s):
    return {m["name"]: m["aliases"] for m in s.get("/models").json()["models"] if m["aliases"]}


def same_elsewhere(s):
    """`GET /models/{name}` tells the same, and each alias is found."""
    for name, aliases in listed(s).items():
        assert s.get("/models/" + name).json()["aliases"] == aliases
        assert all(found(s, alias) == name for alias in aliases), (name, aliases)
    assert "aliases" not in s.get("/v1/models").text
    return True


def test_lists_show_them(aliased):
    assert listed(aliased) == {}
    aliased.write({"short": "qwen2-f32", "other": {"model": "short"}, "file": "qwen2-f32.gguf", "opt-f32": "gpt2-f32",
                   "nowhere": "org/name", "qwen2-f32-x": "qwen2-f32-x"}, hup=True)
    assert until(lambda: listed(aliased)) == {"qwen2-f32": ["short", "other", "file"], "gpt2-f32": ["opt-f32"]}
    assert same_elsewhere(aliased)
    assert aliased.post("/models/short/load", {}).json()["name"] == "qwen2-f32"
    assert listed(aliased)["qwen2-f32"] == ["short", "other", "file"]
    aliased.write('{"a"', hup=True)  # damaged: what was there stays
    assert until(lambda: "not JSON" in aliased.text()) and listed(aliased)["gpt2-f32"] == ["opt-f32"]
    aliased.write({}, hup=True)
    assert until(lambda: not listed(aliased))


def test_lists_show_shipped_ones(start, cache, hub, tmp_path):
    repo = "HuggingFaceTB/SmolLM2-135M-Instruct"
    hub.add(repo, {p.name: p.read_bytes() for p in (MODELS / "qwen2-f32").iterdir() if p.is_file()})
    cache.pull("smollm2")
    s = start(env={"HF_HUB_CACHE": str(cache.dir)})
    assert listed(s) == {repo: ["smollm2"]}
    (s.tmp / "aliases.json").write_text(json.dumps({"mine": "smollm2", "main": repo + "@main", "its": "hf.co/" + repo}))
    assert until(lambda: listed(s) == {repo: ["mine", "main", "its", "smollm2"]}), listed(s)
    assert same_elsewhere(s)
    (s.tmp / "aliases.json").write_text(json.dumps({"mine": "smollm2", "smollm2": "gpt2-f32"}))
    assert until(lambda: listed(s) == {"gpt2-f32": ["mine", "smollm2"]}), listed(s)
    models = tmp_path / "models"
    shutil.copytree(MODELS / "qwen2-f32", models / "smollm2")
    s = start("--models-dir", str(models), env={"HF_HUB_CACHE": str(cache.dir)})
    (s.tmp / "aliases.json").write_text('{"mine": "smollm2"}')
    assert until(lambda: listed(s)) == {"smollm2": ["mine"]}  # the folder's model goes before
    assert same_elsewhere(s)


def test_read_again(aliased):
    assert found(aliased, "a") is None
    aliased.write({"a": "gpt2-f32"})
    assert until(lambda: found(aliased, "a")) == "gpt2-f32"
    aliased.write({"a": "opt-f32"})
    assert until(lambda: found(aliased, "a") == "opt-f32")
    (aliased.tmp / "aliases.json").unlink()
    assert until(lambda: found(aliased, "a") is None)


def test_bad_entries(aliased):
    aliased.write({"good": "gpt2-f32", "x": "y", "y": "x", "z": "x", "number": 7, "empty": "", "self": "self"}, hup=True)
    assert until(lambda: found(aliased, "good")) == "gpt2-f32"
    problems = aliased.get("/health").json()["alias_problems"]
    for name in ("x", "y", "z", "number", "empty", "self"):
        assert any(f"'{name}'" in p for p in problems), name
        assert f"'{name}'" in aliased.text()
        assert found(aliased, name) is None
    aliased.write('{"good": "opt-f32",', hup=True)  # cut: what was there stays
    assert until(lambda: "not JSON" in str(aliased.get("/health").json()["alias_problems"]))
    assert found(aliased, "good") == "gpt2-f32" and aliased.get("/health").json()["status"] == "healthy"


def test_long_chain(aliased):
    """As many aliases as a file may have, each of the next: refused at once, not followed for minutes."""
    chain = {f"a{i}": f"a{i + 1}" for i in range(4095)} | {"a4095": "gpt2-f32", "good": "a4085", "bad": "a4080"}
    del chain["a0"], chain["a1"]
    aliased.write(chain, hup=True)
    assert until(lambda: found(aliased, "good")) == "gpt2-f32"
    assert found(aliased, "bad") is None and found(aliased, "a2") is None
    assert "more than 16 aliases" in str(aliased.get("/health").json()["alias_problems"])


def test_shipped(aliased):
    for name in ("gpt2", "llama3-70b", "qwen2-72b"):
        r = aliased.get("/models/" + name)
        message = r.json()["error"]["message"]
        assert r.status_code == 404 and f"'{name}' is not downloaded" in message
        assert f"inferd pull {name}" in message and f'POST /pull {{"model":"{name}"}}' in message
    aliased.write({"gpt2": "gpt2-f32"}, hup=True)  # the file goes before what is shipped
    assert until(lambda: found(aliased, "gpt2")) == "gpt2-f32"
