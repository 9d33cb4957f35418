"""Options: flag, environment, file, default (C1, C5-C8); the line to paste (C65); help and exit codes (R3)."""
import os
import re
import shlex
import signal
import subprocess

import pytest

from conftest import BINARY, MODELS


def run(*words, env=None):
    clean = {k: v for k, v in os.environ.items() if not k.startswith("INFERD_")}
    return subprocess.run([BINARY, *words], capture_output=True, text=True, timeout=60, env={**clean, **(env or {})})


def test_where_values_come_from(tmp_path):
    file = tmp_path / "inferd.conf"
    file.write_text("# a comment\nport = 1111   # another\n\n max-queue=7\ntimeout = 2.5\nmodels-dir = /tmp/a#b\n")
    r = run("serve", "--config", str(file), "--max-queue", "9", "--print-config",
            env={"INFERD_TIMEOUT": "3", "INFERD_MAX_QUEUE": "8", "PRELOAD_MODELS": "a,b", "MAX_CACHE_MODELS": "4"})
    assert r.returncode == 0 and not r.stderr
    got = {m[1]: (m[2], m[3]) for m in re.finditer(r"^(\S+) = (.*?)  # (\w+)$", r.stdout, re.M)}
    assert got["port"] == ("1111", "file") and got["timeout"] == ("3", "env") and got["max-queue"] == ("9", "flag")
    assert got["host"] == ("127.0.0.1", "default") and got["models-dir"] == ("/tmp/a#b", "file")
    assert got["preload-models"] == ("a,b", "env") and got["max-cache-models"] == ("4", "env")
    assert run("serve", "--print-config").stdout.count("# default") == len(got) - 1  # but for print-config
    assert "port = 8005  # default" in run("serve", "--print-config").stdout


def test_quoted_values(tmp_path):
    """What --print-config printed can be a file again."""
    file = tmp_path / "inferd.conf"
    file.write_text('host = "127.0.0.2" # mine\nmodels-dir = " a # b "\n  cors-origin = ""\n\n   # all\n')
    printed = run("serve", "--config", str(file), "--print-config").stdout
    assert 'host = 127.0.0.2  # file\n' in printed and 'cors-origin = ""  # file\n' in printed
    assert "models-dir =  a # b   # file\n" in printed
    defaults = run("serve", "--print-config").stdout
    file.write_text(defaults.replace("api-key", "# api-key").replace("print-config = 1", ""))
    again = run("serve", "--config", str(file), "--print-config").stdout
    strip = [line.rsplit("  #", 1)[0] for line in defaults.splitlines()]
    assert [line.rsplit("  #", 1)[0] for line in again.splitlines() if not line.startswith("config =")] == \
        [line for line in strip if not line.startswith("config =")]
    file.write_text('host = "a" b\n')
    r = run("serve", "--config", str(file))
    assert r.returncode == 2 and ":1" in r.stderr and "host" in r.stderr


@pytest.mark.parametrize("words,env,expected", [
    (["--prot", "1"], {}, ["prot", "port"]),
    (["--port", "70000"], {}, ["port", "70000", "65535"]),
    (["--memory", "lots"], {}, ["memory", "lots"]),
    (["--isa", "mmx"], {}, ["isa", "mmx", "avx2"]),
    (["--port"], {}, ["port", "value"]),
    (["stray"], {}, ["stray"]),
    ([], {"INFERD_PROT": "1"}, ["INFERD_PROT", "INFERD_PORT"]),
    ([], {"INFERD_PORT": "x"}, ["INFERD_PORT", "x"]),
    (["--config", "/nowhere/file"], {}, ["/nowhere/file"]),
    (["--api-key", "secret", "--api-key", ""], {}, ["api-key", "empty"]),
    (["--api-key", "secret"] * 65, {}, ["api-key", "64"]),
    (["--config", "/"], {}, ["'/'", "directory"]),
    (["--memory", "12", "--data-dir", "/nowhere"], {}, ["--memory", "12 bytes", "12G"]),
])
def test_wrong_options(words, env, expected):
    r = run("serve", *words, env=env)
    assert r.returncode == 2 and all(word in r.stderr for word in expected), r.stderr
    assert "secret" not in r.stderr


