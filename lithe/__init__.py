"""lithe makes language models lithe: they decode faster, tune cheaper and weigh less, and every gain is proven.

>>> import lithe
>>> model = lithe.load("zoo:tiny")
>>> text = "".join(step.text for step in lithe.generate(model, "Once upon a time", max_tokens=8))
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from lithe.bench.advise import advise as advise
    from lithe.bench.runner import bench as bench
    from lithe.compress.api import compress as compress
    from lithe.loops import generate as generate
    from lithe.model.load import load as load
    from lithe.model.runtime import cost_curve as cost_curve
    from lithe.registry import entries as methods
    from lithe.tune.rack import attach as attach
    from lithe.tune.run import tune as tune

# Nothing heavy is imported until it is used: `import lithe` must stay instant.
_FACE = {
    "load": "lithe.model.load",
    "generate": "lithe.loops",
    "attach": "lithe.tune.rack",
    "bench": "lithe.bench.runner",
    "advise": "lithe.bench.advise",
    "tune": "lithe.tune.run",
    "compress": "lithe.compress.api",
    "methods": "lithe.registry:entries",
    "cost_curve": "lithe.model.runtime",
}
__all__ = ["advise", "attach", "bench", "compress", "cost_curve", "generate", "load", "methods", "tune"]


def __getattr__(name: str) -> Any:
    if name not in _FACE:
        raise AttributeError(f"module 'lithe' has no attribute {name!r}; it offers {', '.join(__all__)}")
    module, _, attribute = _FACE[name].partition(":")
    return getattr(import_module(module), attribute or name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
