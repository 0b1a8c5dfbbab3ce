"""The variants that can be tested here; on a machine without a compiler the tests of compiled code are skipped, and say so."""

import pytest

from lithe.kernels import build, library

try:
    VARIANTS, WHY = library.variants(), ""
except build.BuildError as problem:
    VARIANTS, WHY = [], str(problem)

WEIGHTS = [("fp32", 0), ("bf16", 0), ("int8", 32), ("int8", 128), ("int8", -1), ("int4", 32), ("int4", 128), ("int4", -1)]
compiled = pytest.mark.skipif(not VARIANTS, reason=WHY or "no variant")
every_variant = pytest.mark.parametrize("kernels", VARIANTS or [None], indirect=True)
every_weight = pytest.mark.parametrize(("kind", "group"), WEIGHTS)
