"""Every error code has its anchor in docs/errors.md and is provoked here where it can be (R66, C14-C17)."""
import concurrent.futures
import json
import re
import shutil
import signal

import pytest
import requests

from conftest import MODELS, ROOT, until

MODEL = "llama-tied-f32"
MESSAGES = [{"role": "user", "content": "hi"}]
CODES = re.findall(r'\d+, \d+, "\w+", "(\w+)"', (ROOT / "src" / "base" / "err.c").read_text())


def test_documented():
    text = (ROOT / "docs" / "errors.md").read_text()
    assert len(CODES) >= 20
    for code in CODES:
        assert f'<a id="{code}"></a>\n**{code}**' in text and f"](#{code})" in text, code
    assert set(re.findall(r'<a id="(\w+)">', text)) == set(CODES) and "See the message" not in text


def check(r, status, code, *words):
    error = r.json()["error"]
    assert (r.status_code, error["code"]) == (status, code), r.text
    assert set(error) == {"message", "type", "param", "code", "doc_url"}
    assert error["doc_url"].endswith("docs/errors.md#" + code) and all(w in error["message"] for w in words), r.text
    assert r.headers["Content-Type"] == "application/json" and r.headers["x-request-id"]
    if status in (429, 503):
        assert int(r.headers["Retry-After"]) >= 1
    return error


def chat(s, **more):
    return s.post("/chat", {"model": MODEL, "messages": MESSAGES, "max_tokens": 2, **more})


@pytest.mark.parametrize("field,value,words", [
    ("temperature", 2.5, ["2.5", "0", "2"]), ("temperature", "hot", ['"hot"']), ("top_p", -0.1, ["-0.1", "0", "1"]),
    ("min_p", 2, ["2", "0", "1"]), ("top_k", -2, ["-2", "-1"]), ("repetition_penalty", 0, ["0.01", "10"]),
    ("presence_penalty", 3, ["-2", "2", "3"]), ("frequency_penalty", -3, ["-2", "2", "-3"]), ("seed", 1.5, ["1.5"]),
    ("stop", [""], ["1"]), ("stop", ["x"] * 17, ["17", "16"]), ("stop", 5, ["string", "got 5"]), ("stop", ["a", 5], ["got 5"]),
    ("stop_token_ids", ["a"], ["integer", 'got "a"']), ("stop_token_ids", [-1], ["got -1"]), ("stop_token_ids", 5, ["got 5"]),
    ("stop_token_ids", [1] * 33, ["33", "32"]), ("top_p", 1.1, ["got 1.1."]),
    ("max_tokens", 0, ["0", "1"]), ("max_tokens", -1, ["between 1 and", "got -1"]), ("max_tokens", True, ["true"]),
    ("logit_bias", {"x": 1}, ["'x'"]), ("logit_bias", {"5": 101}, ["101", "-100", "100"]),
    ("logit_bias", {"99999999": 1}, ["99999999"]), ("logprobs", 3, ["true or false"]), ("top_logprobs", 21, ["21", "0", "20"]),
    ("n", 0, ["0", "1", "64"]), ("n", 65, ["65", "64"]), ("timeout", 0, ["0", "86400"]), ("timeout", -1, ["-1"]),
    ("stream", "yes", ['"yes"']), ("keep_alive", [], ["[]"]), ("messages", "hi", ['"hi"']), ("messages", [{}], ["role"]),
    ("messages", [{"role": "user", "content": 5}], ["content", "5"]),
    ("messages", [{"role": "user", "content": "x", "name": 5}], ["'name' must be a string; got 5"]), ("temprature", 1, ["temperature"]),
])
def test_fields(server, field, value, words):
    error = check(chat(server, **{field: value}), 400, "invalid_request", *words)
    assert error["param"].startswith(field) and field in error["message"]


