"""What lies in the models folder, and every name by which people call it (C2, R10)."""
import os
import pathlib
import shutil
import subprocess
import tempfile

import pytest

from conftest import BINARY, MODELS

MESSAGES = [{"role": "user", "content": "hi"}]
ONE = MODELS / "gguf-qwen2-q4_0" / "model.gguf"
SPLIT = MODELS / "gguf-llama-q8_0-split"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    f = tmp_path_factory.mktemp("names") / "models"
    f.mkdir()
    shutil.copy(ONE, f / "one.gguf")
    for part in SPLIT.glob("*.gguf"):
        shutil.copy(part, f / part.name.replace("model", "parts"))
    (f / "shelf").mkdir()  # as the hub's own client leaves a repository with several quantizations
    shutil.copy(ONE, f / "shelf" / "a-Q4_0.gguf")
    for part in SPLIT.glob("*.gguf"):
        shutil.copy(part, f / "shelf" / part.name.replace("model", "b-Q8_0"))
    shutil.copy(ONE, f / "shelf" / "b-Q8_0.gguf")
    shutil.copy(ONE, f / "shelf" / "mmproj-f16.gguf")
    shutil.copytree(MODELS / "llama-tied-f32", f / "a folder, ü")
    os.symlink(ONE, f / "link.gguf")
    os.symlink(f / "nowhere", f / "broken.gguf")
    os.mkfifo(f / "pipe.gguf")
    return f


@pytest.fixture(scope="module")
def served(start_once, folder):
    return start_once("--models-dir", str(folder))


def test_list(served):
    listed = {m["name"]: m["size"] for m in served.get("/models").json()["models"]}
    parts = sum(p.stat().st_size for p in SPLIT.glob("*.gguf"))
    assert set(listed) == {"one", "parts", "shelf/a-Q4_0", "shelf/b-Q8_0", "shelf/b-Q8_0.gguf", "a folder, ü", "link"}
    assert listed["one"] == listed["link"] == listed["shelf/a-Q4_0"] == ONE.stat().st_size
    assert listed["parts"] == listed["shelf/b-Q8_0"] == parts


@pytest.mark.parametrize("name,id", [
    ("one", "one"), ("one.gguf", "one"), ("models/one.gguf", None), ("{}/one.gguf", "one"), ("{}/one", "one"), ("link.gguf", "link"),
    ("parts", "parts"), ("parts-00001-of-00003.gguf", "parts"), ("{}/parts-00002-of-00003.gguf", "parts"),
    ("parts-00004-of-00003.gguf", None), ("shelf/a-Q4_0", "shelf/a-Q4_0"), ("shelf/a-Q4_0.gguf", "shelf/a-Q4_0"),
    ("{}/shelf/a-Q4_0.gguf", "shelf/a-Q4_0"), ("shelf/b-Q8_0-00001-of-00003.gguf", "shelf/b-Q8_0"),
    ("shelf/b-Q8_0.gguf", "shelf/b-Q8_0.gguf"), ("a folder, ü", "a folder, ü"), ("{}/../models/one.gguf", None), ("broken", None),
])
def test_names(served, folder, name, id):
    r = served.post("/chat", {"model": name.format(folder), "messages": MESSAGES, "max_tokens": 1})
    if id is None:
        assert r.status_code == 404 and r.json()["error"]["code"] == "model_not_found", r.text
    else:
        assert r.status_code == 200 and r.json()["model"] in (id, name.format(folder)), r.text
        assert served.get("/models/" + id).json()["loaded"] is True


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="no tmpfs, which lists files in the order in which they came")
@pytest.mark.parametrize("whole_at", ["first", "last"])
def test_names_do_not_depend_on_the_order_of_a_folder(start, whole_at):
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        folder = pathlib.Path(name)
        if whole_at == "first":
            shutil.copy(ONE, folder / "m.gguf")
        for part in SPLIT.glob("*.gguf"):
            shutil.copy(part, folder / part.name.replace("model", "m"))
        if whole_at == "last":
            shutil.copy(ONE, folder / "m.gguf")
        listed = {m["name"]: m["size"] for m in start("--models-dir", name).get("/models").json()["models"]}
    assert listed == {"m": sum(p.stat().st_size for p in SPLIT.glob("*.gguf")), "m.gguf": ONE.stat().st_size}


def test_who_asks_for_a_folder_is_told_what_to_name(served):
    error = served.post("/chat", {"model": "shelf", "messages": MESSAGES}).json()["error"]
    assert error["code"] == "model_unsupported" and "a-Q4_0.gguf" in error["message"] and "shelf/" in error["message"]
    error = served.post("/chat", {"model": "pipe.gguf", "messages": MESSAGES}).json()["error"]
    assert "not a regular file" in error["message"]


def test_a_relative_folder(start_at, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder.parent)
    for given in ("models", "./models"):
        s = start_at(tmp_path / "data", "--models-dir", given)
        for name in ("models/one.gguf", "./models/one.gguf", f"{folder}/one.gguf", "models/shelf/a-Q4_0.gguf"):
            assert s.get("/models/" + name).status_code == 200, (given, name)
        assert s.stop() == 0


def test_endings_in_capitals(start, tmp_path):
    """Files that were named on systems where case means nothing are found, listed, opened and called as others are."""
    f = tmp_path / "models"
    (f / "boxed").mkdir(parents=True)
    shutil.copy(ONE, f / "LOUD.GGUF")
    shutil.copy(ONE, f / "boxed" / "any.Gguf")
    for part in SPLIT.glob("*.gguf"):
        shutil.copy(part, f / part.name.replace("model", "PARTS").replace(".gguf", ".GGUF"))
    shutil.copytree(MODELS / "llama-tied-f32", f / "folder")
    (f / "folder" / "model.safetensors").rename(f / "folder" / "MODEL.SAFETENSORS")
    shutil.copy(ONE, f / "twice.gguf")
    shutil.copy(ONE, f / "twice.GGUF")
    s = start("--models-dir", str(f))
    names = {m["name"] for m in s.get("/models").json()["models"]}
    assert names == {"LOUD", "boxed", "PARTS", "folder", "twice", "twice.gguf"}
    parts = [p.name for p in f.glob("PARTS*")]
    for name in (*names, "LOUD.GGUF", "LOUD.gguf", "twice.GGUF", f"{f}/LOUD.GGUF", *parts):
        r = s.post("/chat", {"model": name, "messages": MESSAGES, "max_tokens": 1})
        assert r.status_code == 200, (name, r.text)
    for path in (f / "LOUD.GGUF", f / "boxed", f / parts[0]):
        out = subprocess.run([BINARY, "plan", path], capture_output=True, text=True)
        assert out.returncode == 0 and "weights" in out.stdout, (path, out)
