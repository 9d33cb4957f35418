"""The official Python client, with strict validation of every reply."""
import json
import pathlib

import openai
import pytest

from conftest import until

MODEL = "qwen2-f32"
GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden" / "models"
MESSAGES = [{"role": "user", "content": "Hello there"}]


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, _strict_response_validation=True)


def test_chat(client):
    r = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=8, temperature=0)
    assert r.choices[0].finish_reason in ("stop", "length")
    assert r.usage.completion_tokens <= 8 and r.usage.total_tokens == r.usage.prompt_tokens + r.usage.completion_tokens
    assert r.system_fingerprint.startswith("fp_")


def test_stream_equals_whole(client):
    ask = dict(model=MODEL, messages=MESSAGES, max_tokens=24, seed=7, temperature=1)
    whole = client.chat.completions.create(**ask).choices[0].message.content
    parts = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    assert "".join(p.choices[0].delta.content or "" for p in parts if p.choices) == whole
    assert parts[0].choices[0].delta.role == "assistant"
    assert parts[-1].usage.completion_tokens > 0 and parts[-1].choices == []


@pytest.mark.parametrize("model", ["qwen2-f32", "llama-bf16", "gpt2-f32", "opt-f32", "mistral-f16", "qwen3-bf16"])
def test_prompt_logprobs_match_transformers(client, model):
    golden = json.loads((GOLDEN / model / "golden.json").read_text())
    ids = golden["prompt"]
    r = client.with_options().completions.with_raw_response.create(
        model=model, prompt=ids, echo=True, max_tokens=0, logprobs=5)
    got = json.loads(r.content)["choices"][0]["logprobs"]["token_logprobs"]
    assert got[0] is None and len(got) == len(ids)
    assert max(abs(a - b) for a, b in zip(got[1:], golden["next_logprobs"], strict=True)) < 1e-3


def test_completion_logprobs(client):
    r = client.completions.create(model=MODEL, prompt="once upon", max_tokens=6, logprobs=3, temperature=0,
                                  extra_body={"return_tokens_as_token_ids": True})  # texts of tokens may be equal
    lp = r.choices[0].logprobs
    assert len(lp.tokens) == len(lp.token_logprobs) == len(lp.top_logprobs) == len(lp.text_offset)
    assert all(max(top.values()) >= p - 1e-6 for top, p in zip(lp.top_logprobs, lp.token_logprobs))


def test_chat_logprobs(client):
    r = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=5, logprobs=True, top_logprobs=4,
                                       temperature=0)
    tokens = r.choices[0].logprobs.content
    assert len(tokens) == r.usage.completion_tokens > 0
    for t in tokens:
        assert len(t.top_logprobs) == 4 and abs(t.top_logprobs[0].logprob - t.logprob) < 1e-6


def test_seed_and_choices(client):
    ask = dict(model=MODEL, messages=MESSAGES, max_tokens=12, seed=3, temperature=1)
    one = client.chat.completions.create(**ask).choices[0].message.content
    three = [c.message.content for c in client.chat.completions.create(**ask, n=3).choices]
    assert three[0] == one and len(set(three)) > 1
    assert client.chat.completions.create(**ask).choices[0].message.content == one


def test_stop(client):
    ask = dict(model=MODEL, messages=MESSAGES, max_tokens=40, seed=3, temperature=1)
    text = client.chat.completions.create(**ask).choices[0].message.content
    stop = text[len(text) // 2:len(text) // 2 + 2]
    r = client.chat.completions.create(**ask, stop=stop)
    assert r.choices[0].message.content == text[:text.index(stop)] and r.choices[0].finish_reason == "stop"
    parts = client.chat.completions.create(**ask, stop=stop, stream=True)
    assert "".join(p.choices[0].delta.content or "" for p in parts if p.choices) == text[:text.index(stop)]


def test_models(client):
    ids = [m.id for m in client.models.list()]
    assert MODEL in ids and client.models.retrieve(MODEL).id == MODEL


def test_errors(client):
    with pytest.raises(openai.NotFoundError) as e:
        client.chat.completions.create(model="no-such", messages=MESSAGES)
    assert e.value.code == "model_not_found" and "no-such" in e.value.message
    with pytest.raises(openai.BadRequestError) as e:
        client.chat.completions.create(model=MODEL, messages=MESSAGES, temperature=9)
    assert e.value.param == "temperature" and "9" in e.value.message and "2" in e.value.message
    with pytest.raises(openai.BadRequestError) as e:
        client.chat.completions.create(model=MODEL, messages=MESSAGES, extra_body={"temprature": 1})
    assert e.value.param == "temprature" and "temperature" in e.value.message
    with pytest.raises(openai.BadRequestError) as e:
        client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=10_000_000)
    assert e.value.code == "context_length_exceeded"


def test_async_and_abandoned(server):
    import asyncio

    async def main():
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0,
                                      _strict_response_validation=True) as c:
            ask = dict(model=MODEL, messages=MESSAGES, seed=4, temperature=1)

            async def stream(n):
                parts = [p async for p in await c.chat.completions.create(**ask, max_tokens=n, stream=True)]
                return "".join(p.choices[0].delta.content or "" for p in parts if p.choices)

            whole = (await c.chat.completions.create(**ask, max_tokens=12)).choices[0].message.content
            assert set(await asyncio.gather(*(stream(12) for _ in range(12)))) == {whole}
            endless = await c.chat.completions.create(**ask, max_tokens=400, stream=True, extra_body={"ignore_eos": True})
            async for _ in endless:
                break
            await endless.close()

    asyncio.run(main())
    assert until(lambda: server.metric("vllm:num_requests_running", MODEL) == 0)


def test_completions_in_full(client):
    r = client.completions.create(model=MODEL, prompt=["once upon", "a time"], max_tokens=3, n=2, seed=1, echo=True)
    assert [c.index for c in r.choices] == [0, 1, 2, 3] and r.choices[0].text.startswith("once upon")
    # finish_reason is null until the end, in OpenAI's streams too; the client's own type does not allow that
    loose = client.copy()
    loose._strict_response_validation = False
    parts = list(loose.completions.create(model=MODEL, prompt="once", max_tokens=4, stream=True, extra_body={"ignore_eos": True},
                                          stream_options={"include_usage": True}))
    assert all(p.choices[0].finish_reason is None for p in parts[:-2])
    assert parts[-1].usage.completion_tokens <= 4 and parts[-2].choices[0].finish_reason in ("stop", "length")
    r = client.completions.create(model=MODEL, prompt=[5, 6, 7], max_tokens=2, extra_body={"return_token_ids": True})
    assert r.choices[0].prompt_token_ids == [5, 6, 7] and len(r.choices[0].token_ids) == r.usage.completion_tokens


def test_what_is_taken(client):
    r = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": [{"type": "text", "text": "Hello"}, {"type": "text", "text": " there"}]}],
        max_completion_tokens=3, user="me", metadata={"a": "b"}, store=False, service_tier="auto", parallel_tool_calls=True,
        response_format={"type": "text"}, logit_bias={"7": 100}, temperature=0)
    assert r.usage.completion_tokens <= 3
