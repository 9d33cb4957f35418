"""One cache for huggingface_hub (the real client) and inferd, in both directions; and the hub of these tests held against it."""
import os
import subprocess
import sys
import time

import huggingface_hub
import huggingface_hub.errors  # else it is there only when something else has asked for it
import pytest

from hub_tools import Cache

PATTERNS = ["*.json", "*.safetensors", "*.gguf"]


def python(cache, code, **env):
    """Runs code in a fresh interpreter: huggingface_hub reads the environment once."""
    done = subprocess.run([sys.executable, "-c", "from huggingface_hub import *\n" + code], text=True, capture_output=True,
                          env={**cache.env(**env), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1",
                               "HF_HUB_DISABLE_PROGRESS_BARS": "1"}, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def api(hub, **kw):
    return huggingface_hub.HfApi(endpoint=hub.url, **kw)


def test_the_hub_is_one(hub, cache):
    info = api(hub, token=False).model_info("acme/tiny", files_metadata=True)
    files = hub.repos["acme/tiny"].commits[info.sha]
    for s in info.siblings:
        f = files[s.rfilename]
        assert s.size == f.size and s.blob_id == f.git and (s.lfs.sha256 if s.lfs else None) == (f.sha256 if f.lfs else None)
    tree = {e.path: e for e in api(hub, token=False).list_repo_tree("acme/tiny", recursive=True) if hasattr(e, "size")}
    assert {p: e.size for p, e in tree.items()} == {p: f.size for p, f in files.items()}
    url = huggingface_hub.hf_hub_url("acme/tiny", "model.safetensors", endpoint=hub.url)
    meta = huggingface_hub.get_hf_file_metadata(url, token=False, endpoint=hub.url)
    assert (meta.etag, meta.size, meta.commit_hash) == (files["model.safetensors"].sha256, 3 << 20, info.sha)
    assert meta.location.startswith(hub.cdn_url)


@pytest.mark.parametrize("name, error", [("acme/gated", "GatedRepoError"), ("acme/private", "RepositoryNotFoundError"),
                                         ("acme/missing", "RepositoryNotFoundError")])
def test_the_hub_refuses_as_one(hub, cache, name, error):
    with pytest.raises(getattr(huggingface_hub.errors, error)):
        huggingface_hub.hf_hub_download(name, "config.json", endpoint=hub.url, token=False, cache_dir=cache.dir)
    with pytest.raises(huggingface_hub.errors.RevisionNotFoundError):
        api(hub, token=False).model_info("acme/tiny", revision="nowhere")
    with pytest.raises(huggingface_hub.errors.RemoteEntryNotFoundError):
        huggingface_hub.hf_hub_download("acme/tiny", "nothing", endpoint=hub.url, token=False, cache_dir=cache.dir)


@pytest.mark.parametrize("name, git_redirect", [("acme/tiny", False), ("acme/sharded", True), ("acme/gguf", False)])
def test_inferd_finds_what_python_fetched(hub, cache, name, git_redirect):
    hub.git_redirect = git_redirect
    folder = python(cache, f"print(snapshot_download({name!r}, allow_patterns={PATTERNS}))")
    assert folder == str(cache.snapshot(name))
    cache.check(name)
    files = hub.sent("cdn") + hub.sent("resolve") + hub.sent("resolve-cache")
    assert "0 B fetched" in cache.pull(name)
    assert "0 B fetched" in cache.pull(name, HF_HUB_OFFLINE="1")
    assert hub.sent("cdn") + hub.sent("resolve") + hub.sent("resolve-cache") == files
    cache.verify_noise(name)


@pytest.mark.parametrize("name", ["acme/tiny", "acme/tiny@feature/x", "acme/sharded", "acme/gguf:Q6_K"])
def test_python_finds_what_inferd_fetched(hub, cache, name):
    cache.pull(name)
    repo, _, revision = name.split(":")[0].partition("@")
    n = len(hub.requests)
    found = python(cache, f"print(snapshot_download({repo!r}, revision={revision or None!r}, local_files_only=True))")
    assert found == str(cache.snapshot(repo, revision or "main"))
    assert [r for r in hub.requests[n:] if repo in r.path] == []
    scanned = python(cache, "i = scan_cache_dir()\nprint([(r.repo_id, r.size_on_disk, [v.commit_hash for v in r.revisions],"
                            " [sorted(v.refs) for v in r.revisions]) for r in i.repos], i.warnings)")
    size = sum(p.stat().st_size for p in (cache.folder(repo) / "blobs").iterdir())
    commit = cache.snapshot(repo, revision or "main").name
    assert scanned == f"{[(repo, size, [commit], [[revision or 'main']])]} []"


def test_python_goes_on_with_what_inferd_fetched(hub, cache):
    """Its own client asks the hub for all files and fetches only those that inferd had no use for."""
    cache.pull("acme/tiny")
    sent = hub.sent("cdn")
    python(cache, "snapshot_download('acme/tiny')")
    others = sum(f.size for p, f in hub.repos["acme/tiny"].commits[hub.repos["acme/tiny"].refs["main"]].items()
                 if f.lfs and p != "model.safetensors")
    assert hub.sent("cdn") - sent == others
    cache.check("acme/tiny")


def test_both_at_once(hub, cache):
    """The locks are the same: whoever is second waits for the first and fetches nothing."""
    hub.rate = 3 << 20
    p = cache.start("pull", "acme/tiny")
    while hub.sent() == 0:
        assert p.poll() is None
        time.sleep(0.01)
    python(cache, "hf_hub_download('acme/tiny', 'model.safetensors')")
    assert p.wait(60) == 0
    cache.check("acme/tiny")
    assert hub.sent() < 3.1 * (1 << 20)


def test_the_token_follows_neither_client(hub, cache):
    python(cache, "snapshot_download('acme/gated')", HF_TOKEN="hf_member")
    other = Cache(hub, cache.home.parent / "other")
    other.pull("acme/gated", HF_TOKEN="hf_member")
    assert any("authorization" in r.headers for r in hub.requests if r.origin == "hub")
    assert any(r.origin == "cdn" for r in hub.requests) and hub.leaks() == []
    assert os.path.exists(other.snapshot("acme/gated") / "model.safetensors")