@pytest.mark.parametrize("path", ["/chat", "/v1/completions", "/tokenize", "/pull"])
def test_a_model_that_is_empty_is_not_called_missing(server, path):
    for body, word in (({"model": ""}, "empty"), ({}, "missing")):
        error = server.post(path, {"prompt": "x", **body} if path not in ("/pull", "/chat") else body).json()["error"]
        assert error["param"] == "model" and word in error["message"], error


def test_both_names_of_one_bound(server):
    def ask(**bounds):
        return server.post("/v1/chat/completions", {"model": MODEL, "messages": MESSAGES, "ignore_eos": True, **bounds})

    for bounds in ({"max_tokens": 2, "max_completion_tokens": 3}, {"max_completion_tokens": 3, "max_tokens": 2}):
        error = check(ask(**bounds), 400, "invalid_request", "2", "3", "max_completion_tokens")
        assert error["param"] == "max_tokens"
    for bounds in ({"max_tokens": 2, "max_completion_tokens": 2}, {"max_tokens": None, "max_completion_tokens": 2}):
        assert ask(**bounds).json()["usage"]["completion_tokens"] == 2
    assert "logprobs" in ask(max_tokens=1, top_logprobs=0).json()["choices"][0]  # asks for none


@pytest.mark.parametrize("method,path,takes", [
    ("GET", "/models", "nothing"), ("GET", f"/models/{MODEL}", "nothing"), ("GET", "/v1/models", "nothing"), ("POST", "/chat", "nothing"),
    ("GET", "/jobs", "since"), ("GET", "/jobs/none", "nothing"), ("GET", "/sessions", "limit"), ("GET", "/sessions/none", "nothing"),
    ("GET", "/metrics", "nothing"), ("GET", "/metrics/gpu/history", "since")])
def test_what_no_route_takes_in_a_query(server, method, path, takes):
    r = requests.request(method, server.url + path + "?limti=1", timeout=60)
    assert check(r, 400, "invalid_request", "limti", path, takes)["param"] == "limti"


def test_probes_may_add_to_the_query(server):
    for path in ("/", "/health", "/health/live", "/health/ready", "/metrics?", "/jobs?&limit=1"):
        assert requests.get(server.url + path + ("?_=1" if "?" not in path else ""), timeout=60).status_code == 200, path


@pytest.mark.parametrize("path,field,value", [
    ("/chat", "format", "json"), ("/v1/chat/completions", "store", True), ("/v1/chat/completions", "service_tier", "flex"),
    ("/v1/chat/completions", "audio", {}), ("/v1/completions", "suffix", "x"), ("/v1/completions", "best_of", 2),
])
def test_unsupported(server, path, field, value):
    body = {"prompt": "x"} if path.endswith("/completions") and "chat" not in path else {"messages": MESSAGES}
    r = server.post(path, {"model": MODEL, **body, field: value})
    error = r.json()["error"]
    assert r.status_code == 400 and error["param"] == field and f"'{field}'" in error["message"], r.text


@pytest.mark.parametrize("path", ["/chat", "/v1/chat/completions", "/v1/completions"])
def test_what_vllm_clients_send_along(server, path):
    """With the value that changes nothing it is taken, with another one refused by name."""
    body = {"model": MODEL, "max_tokens": 1, **({"prompt": "x"} if path == "/v1/completions" else {"messages": MESSAGES})}
    neutral = {"skip_special_tokens": True, "spaces_between_special_tokens": True, "include_stop_str_in_output": False,
               "use_beam_search": False, "min_tokens": 0, "priority": 0}
    if path != "/v1/completions":
        neutral["continue_final_message"] = False
    assert server.post(path, {**body, **neutral}).status_code == 200
    for name, value in neutral.items():
        other = 3 if isinstance(value, int) and not isinstance(value, bool) else not value
        error = check(server.post(path, {**body, name: other}), 400, "unsupported", f"'{name}'")
        assert error["param"] == name


