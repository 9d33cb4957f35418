"""The command line as a person meets it: words, exit statuses, a conversation on a terminal (R3)."""
import http.server
import json
import os
import pty
import re
import select
import shutil
import signal
import socket
import subprocess
import termios
import threading
import time

import pytest

from conftest import BINARY, MODELS, WAIT_S, free_port, until

MODEL = "llama-tied-f32"


class Recorder:
    """Answers every chat with "yes" and keeps what it was sent; `silent`: it never answers."""

    def __init__(self):
        outer = self
        self.bodies, self.silent, self.over, self.last = [], False, threading.Event(), {"delta": {"content": ""}, "done": True}
        self.asked, self.gives = [], {}  # what is to be had by GET; {} where nothing else is said

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.asked.append(self.path)
                self._answer(json.dumps(outer.gives.get(self.path, {})).encode(), "application/json")

            def do_POST(self):
                outer.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                if outer.silent:
                    outer.over.wait(60)
                self._answer(b'data: {"delta":{"content":"yes"},"done":false}\n\ndata: ' + json.dumps(outer.last).encode() + b"\n\n",
                             "text/event-stream")

            def _answer(self, body, kind):
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *words):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.at = ["--host", "127.0.0.1", "--port", str(self.http.server_port)]

    def close(self):
        self.over.set()
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def recorder():
    r = Recorder()
    yield r
    r.close()


class Terminal:
    def __init__(self, words, env):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execve(BINARY, [str(BINARY), *words], {**os.environ, "TERM": "xterm", **env})
        self.text = self.seen = b""

    def wait_for(self, what):
        """Reads on until `what` has come behind what was waited for before."""
        end = time.monotonic() + WAIT_S
        while what not in self.text:
            assert time.monotonic() < end, self.text
            if select.select([self.fd], [], [], 0.1)[0]:
                new = os.read(self.fd, 65536)
                self.text, self.seen = self.text + new, self.seen + new
        self.text = self.text.split(what, 1)[1]

    def wait_for_prompt(self, prompt=b">>> "):
        """The prompt is written a little before the line editor has the terminal to itself: what comes between is not its."""
        self.wait_for(prompt)
        assert until(lambda: not termios.tcgetattr(self.fd)[3] & termios.ICANON)

    def type(self, text):
        os.write(self.fd, text.encode())

    def leave(self):
        """Its exit status after ctrl-D."""
        self.type("\x04")
        end = time.monotonic() + WAIT_S
        try:
            while time.monotonic() < end:
                if select.select([self.fd], [], [], 0.1)[0]:
                    self.seen += os.read(self.fd, 65536)
        except OSError:  # it closed its side
            return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        raise AssertionError("it does not end")


def run(*words, **more):
    return subprocess.run([BINARY, *words], capture_output=True, text=True, timeout=60, **more)


@pytest.mark.parametrize("locale", ["C.UTF-8", "C", "de_DE.ISO-8859-1"])
def test_conversation_takes_every_script(recorder, locale):
    t = Terminal(["run", "m", *recorder.at], {"LC_ALL": locale})
    said = "Grüße, 日本 🎉 ελλά"
    t.wait_for_prompt()
    t.type(said + "ä\x7f\n")  # the last character is taken back as one
    t.wait_for(b"yes")
    t.wait_for_prompt()
    t.type("\x1b[A!\n")  # what was said before, and more
    t.wait_for(b"yes")
    t.wait_for_prompt()
    t.type("/exit\n")  # no command, and no prompt either
    t.wait_for(b"/bye")
    t.wait_for_prompt()
    t.type("/etc/hosts?\n")  # a prompt
    t.wait_for(b"yes")
    t.wait_for_prompt()
    assert t.leave() == 0
    turns = recorder.bodies[-1]["messages"]
    assert [m["content"] for m in turns] == [said, "yes", said + "!", "yes", "/etc/hosts?"]


def test_conversation_takes_texts_of_several_lines(recorder):
    t = Terminal(["run", "m", *recorder.at], {})
    for typed in ('"""\n  def f():\n\n    return 1\n"""\n', '"""one\ntwo"""\n', '"""same line"""\n', "plain\n"):
        t.wait_for_prompt()
        for line in typed.splitlines(keepends=True):
            t.type(line)
        t.wait_for(b"yes")
    t.wait_for_prompt()
    t.type('"""lost\n')
    t.wait_for_prompt(b"... ")
    t.type("\x03")  # drops all of it
    t.wait_for_prompt()
    assert t.leave() == 0
    said = [m["content"] for m in recorder.bodies[-1]["messages"] if m["role"] == "user"]
    assert said == ["  def f():\n\n    return 1", "one\ntwo", "same line", "plain"]


