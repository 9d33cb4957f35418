#!/usr/bin/env python3
"""Expected renderings of chat templates, from transformers itself.

    python tools/golden_templates.py [--data ../shared/data]

Reads expressions.txt (one expression a line, each becomes "{{ expression }}") and templates.txt (whole templates between
lines of "---"; a line "## context: {...}" adds variables) in tests/golden/templates. Writes features.json there (the
same with context and text, or "error") and, where real templates are at hand, real.json (conversations of ours; of the
templates and of what they render only SHA-256). Pinned: transformers 5.23.0, jinja2 3.1.6, markupsafe 3.0.4, Python 3.11.
"""
import argparse
import datetime
import hashlib
import json
import os
import pathlib
import sys
import time

import jinja2
import transformers
import transformers.utils.chat_template_utils as utils

PINNED = {"transformers": "5.23.0", "jinja2": "3.1.6"}
CLOCK = 1752148800  # 2025-07-10 12:00:00 UTC
ROOT = pathlib.Path(__file__).resolve().parent.parent
OUT = ROOT / "tests" / "golden" / "templates"


class FixedClock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(CLOCK, tz)


def render(template, context):
    """The text, or None when transformers fails to compile or render."""
    try:
        text = utils._compile_jinja_template(template).render(**json.loads(json.dumps(context)))
        text.encode("utf-8")
        return text
    except Exception as error:  # any failure is what the test wants to see
        if os.environ.get("SHOW"):
            print(repr(template)[:100], "->", type(error).__name__, error, file=sys.stderr)
        return None


BASE = {
    "name": "World",
    "empty": "",
    "text": "  Hello, World!\n second line\n\n  third  ",
    "uni": "Grüße, Jürgen ß ÉCOLE 日本語 😀",
    "html": "<b>\"a\" & 'b'</b>",
    "n": 7,
    "neg": -7,
    "big": 9007199254740993,
    "f": 2.5,
    "yes": True,
    "no": False,
    "nil": None,
    "nums": [3, 1, 2, 2],
    "words": ["b", "A", "c", "a"],
    "mixed": [1, "x", None, True, 2.0, [1], {"k": "v"}],
    "d": {"b": 1, "a": 2, "C": 3, "items": "shadow", "nested": {"x": [1, {"y": "z"}]}},
    "users": [
        {"name": "ann", "age": 30, "role": "admin", "tags": ["x"]},
        {"name": "Bob", "age": 25, "role": "user", "tags": []},
        {"name": "cid", "age": 30, "role": "user", "extra": None, "tags": ["y", "z"]},
    ],
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
    ],
    "tree": [{"n": "a", "kids": [{"n": "b", "kids": []}, {"n": "c", "kids": [{"n": "d", "kids": []}]}]}],
    "add_generation_prompt": True,
}

TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "Get the weather of a place.",
     "parameters": {"type": "object", "properties": {
         "city": {"type": "string", "description": "The city's name, e.g. \"Zürich\""},
         "unit": {"type": "string", "enum": ["celsius", "fahrenheit"], "description": "Unit"},
         "days": {"type": "integer", "minimum": 1, "default": 3}}, "required": ["city"]}}},
    {"type": "function", "function": {"name": "search", "description": "Search <docs> & more.",
     "parameters": {"type": "object", "properties": {
         "queries": {"type": "array", "items": {"type": "string"}, "description": "Queries"},
         "filter": {"type": "object", "properties": {"lang": {"type": ["string", "null"]}, "k": {"type": "number"}},
                    "required": ["lang"]}}, "required": []},
     "return": {"type": "string"}}},
]


def call(name, arguments, id_):
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}