def test_no_token_at_all(server):
    for field, path in (("max_tokens", "/chat"), ("max_tokens", "/v1/chat/completions"), ("max_completion_tokens", "/v1/chat/completions")):
        r = server.post(path, {"model": MODEL, "messages": MESSAGES, field: 0})
        assert check(r, 400, "invalid_request", f"'{field}'", "between 1 and", "got 0")["param"] == field
    raw = {"model": MODEL, "prompt": [5, 6], "max_tokens": 0}
    assert check(server.post("/v1/completions", raw), 400, "invalid_request", "between 1 and")["param"] == "max_tokens"
    assert server.post("/v1/completions", {**raw, "echo": True}).json()["usage"]["completion_tokens"] == 0


@pytest.mark.parametrize("body,param", [
    ('{"model":"m","seed":9223372036854775808}', "seed"), ('{"max_tokens" : 1' + "0" * 30 + "}", "max_tokens"),
    ('{"temperature":1e999}', "temperature"), ('{"stop_token_ids":[-99999999999999999999]}', None), ("[99999999999999999999", None),
])
def test_numbers_that_cannot_be_held(server, body, param):
    error = check(requests.post(server.url + "/chat", data=body, timeout=20), 400, "invalid_request", "9223372036854775807")
    assert error["param"] == param and (param or "") in error["message"] and "not valid JSON" not in error["message"]


@pytest.mark.parametrize("body,param,word", [
    ('{"model":"m","temperature":NaN}', "temperature", "NaN"), ('{"top_p": Infinity , "n":1}', "top_p", "Infinity"),
    ('{"min_p" : -Infinity}', "min_p", "-Infinity"), ('{"stop_token_ids":[NaN]}', None, "NaN"),
])
def test_numbers_that_are_none(server, body, param, word):
    error = check(requests.post(server.url + "/chat", data=body, timeout=20), 400, "invalid_request", word, "no number of JSON")
    assert error["param"] == param


def test_no_body(server):
    check(requests.post(server.url + "/chat", timeout=20), 400, "invalid_request", "no body", "JSON object")
    error = check(requests.post(server.url + "/chat", data='{"temperature":nan}', timeout=20), 400, "invalid_request", "not valid JSON")
    assert error["param"] is None
    for path in (f"/models/{MODEL}/unload", "/models/reload"):
        assert check(server.post(path, {"x": 1}), 400, "invalid_request", "'x'")["param"] == "x"
        check(requests.post(server.url + path, data="[", timeout=20), 400, "invalid_request", "body")


@pytest.mark.parametrize("method,path,word", [
    ("POST", "/api/chat", "Ollama"), ("GET", "/api/tags", "Ollama"), ("POST", "/v1/messages", "Anthropic"),
    ("POST", "/v1/messages/count_tokens", "Anthropic"), ("POST", "/v1/embeddings", "Embeddings"),
    ("POST", "/v1/responses", "responses"), ("GET", "/v1/files", "batches"), ("POST", "/v1/batches", "batches"),
])
def test_what_is_not_built_is_refused_by_name(server, method, path, word):
    """In the shape that the clients of these routes read."""
    r = requests.request(method, server.url + path, json={}, timeout=20)
    body = r.json()
    assert r.status_code == 404
    if path.startswith("/api/"):
        assert set(body) == {"error"} and isinstance(body["error"], str)
        text = body["error"]
    elif path.startswith("/v1/messages"):
        assert body["type"] == "error" and body["error"]["type"] == "not_found_error"
        text = body["error"]["message"]
    else:
        text = check(r, 404, "not_found")["message"]
    assert path in text and word in text and "not built" in text


