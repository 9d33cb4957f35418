"""Where things are that the tests run and read."""
import os
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODELS = ROOT / "tests" / "golden" / "models"
BINARY = ROOT / os.environ.get("INFERD_BINARY", "build/inferd")