def conversations():
    """Name -> context of a render."""
    user = {"role": "user", "content": "What is the capital of Italy?"}
    system = {"role": "system", "content": "You are a geography expert.\nBe brief."}
    rome = {"role": "assistant", "content": "Rome."}
    thanks = {"role": "user", "content": "  Danke schön! 😀 <|im_end|>  "}
    thought = {"role": "assistant", "content": "<think>\nItaly... Rome.\n</think>\n\nRome.",
               "reasoning_content": "Italy... Rome."}
    reasoned = {"role": "assistant", "content": "Rome.", "reasoning_content": "Italy: Rome.", "thinking": "Italy: Rome."}
    parts = {"role": "user", "content": [{"type": "text", "text": "Hello"}, {"type": "text", "text": " there"}]}
    image = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}
    ask = {"role": "user", "content": "Weather in Rome?"}
    calls = {"role": "assistant", "content": "", "tool_calls": [
        call("get_weather", {"city": "Rome", "unit": "celsius", "days": 2}, "abcdef123")]}
    calls_none = dict(calls, content=None)
    calls_text = {"role": "assistant", "content": "Let me see.", "tool_calls": [
        call("get_weather", json.dumps({"city": "Rome"}), "abcdef123")]}
    two = {"role": "assistant", "content": "", "tool_calls": [
        call("get_weather", {"city": "Rome"}, "abcdef123"),
        call("search", {"queries": ["a", "b"], "filter": {"lang": None, "k": 1.5}}, "ghijkl456")]}
    result = {"role": "tool", "name": "get_weather", "tool_call_id": "abcdef123", "content": "{\"temp\": 31}"}
    result2 = {"role": "tool", "name": "search", "tool_call_id": "ghijkl456", "content": "nothing"}
    done = {"role": "assistant", "content": "31 degrees."}
    documents = [{"title": "Rome", "text": "Rome is the capital of Italy.", "doc_id": 1},
                 {"title": "Paris", "text": "Paris is in France.", "doc_id": 2}]
    cases = {
        "user": {"messages": [user]},
        "system": {"messages": [system, user]},
        "turns": {"messages": [user, rome, thanks]},
        "system_turns": {"messages": [system, user, rome, thanks]},
        "closed": {"messages": [system, user, rome], "add_generation_prompt": False},
        "continue": {"messages": [user, dict(rome, content="RomeCONTINUE_FINAL_MESSAGE_TAG ")],
                     "add_generation_prompt": False},
        "think": {"messages": [user, thought, thanks], "enable_thinking": True, "thinking": True},
        "no_think": {"messages": [user, thought, thanks], "enable_thinking": False, "thinking": False},
        "reasoned": {"messages": [system, user, reasoned, thanks], "reasoning_effort": "high"},
        "parts": {"messages": [system, parts]},
        "image": {"messages": [image]},
        "tools": {"messages": [system, ask], "tools": TOOLS},
        "tools_no_system": {"messages": [ask], "tools": TOOLS},
        "tool_call": {"messages": [ask, calls, result], "tools": TOOLS},
        "tool_call_none": {"messages": [system, ask, calls_none, result, done, thanks], "tools": TOOLS},
        "tool_call_text": {"messages": [ask, calls_text, result, done], "tools": TOOLS, "add_generation_prompt": False},
        "tool_two": {"messages": [system, ask, two, result, result2, done, thanks], "tools": TOOLS},
        "tool_think": {"messages": [ask, dict(calls, reasoning_content="hm", thinking="hm"), result], "tools": TOOLS,
                       "enable_thinking": True},
        "documents": {"messages": [system, user], "documents": documents},
        "developer": {"messages": [{"role": "developer", "content": "Obey."}, user]},
        "empty": {"messages": []},
    }
    for context in cases.values():
        context.setdefault("add_generation_prompt", True)
        context.setdefault("tools", None)
        context.setdefault("documents", None)
        context.update(bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>")
    return cases


def sha256(text):
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def features():
    cases = []
    for line in (OUT / "expressions.txt").read_text().strip("\n").split("\n"):
        cases.append({"template": "{{ " + line + " }}"})
    # one that continues on the next line
    merged = []
    for case in cases:
        if merged and merged[-1]["template"].endswith("\\ }}"):
            merged[-1]["template"] = merged[-1]["template"][:-3] + "\n" + case["template"][3:]
        else:
            merged.append(case)
    cases = merged
    for block in (OUT / "templates.txt").read_text()[:-1].split("\n---\n"):
        context = None
        lines = block.split("\n")
        for line in lines:
            if line.startswith("## context: "):
                context = json.loads(line[len("## context: "):])
        text = "\n".join(line for line in lines if not line.startswith("## context: "))
        case = {"template": text}
        if context is not None:
            case["context"] = context
        cases.append(case)
    for case in cases:
        text = render(case["template"], dict(BASE, **case.get("context", {})))
        if text is None:
            case["error"] = True
        else:
            case["text"] = text
    return {"clock": CLOCK, "base": BASE, "cases": cases}


def real(data):
    contexts = conversations()
    cases = []
    for path in sorted((data / "templates").glob("*.jinja")):
        source = path.read_bytes().decode("utf-8")
        for name, context in contexts.items():
            text = render(source, context)
            cases.append({"file": path.name, "template_sha256": sha256(source), "case": name,
                          "sha256": None if text is None else sha256(text)})
    for group, members in sorted(json.loads((data / "rendered.json").read_text()).items()):
        for key, member in sorted(members.items()):
            text = render(member["chat_template"], member["data"])
            cases.append({"group": group, "key": key, "template_sha256": sha256(member["chat_template"]),
                          "sha256": None if text is None else sha256(text)})
    return {"clock": CLOCK, "contexts": contexts, "cases": cases}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=pathlib.Path, default=ROOT.parent / "shared" / "data")
    args = parser.parse_args()
    found = {"transformers": transformers.__version__, "jinja2": jinja2.__version__}
    if found != PINNED:
        sys.exit(f"these goldens come from {PINNED}, but {found} is installed")
    os.environ["TZ"] = "UTC"
    time.tzset()
    utils.datetime = FixedClock
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "features.json").write_text(json.dumps(features(), ensure_ascii=True, indent=1) + "\n")
    templates = args.data / "chat_templates"
    if templates.is_dir():
        (OUT / "real.json").write_text(json.dumps(real(templates), ensure_ascii=True, indent=1) + "\n")
    else:
        print(f"no real templates in {templates}: real.json stays as it is")


if __name__ == "__main__":
    main()