@pytest.mark.parametrize("prompt,words", [
    (["a", 5], ["prompt[1]", "got 5"]), ([5, "a"], ['got "a"']), ([1.5], ["prompt[0]", "got 1.5"]), ({}, ["got {}"]),
    ([-1], ["got -1"]), ([[5], [5, None]], ["prompt[1]", "got null"]), ([[5], []], ["prompt[1]", "empty"]), ("", ["empty"]),
    ([], ["0 prompts"]), ([5, 99999], ["99999", "position 1"]),
])
def test_prompts(server, prompt, words):
    r = server.post("/v1/completions", {"model": MODEL, "prompt": prompt, "max_tokens": 1})
    assert check(r, 400, "invalid_request", *words)["param"] == "prompt"


@pytest.mark.parametrize("part,words", [
    ("a", ['got "a"', '"text"']), ({}, ["got {}"]), ({"type": "text"}, ["'text'", "nothing"]),
    ({"type": "text", "text": 5}, ["'text'", "got 5"]), ({"type": "image_url", "image_url": {}}, ["'image_url'"]),
])
def test_content_parts(server, part, words):
    error = check(chat(server, messages=[{"role": "user", "content": [part]}]), 400, "invalid_request", *words)
    assert error["param"] == "messages[0]"


@pytest.mark.parametrize("path,meant", [
    ("/chat/completions", "/v1/chat/completions"), ("/v1/v1/chat/completions", "/v1/chat/completions"), ("/models/", "/models"),
    ("/v1/chat/completions/", "/v1/chat/completions"), ("/completions", "/v1/completions"), ("/chta", "/chat"), ("/nowhere", None),
    ("/v1/embeddings", None),
])
def test_paths(server, path, meant):
    error = check(server.post(path, {}), 404, "not_found", path)
    assert (f"Did you mean {meant}?" in error["message"]) == (meant is not None), error
    assert ("Did you mean" in error["message"]) == (meant is not None), error


def test_requests(server):
    check(server.get("/nowhere"), 404, "not_found", "/nowhere")
    for method, verb, allow in (("GET", "load", "POST, OPTIONS"), ("DELETE", "unload", "POST, OPTIONS")):
        r = requests.request(method, f"{server.url}/models/{MODEL}/{verb}", timeout=20)
        check(r, 405, "method_not_allowed", method, verb)
        assert r.headers["Allow"] == allow
    r = requests.post(server.url + "/chat", data=b"\x1f\x8b", headers={"Content-Encoding": "gzip"}, timeout=20)
    check(r, 400, "unsupported", "gzip")
    r = server.post("/detokenize", {"model": MODEL, "tokens": [5, 99999]})
    assert check(r, 400, "invalid_request", "99999")["param"] == "tokens"
    check(server.post("/tokenize", {"model": MODEL, "prompt": 5}), 400, "invalid_request", "'prompt'", "got 5")
    check(server.delete("/requests/none"), 404, "not_found", "none")
    check(requests.options(server.url + "/nowhere", timeout=20), 404, "not_found", "/nowhere")
    assert check(server.get("/metrics/gpu/history?since=x"), 400, "invalid_request", "'x'")["param"] == "since"
    check(chat(server, model="no-such"), 404, "model_not_found", "no-such")
    r = requests.put(server.url + "/chat", timeout=20)
    check(r, 405, "method_not_allowed", "PUT", "POST")
    assert "POST" in r.headers["Allow"]
    check(requests.post(server.url + "/chat", data=b"x" * (17 << 20), timeout=20), 413, "body_too_large", str(16 << 20))
    check(chat(server, max_tokens=9999), 400, "context_length_exceeded", "9999", "512")
    check(server.post("/v1/completions", {"model": MODEL, "prompt": [5] * 600}), 400, "context_length_exceeded", "600", "512")
    check(chat(server, max_tokens=400, ignore_eos=True, timeout=0.001), 408, "timeout", "0.001")
    check(server.post("/models/%20/load", {}), 404, "model_not_found")


