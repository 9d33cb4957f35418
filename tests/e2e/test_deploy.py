"""What deploy/ shows and warns of is what /metrics gives (R61)."""
import json
import re

from conftest import ROOT, until

DEPLOY = ROOT / "deploy"
METRIC = re.compile(r"\b(?:vllm|inferd):\w+|\bhttp_\w+")


def test_every_metric_is_served(server):
    assert server.post("/chat", {"model": "llama-tied-f32", "messages": [{"role": "user", "content": "hi"}],
                                 "max_tokens": 2}).status_code == 200
    # What is counted of a request is counted beside its answer, and shown when that is over.
    assert until(lambda: "vllm:e2e_request_latency_seconds_count{" in (t := server.get("/metrics").text) and 'handler="/chat"' in t)
    series = {re.match(r"[\w:]+", x).group() for x in server.get("/metrics").text.splitlines() if not x.startswith("#")}
    board = json.loads((DEPLOY / "grafana.json").read_text())
    shown = {m for p in board["panels"] for t in p["targets"] for m in METRIC.findall(t["expr"])}
    warned = set(METRIC.findall((DEPLOY / "alerts.yml").read_text()))
    assert len(shown) >= 15 and len(warned) >= 5
    assert shown | warned <= series, sorted((shown | warned) - series)
    labels = set(re.findall(r"\{\{(\w+)\}\}", json.dumps(board))) - {"instance"}
    text = server.get("/metrics").text
    assert all(f'{x}="' in text for x in labels), labels
