"""The tree's rules that a program can check: file length, include layers, no TODO. Exit status 1 and a line a finding."""
import pathlib
import re
import sys

LINES_MAX = 1200
BELOW = {  # what a folder of src/ may include
    "base": set(), "http": {"base"}, "text": {"base"}, "backend": {"base"}, "model": {"base", "backend"},
    "engine": {"base", "backend", "model"}, "hub": {"base", "store"}, "store": {"base"}, "api": {"base", "text"},
    "serve": {"base", "http", "text", "backend", "model", "engine", "hub", "store", "api"},
    "cli": {"base", "http", "text", "backend", "model", "engine", "hub", "store", "api", "serve"},
}

findings = []
root = pathlib.Path(__file__).resolve().parent.parent
for path in sorted(root.glob("src/**/*.[ch]")) + sorted(root.glob("tests/**/*.[ch]")):
    name, lines = path.relative_to(root), path.read_text().splitlines()
    if len(lines) > LINES_MAX:
        findings.append(f"{name}: {len(lines)} lines; at most {LINES_MAX}")
    folder = name.parts[1] if name.parts[0] == "src" and len(name.parts) > 2 else None
    for number, line in enumerate(lines, 1):
        if re.search(r"\b(TODO|FIXME|XXX)\b", line):
            findings.append(f"{name}:{number}: unfinished work is marked")
        include = re.match(r'#include "([a-z_]+)/', line)
        if folder and include and include.group(1) not in BELOW[folder] | {folder}:
            findings.append(f"{name}:{number}: {folder} must not include {include.group(1)}")
print("\n".join(findings) or "tidy: nothing found")
sys.exit(bool(findings))