def test_what_a_model_brings(start, tmp_path):
    folder = tmp_path / "models" / "picky"
    shutil.copytree(MODELS / MODEL, folder)
    (folder / "chat_template.jinja").write_text("{{ raise_exception('Roles must alternate, please') }}")
    s = start("--models-dir", str(tmp_path / "models"))
    check(chat(s, model="picky"), 400, "template_error", "Roles must alternate, please")

    def unload():
        s.post("/models/picky/unload", {})
        assert until(lambda: not s.get("/models/picky").json()["loaded"])

    unload()
    settings = json.loads((folder / "generation_config.json").read_text())
    for wrong in ({"min_p": 2}, {"top_p": -0.5}, {"temperature": -1}, {"repetition_penalty": 0}):
        (folder / "generation_config.json").write_text(json.dumps({**settings, **wrong}))
        check(chat(s, model="picky"), 500, "model_damaged", "generation_config.json", *wrong)
    (folder / "generation_config.json").write_text(json.dumps({**settings, "top_p": 0, "min_p": 1, "temperature": 1.5}))
    check(chat(s, model="picky"), 400, "template_error")
    unload()
    (folder / "config.json").write_text('{"model_type":"martian"}')
    check(chat(s, model="picky"), 400, "model_unsupported", "martian")
    (folder / "config.json").write_text("{")
    check(chat(s, model="picky"), 500, "model_damaged", "config.json")


def test_keys(start):
    s = start("--api-key", "one", "--api-key", "two")
    r = s.get("/models")
    check(r, 401, "invalid_api_key")
    assert r.headers["WWW-Authenticate"] == "Bearer"
    for value, status in (("Bearer two", 200), ("bearer two", 200), ("Bearer one", 200), ("Bearer on", 401), ("Bearer onee", 401), ("one", 401)):
        assert s.get("/models", headers={"Authorization": value}).status_code == status
    assert s.get("/").status_code == s.get("/health/live").status_code == 200


def test_memory(start):
    check(chat(start("--memory", "64M")), 503, "insufficient_memory", "needs", "available", str(64 << 20))


def long_stream(s, **more):
    return s.post("/chat", {"model": MODEL, "messages": MESSAGES, "max_tokens": 480, "ignore_eos": True, "stream": True, **more},
                  stream=True)


def test_queue_conflict_cancel_drain(start):
    s = start("--max-streams", "64", "--max-queue", "0", "--max-batch-tokens", "64", "--isa", "ref")  # slowly
    chat(s)
    with long_stream(s, n=64) as r:
        lines = r.iter_lines()
        next(lines)
        check(chat(s), 429, "queue_full", "--max-queue")
        check(s.post(f"/models/{MODEL}/load", {"profile": "int8"}), 409, "conflict", MODEL)
        assert s.delete("/requests/" + r.headers["x-request-id"]).status_code == 200
        last = [json.loads(x[6:]) for x in lines if x.startswith(b"data: ")][-1]
        assert last["done"] is True and last["done_reason"] == "cancelled" and last["eval_count"] > 0
    assert until(lambda: s.metric("vllm:num_requests_running", MODEL) == 0)
    s = start("--max-streams", "1", "--isa", "ref")
    with long_stream(s, n=64) as r:  # one after the other: it runs until it is ended
        lines = r.iter_lines()  # dropping it would end the connection
        next(lines)
        s.process.send_signal(signal.SIGTERM)
        assert until(lambda: s.get("/health").json()["status"] == "draining")
        check(chat(s), 503, "draining")
        check(s.post("/models/reload", {}), 503, "draining")
        assert s.get("/health/ready").status_code == 503
        s.process.send_signal(signal.SIGTERM)  # a second one does not wait
        assert s.process.wait(60) == 0
        last = [json.loads(x[6:]) for x in lines if x.startswith(b"data: ")][-1]
        assert last["error"]["code"] == "draining"