def test_what_is_shown(start):
    s = start("--api-key", "k")
    host, port = s.url[7:].split(":")
    r = run("show", MODEL, "--host", host, "--port", port)
    assert r.returncode == 4 and "--api-key or INFERD_API_KEY" in r.stderr
    text = run("show", MODEL, "--host", host, "--port", port, "--api-key", "k").stdout
    shown = dict(line.split(None, 1) for line in text.splitlines())
    assert re.fullmatch(r"[\d.]+ [kM]B", shown["size"]) and shown["revision"] == "-", text
    assert re.match(r"20\d\d-\d\d-\d\dT", shown["modified_at"])
    assert run("bench", "no-such", "--models-dir", str(MODELS)).returncode == 3


def test_ctrl_c_stops_the_wait_for_an_answer(recorder):
    recorder.silent = True
    p = subprocess.Popen([BINARY, "run", "m", "hello", *recorder.at], stderr=subprocess.PIPE)
    assert until(lambda: recorder.bodies)
    p.send_signal(signal.SIGINT)
    assert p.wait(30) == 130 and p.stderr.read() == b""
    t = Terminal(["run", "m", *recorder.at], {})
    t.wait_for_prompt()
    t.type("hello\n")
    assert until(lambda: len(recorder.bodies) == 2)
    t.type("\x03")
    t.wait_for_prompt()
    assert t.leave() == 0


