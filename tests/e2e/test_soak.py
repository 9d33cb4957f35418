"""A short form of bench/soak.py: a mix of everything, and neither memory nor descriptors grow (R85)."""
import sys

import pytest

from conftest import BINARY, ROOT

sys.path.insert(0, str(ROOT / "bench"))
import soak  # noqa: E402


@pytest.mark.slow
def test_nothing_grows():
    requests, wrong = soak.soak(BINARY, 30, seed=3)
    assert not wrong and requests > 500