def test_wrong_file(tmp_path):
    file = tmp_path / "c"
    for text, words in (("max_queu = 1\n", ["c:1", "max_queu", "max-queue"]), ("\nport 1\n", ["c:2", "port 1"]),
                        ("api-key =\n", ["c:1", "api-key", "empty"])):
        file.write_text(text)
        r = run("serve", "--config", str(file))
        assert r.returncode == 2 and all(word in r.stderr for word in words), r.stderr


def test_models_folder_that_is_not_there(start):
    s = start("--models-dir", "/nowhere/models")
    assert "no_models_dir" in s.text() and "/nowhere/models" in s.text()
    assert "no such models folder" in s.process.stdout.readline()
    assert s.get("/health").json()["status"] == "healthy"


def test_help():
    verbs = re.findall(r"^  inferd (\S+)", run("--help").stdout, re.M)
    assert {"serve", "run", "list", "show", "ps", "stop", "plan", "pull"} <= set(verbs)
    for verb in verbs:
        r = run(verb, "--help")
        assert r.returncode == 0 and f"inferd {verb}" in r.stdout and "Exit status" in r.stdout, verb
    assert "--max-stall-ms" in run("serve", "--help").stdout
    assert run("lits").returncode == 2 and "list" in run("lits").stderr
    r = run("run", "qwen2-f32", "hello", "--port", "1")
    assert r.returncode == 5 and "inferd serve" in r.stderr


def test_plan():
    r = run("plan", "qwen2-f32", "--models-dir", str(MODELS))
    assert r.returncode == 0 and "weights" in r.stdout and "It fits" in r.stdout
    r = run("plan", str(MODELS / "qwen2-f32"), "--memory", "64M")
    assert r.returncode == 7 and str(64 << 20) in r.stderr
    for memory in ("32M", "48M", "64M"):  # what is asked for is enough, and the least
        enough = int(re.search(r"at least --memory (\d+)M", run("plan", str(MODELS / "qwen2-f32"), "--memory", memory).stderr)[1])
        assert run("plan", str(MODELS / "qwen2-f32"), "--memory", f"{enough}M").returncode == 0
        assert run("plan", str(MODELS / "qwen2-f32"), "--memory", f"{enough - 2}M").returncode == 7
    assert run("plan", "no/such").returncode == 3


def test_line_to_paste(tmp_path):
    command = [BINARY, "serve", "--port", "0", "--models-dir", str(MODELS), "--data-dir", str(tmp_path)]
    p = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=tmp_path)
    try:
        assert re.match(r"inferd is ready: http://127.0.0.1:\d+$", p.stdout.readline().strip())
        line = p.stdout.readline().removeprefix("Try:").strip().replace('"stream":true', '"stream":true,"max_tokens":3')
        r = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=20)
        assert shlex.split(line)[0] == "curl" and '"done":true' in r.stdout, r.stderr
    finally:
        p.send_signal(signal.SIGINT)
        assert p.wait(60) == 0
    empty = tmp_path / "empty"
    empty.mkdir()
    p = subprocess.Popen([*command[:-3], str(empty), "--data-dir", str(tmp_path)], stdout=subprocess.PIPE,
                         stderr=subprocess.DEVNULL, text=True, env={**os.environ, "HF_HUB_CACHE": str(empty)})
    try:
        p.stdout.readline()
        assert "inferd pull smollm2" in p.stdout.readline()
    finally:
        p.kill()


def test_a_service_without_home(tmp_path):
    """Systems start services so: the home is the user's, as for Python's programs."""
    env = {k: v for k, v in os.environ.items() if k != "HOME" and not k.startswith(("HF_", "HUGGING", "XDG_"))}
    p = subprocess.Popen([BINARY, "serve", "--port", "0", "--models-dir", str(MODELS), "--data-dir", str(tmp_path)],
                         env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert "ready" in p.stdout.readline()
    finally:
        p.terminate()
        p.communicate()


def test_writes_only_below_the_data_directory(start, tmp_path):
    work, home = tmp_path / "work", tmp_path / "home"
    work.mkdir(), home.mkdir()
    p = subprocess.Popen([BINARY, "serve", "--port", "0", "--models-dir", str(MODELS), "--data-dir", str(tmp_path / "data")],
                         cwd=work, env={**os.environ, "HOME": str(home)}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    p.stdout.readline()
    p.terminate()
    assert p.wait(60) == 0 and not list(work.iterdir()) and not list(home.iterdir())
