#!/bin/sh
# Kernels against the machine's limits, then serving the default model: streams, shared prefix, cold start.
# Usage: bench/run.sh BUILD_DIR MODELS_DIR
set -eu
build=$1 models=$2
"$build/bench/ops"
[ -f "$models/smollm2.gguf" ] || { echo "serving: skipped, $models/smollm2.gguf is not there (make run fetches it)"; exit 0; }
data=$(mktemp -d)
trap 'kill $server 2>/dev/null; wait 2>/dev/null; rm -rf "$data"' EXIT
start=$(date +%s%N)
"$build/inferd" serve --port 8339 --models-dir "$models" --data-dir "$data" --log-level warn &
server=$!
url=http://127.0.0.1:8339
until curl -sf $url/health >/dev/null; do :; done
echo "/health answered $((($(date +%s%N) - start) / 1000000)) ms after the start"
start=$(date +%s%N)
curl -sf $url/v1/completions -d '{"model":"smollm2","prompt":"Hello","max_tokens":1}' >/dev/null
echo "first token $((($(date +%s%N) - start) / 1000000)) ms after the request that loads the model"
echo "100 tokens in, 64 out:"
python3 bench/serve.py $url smollm2 --streams 1,4,16,64
echo "the same, 400 of 420 tokens shared:"
python3 bench/serve.py $url smollm2 --streams 16 --prompt 420 --shared 400
