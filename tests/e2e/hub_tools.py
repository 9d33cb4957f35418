"""What the tests of the hub share: repositories with the shapes that the real hub has, and a cache to pull into."""
import hashlib
import os
import pathlib
import pty
import random
import signal
import subprocess

from where import BINARY


def noise(n, seed):
    return random.Random(seed).randbytes(n)


def small_files():
    return {"config.json": b'{"model_type":"llama"}', "tokenizer.json": b'{"version":"1.0"}',
            "tokenizer_config.json": b"{}", "generation_config.json": b"{}", ".gitattributes": b"* text\n",
            "README.md": b"# A model\n"}


def add_repositories(hub):
    weights = noise(3 << 20, 1)
    tiny = hub.add("acme/tiny", {
        **small_files(), "model.safetensors": weights, "pytorch_model.bin": noise(5000, 2), "tf_model.h5": noise(5000, 3),
        "onnx/model.onnx": noise(5000, 4), "tiny.Q8_0.gguf": noise(5000, 5), "original/consolidated.00.pth": noise(5000, 6)})
    tiny.refs["v1.0"] = tiny.refs["main"]
    tiny.commit({**small_files(), "model.safetensors": weights, "chat_template.jinja": b"{{ messages }}"}, ref="feature/x")
    shards = {f"model-0000{i}-of-00003.safetensors": noise(300000 + i, 10 + i) for i in (1, 2, 3)}
    index = {"metadata": {}, "weight_map": {f"t{i}": name for i, name in enumerate(shards)}}
    hub.add("acme/sharded", {**small_files(), **shards, "consolidated.safetensors": noise(5000, 7),
                             "model.safetensors.index.json": repr(index).replace("'", '"').encode()})
    hub.add("acme/gguf", {
        "README.md": b"# GGUF\n", "acme-Q4_K_M.gguf": noise(200000, 20), "acme-Q8_0.gguf": noise(300000, 21),
        "acme-f16.gguf": noise(500000, 22), "mmproj-acme-f16.gguf": noise(1000, 23), "imatrix.dat": noise(100, 24),
        "Q6_K/acme-Q6_K-00001-of-00002.gguf": noise(200000, 25), "Q6_K/acme-Q6_K-00002-of-00002.gguf": noise(150000, 26)})
    hub.add("acme/pickle", {**small_files(), "pytorch_model.bin": noise(5000, 30)})
    hub.add("acme/adapter", {"adapter_config.json": b"{}", "adapter_model.safetensors": noise(100, 31)})
    hub.add("acme/gated", {**small_files(), "model.safetensors": noise(100000, 40)}, gated=True)
    hub.add("acme/private", {**small_files(), "model.safetensors": noise(100000, 41)}, private=True)
    hub.tokens = {"hf_member": {"acme/gated", "acme/private"}, "hf_stranger": set()}


class Cache:
    """A cache folder and the environment that points inferd at it and at the hub."""

    def __init__(self, hub, folder):
        self.hub, self.home = hub, pathlib.Path(folder)
        self.dir = self.home / "hub"
        self.home.mkdir(parents=True, exist_ok=True)

    def env(self, **more):
        clean = {k: v for k, v in os.environ.items()
                 if not k.startswith(("HF_", "HUGGING", "INFERD_", "XDG_")) and "proxy" not in k.lower()}
        return {**clean, "HF_HOME": str(self.home), "HF_ENDPOINT": self.hub.url, "INFERD_PORT": "1",
                "INFERD_DOWNLOAD_PART": "65536", "INFERD_DOWNLOAD_ATTEMPTS": "3", **more}

    def start(self, *words, **env):
        return subprocess.Popen([str(BINARY), *words], env=self.env(**env), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                text=True)

    def run(self, *words, timeout=120, **env):
        p = self.start(*words, **env)
        try:
            out, error = p.communicate(timeout=timeout)
        finally:
            p.kill()
        assert p.returncode >= 0, (signal.Signals(-p.returncode), error)
        return subprocess.CompletedProcess(words, p.returncode, out, error)

    def pull(self, name, **env):
        done = self.run("pull", name, **env)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def pull_on_terminal(self, name, **env):
        """A pull that must succeed; all that its terminal was sent."""
        ours, theirs = pty.openpty()
        p = subprocess.Popen([str(BINARY), "pull", name], env=self.env(**{"TERM": "xterm", **env}), stdout=theirs, stderr=theirs)
        os.close(theirs)
        text = b""
        try:
            while data := os.read(ours, 65536):
                text += data
        except OSError:  # its other end is closed
            pass
        os.close(ours)
        assert p.wait(60) == 0, text
        return text.decode()

    def refuse(self, name, **env):
        """A pull that must fail; its message."""
        done = self.run("pull", name, **env)
        assert done.returncode > 0, (done.returncode, done.stdout, done.stderr)
        return done.stderr

    def verify_noise(self, name):
        """Every file has its checksum; that these are no weights is said, and told apart from damage."""
        done = self.run("verify", name)
        assert "every file has the checksum that the hub gave" in done.stdout, done.stderr
        assert done.returncode == 6 and "files are whole" in done.stderr, done.stderr

    def folder(self, name):
        return self.dir / ("models--" + name.replace("/", "--"))

    def snapshot(self, name, revision="main"):
        ref = self.folder(name) / "refs" / revision
        return self.folder(name) / "snapshots" / (ref.read_text() if ref.exists() else revision)

    def files(self, name, revision="main"):
        root = self.snapshot(name, revision)
        return {str(p.relative_to(root)) for p in root.rglob("*") if not p.is_dir()}

    def check(self, name, revision="main"):
        """Every file that is visible is the hub's, by links of the layout; nothing half-written is left."""
        repo, root = self.hub.repos[name], self.snapshot(name, revision)
        source = repo.commits[repo.resolve(revision)]
        assert root.name == repo.resolve(revision)
        for path in self.files(name, revision):
            f, link = source[path], root / path
            assert link.is_symlink() and link.resolve().parent == self.folder(name) / "blobs", path
            assert link.resolve().name == f.etag
            assert hashlib.sha256(link.read_bytes()).hexdigest() == f.sha256, path
        assert [p.name for p in (self.folder(name) / "blobs").iterdir() if "incomplete" in p.name] == []

    def nothing_visible(self, name):
        """Blobs under their own names are whole; no snapshot shows anything."""
        repo, blobs = self.hub.repos[name], self.folder(name) / "blobs"
        known = {f.etag: f for c in repo.commits.values() for f in c.values()}
        for p in blobs.iterdir() if blobs.exists() else []:
            if not p.name.endswith((".incomplete", ".next")):
                assert hashlib.sha256(p.read_bytes()).hexdigest() == known[p.name].sha256, p.name
        assert not any((self.folder(name) / "snapshots").rglob("*"))