@pytest.mark.parametrize("signals,flags", [(1, ["--drain-timeout", "1"]), (2, [])])
def test_a_drain_that_ends_early_tells_those_who_wait(start, signals, flags):
    s = start("--max-streams", "1", "--isa", "ref", *flags)
    whole = {"model": MODEL, "messages": MESSAGES, "max_tokens": 480, "ignore_eos": True, "n": 64}
    with concurrent.futures.ThreadPoolExecutor(1) as pool, long_stream(s, n=64) as r:
        lines = r.iter_lines()
        next(lines)
        waiting = pool.submit(s.post, "/chat", whole)
        assert until(lambda: s.get("/health").json()["active_requests"] == 2)
        for _ in range(signals):
            s.process.send_signal(signal.SIGTERM)
            assert until(lambda: "draining" in s.text())
        last = [json.loads(x[6:]) for x in lines if x.startswith(b"data: ")][-1]  # a cut would raise
        assert last["done"] is True and last["error"]["code"] == "draining"
        check(waiting.result(60), 503, "draining", "did before this answer was done")
    assert s.process.wait(60) == 0


def test_error_in_a_stream(server):
    with server.post("/chat", {"model": MODEL, "messages": MESSAGES, "max_tokens": 450, "ignore_eos": True, "stream": True,
                               "n": 16, "logprobs": True, "top_logprobs": 20, "timeout": 0.1}, stream=True) as r:
        parts = [json.loads(x[6:]) for x in r.iter_lines() if x.startswith(b"data: ")]
    if r.status_code == 200:  # it began before its time was over
        assert parts[-1]["done"] is True and parts[-1]["error"]["code"] == "timeout" and parts[-1]["done_reason"] == "timeout"
    else:
        assert r.status_code == 408


def test_cannot_listen(server, tmp_path):
    import subprocess
    from conftest import BINARY
    r = subprocess.run([BINARY, "serve", "--port", server.url.rsplit(":", 1)[1], "--data-dir", str(tmp_path)],
                       capture_output=True, text=True, timeout=20)
    assert r.returncode == 1 and "--port" in r.stderr


def test_cancel_ends_all_of_one_id(start):
    server = start("--isa", "ref", "--max-streams", "1")  # one choice after the other
    chat(server)
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        ask = {"model": MODEL, "messages": MESSAGES, "max_tokens": 480, "ignore_eos": True, "n": 64}
        running = [pool.submit(server.post, "/chat", ask, headers={"x-request-id": "shared"}) for _ in range(3)]
        assert until(lambda: server.get("/health").json()["active_requests"] == 3)
        assert server.delete("/requests/shared").status_code == 200
        for r in running:
            check(r.result(60), 499, "cancelled", "shared")
    check(server.delete("/requests/shared"), 404, "not_found")


@pytest.mark.parametrize("given,taken", [
    ("mine", True), ("a" * 128, True), ("!~{}\"\\,;", True), ("a" * 129, False), ("two words", False), ("a\tb", False), ("", False),
    ("\xfcber", False), (None, False),
])
def test_request_ids(server, given, taken):
    """One that is not taken is replaced, with another one each time."""
    seen = set()
    for status, r in [(200, server.get("/health", headers={"x-request-id": given})),
                      (404, server.get("/nowhere", headers={"x-request-id": given}))]:
        assert r.status_code == status
        seen.add(r.headers["x-request-id"])
    assert (seen == {given}) == taken
    assert taken or len(seen) == 2 and all(re.fullmatch(r"[!-~]{1,128}", x) for x in seen), seen


@pytest.mark.parametrize("path,body,model", [
    ("/chat", '{"model": "none", "model": "%s", "messages": [], "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}',
     MODEL),
    ("/chat", '{"model": "%s", "model": "none", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}', None),
    ("/tokenize", '{"model": "none", "prompt": 5, "model": "%s", "prompt": "hi"}', MODEL),
])
def test_of_a_name_that_is_there_twice_the_last_counts(server, path, body, model):
    r = requests.post(server.url + path, data=body % MODEL, timeout=20)
    if model:
        assert r.status_code == 200, r.text
    else:
        check(r, 404, "model_not_found", "'none'")