def test_ctrl_c_stops_the_wait_for_a_server():
    """That takes the connection and says nothing: before a pull's job is known, too."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for words in (["pull", "a/b"], ["ps"]):
            p = subprocess.Popen([BINARY, *words, "--port", str(silent.getsockname()[1])], stderr=subprocess.PIPE)
            with silent.accept()[0] as asked:
                assert asked.recv(1) and p.poll() is None
                p.send_signal(signal.SIGINT)
                assert p.wait(WAIT_S) in (130, -signal.SIGINT) and b"No server" not in p.stderr.read()


def test_a_model_that_loads_is_shown(recorder):
    """With the server's own word on how far it is; on a terminal alone, and gone when the answer comes."""
    recorder.silent = True
    recorder.gives = {"/models/m": {"name": "org/m", "loaded": False}, "/health": {"loading": "org/m", "loading_progress": 0.43}}
    piped = subprocess.Popen([BINARY, "run", "m", "hello", *recorder.at], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    t = Terminal(["run", "m", "hello", *recorder.at], {})
    t.wait_for(b"loading org/m ... ")
    t.wait_for(b" s, 43 %")
    del recorder.gives["/health"]["loading_progress"]
    recorder.gives["/health"]["loading"] = "org/" + "長" * 50  # two columns each; a line that wraps could not be wiped
    t.wait_for(b"\r\x1b[Kloading org/" + "長".encode() * 33 + b"\r\x1b[Kloading")
    recorder.over.set()
    t.wait_for(b"\r\x1b[Kyes")
    assert t.leave() == 0
    assert piped.communicate(timeout=60) == (b"yes\n", b"") and piped.returncode == 0


def test_a_model_that_is_loaded_is_not_shown_as_loading(recorder):
    recorder.silent = True
    recorder.gives = {"/models/m": {"name": "org/m", "loaded": True}, "/health": {"loading": "another"}}
    t = Terminal(["run", "m", "hello", *recorder.at], {})
    assert until(lambda: recorder.asked.count("/models/m") == 2)  # whether it is to be pulled; whether it is loaded
    recorder.over.set()
    t.wait_for(b"yes")
    assert b"loading" not in t.seen and "/health" not in recorder.asked
    assert t.leave() == 0


def test_ctrl_c_while_a_model_loads(recorder):
    recorder.silent = True
    recorder.gives = {"/health": {"loading": "m"}}
    t = Terminal(["run", "m", *recorder.at], {})
    t.wait_for_prompt()
    t.type("hello\n")
    t.wait_for(b"loading m ... ")
    t.type("\x03")
    t.wait_for(b"\r\x1b[K")
    t.wait_for_prompt()
    assert t.leave() == 0


@pytest.mark.parametrize("name,columns", [("ab", 2), ("名前", 4), ("e\u0301", 1), ("n" * 50, 50)])
def test_tables_are_aligned_by_what_is_seen(recorder, name, columns):
    model = {"name": name, "size": 1e6, "format": "gguf", "status": "ready", "loaded": True, "memory_bytes": 1e6}
    recorder.gives = {"/models": {"models": [model]}}
    for verb, end in (("list", "SIZE"), ("ps", "MEMORY")):
        head, row = run(verb, *recorder.at).stdout.splitlines()
        assert head.index(end) + len(end) == 51
        assert row.startswith(name + " " * (max(40 - columns, 0) + 1) + "     1.0MB "), row


@pytest.mark.parametrize("code,status", [("timeout", 5), ("draining", 5), ("insufficient_memory", 7), ("internal_error", 1)])
def test_error_in_an_answer(recorder, code, status):
    recorder.last = {"error": {"message": "It broke.", "code": code}, "done": True}
    r = run("run", "m", *recorder.at, "hello")
    assert r.returncode == status and "It broke." in r.stderr and r.stdout == "yes\n"


def test_a_conversation_with_no_model_is_not_begun(server):
    host, port = server.url[7:].split(":")
    for where, status, says in (([f"--host={host}", f"--port={port}"], 3, b"There is no model 'no-such'"),
                                (["--port=1"], 5, b"No server answers")):
        t = Terminal(["run", "no-such", *where], {})
        t.wait_for(says)
        assert t.leave() == status and b"Talking" not in t.seen


def test_the_end_of_a_conversation_leaves_a_line_of_its_own(recorder):
    t = Terminal(["run", "m", *recorder.at], {})
    t.wait_for_prompt()
    assert t.leave() == 0 and t.seen.endswith(b"\n")


def test_prompts(recorder):
    for words, more in ((["hello", "you"], {}), (["--", "hello", "--port"], {}), ([], {"input": "hello\nyou"})):
        assert run("run", "m", *recorder.at, *words, **more).stdout == "yes\n"
    assert [b["messages"][0]["content"] for b in recorder.bodies] == ["hello you", "hello --port", "hello\nyou"]
    assert all(b["timeout"] > 3600 for b in recorder.bodies)  # there is ctrl-C
    for words, more in (([""], {}), ([], {"input": ""})):
        r = run("run", "m", *recorder.at, *words, **more)
        assert r.returncode == 2 and "prompt is empty" in r.stderr and not r.stdout
    r = subprocess.run([BINARY, "run", "m", *recorder.at, b"\xff"], capture_output=True, timeout=20)
    assert r.returncode == 2 and b"UTF-8" in r.stderr
    assert len(recorder.bodies) == 3


def test_words(server):
    host, port = server.url[7:].split(":")
    at = [f"--host={host}", f"--port={port}"]
    assert MODEL in run("list", *at).stdout
    for words, named in ((["list", "x"], "'x'"), (["ps", "x"], "'x'"), (["show", MODEL, "x"], "'x'"), (["show"], "MODEL"),
                         (["show", ""], "MODEL"), (["jobs", "cancel"], "cancel ID"), (["list", "--prot", "1"], "mean --port?"),
                         (["run", "x", "y", "--json"], "not an option"), (["ps", "--jsn"], "mean --json?"), (["ps", "--model", "x"], "not an option"), (["ps", "--json=1"], "no value"),
                         (["verify"], "MODEL"), (["plan", "--memory", "1G"], "MODEL")):
        r = run(*words, *(at if words[0] not in ("verify", "plan") else []))
        assert r.returncode == 2 and named in r.stderr and not r.stdout, (words, r)
    for words in (["list", "--port"], ["ps", "--api-key"]):
        r = run(*words)
        assert r.returncode == 2 and words[1] + " needs a value" in r.stderr
    for host_word in ("http://127.0.0.1", f"127.0.0.1:{port}"):
        r = run("list", "--host", host_word)
        assert r.returncode == 2 and host_word in r.stderr and "--port" in r.stderr
    for name in ("a b", "x?y", "x#y", "../health", "Ünï", "x%2fy"):  # sent as they are
        for verb in ("show", "stop"):
            r = run(verb, name, *at)
            assert r.returncode == 3 and f"'{name}'" in r.stderr, r


def test_ps_shows_what_is_loaded(start):
    s = start()
    at = ["--port", s.url.rsplit(":", 1)[1]]
    s.post(f"/models/{MODEL}/load", {})
    assert [m["name"] for m in json.loads(run("ps", "--json", *at).stdout)["models"]] == [MODEL]
    assert len(json.loads(run("list", "--json", *at).stdout)["models"]) > 1


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_addresses_of_version_6(start, host):
    s = start("--host", host)
    assert s.url.startswith("http://[::1]:") and f"address={s.url} " in s.text()
    for asked in ("::1", "[::1]"):
        assert MODEL in run("list", "--host", asked, "--port", s.url.rsplit(":", 1)[1]).stdout


def test_a_long_key(start):
    key = "k" * 2000
    s = start("--api-key", key)
    at = ["list", "--port", s.url.rsplit(":", 1)[1], "--api-key"]
    assert MODEL in run(*at, key).stdout
    assert run(*at, key[:-1]).returncode == 4


def test_output_that_is_lost_is_told(server):
    host, port = server.url[7:].split(":")
    for words in (["list", "--host", host, "--port", port], ["--help"], ["version"], ["config-docs"]):
        with open("/dev/full", "w") as full:
            r = subprocess.run([BINARY, *words], stdout=full, stderr=subprocess.PIPE, text=True, timeout=20)
        assert r.returncode == 1 and "No space left" in r.stderr, words


def test_what_is_printed_goes_into_no_other_file(tmp_path):
    """Where standard files are closed, as some that start services leave them."""
    def close_all():
        for fd in range(3):
            os.close(fd)

    assert subprocess.run([BINARY, "version"], preexec_fn=lambda: os.close(1), timeout=20).returncode == 1
    port = str(free_port())
    p = subprocess.Popen([BINARY, "serve", "--port", port, "--models-dir", str(MODELS), "--data-dir", str(tmp_path)],
                         preexec_fn=close_all)
    try:
        assert until(lambda: subprocess.run([BINARY, "ps", "--port", port], capture_output=True, timeout=60).returncode == 0)
        assert [os.readlink(f"/proc/{p.pid}/fd/{fd}") for fd in range(3)] == ["/dev/null"] * 3
        p.terminate()
        assert p.wait(60) == 0
    finally:
        p.kill()


def test_verify_takes_the_options_of_serve(tmp_path):
    r = run("verify", MODEL, "--models-dir", str(MODELS), "--data-dir", str(tmp_path))
    assert r.returncode == 0 and "self-test" in r.stdout and (tmp_path / "golden").is_dir(), r


def test_verify_by_path(tmp_path):
    """Of what lies in no models folder, told by its path as for plan and bench."""
    model, none = tmp_path / "elsewhere" / "m", tmp_path / "elsewhere" / "none"
    shutil.copytree(MODELS / MODEL, model)
    none.mkdir()
    for folder, name in ((tmp_path, "elsewhere/m"), (model, "../m/"), (tmp_path / "elsewhere", "./m"), (tmp_path, str(model))):
        r = run("verify", name, "--data-dir", str(tmp_path), cwd=folder)
        assert r.returncode == 0 and "self-test" in r.stdout and str(model) in r.stdout, r
    assert "to the bit" in r.stdout
    r = run("verify", str(none), "--data-dir", str(tmp_path))
    assert r.returncode == 3 and "elsewhere/none holds no model" in r.stderr, r


def test_help():
    text = run("serve", "--help").stdout
    assert max(map(len, text.splitlines())) <= 120
    for name in re.findall(r"`--([a-z-]+)`", run("config-docs").stdout):
        assert re.search(rf"^  --{name} +\S", text, re.M), name
    flat = " ".join(text.split())
    assert "auto, amx, vnni, avx512, avx2, ref; default auto" in flat and "0 to 65535; default 8005" in flat
    assert "--host ADDRESS" not in run("verify", "--help").stdout
    assert "--json" in run("list", "--help").stdout and "--json" not in run("run", "--help").stdout
    r = run("help", "lst")
    assert r.returncode == 2 and "mean 'list'?" in r.stderr
    assert run("-v").stdout == run("version").stdout
