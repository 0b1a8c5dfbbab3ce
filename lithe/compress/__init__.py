"""Making models smaller: calibrate, score, allocate, apply, recover, store.

Called, the room is its main function: `lithe.compress(model, methods, calibration=..., out=...)`, see `api.compress`.
"""

import sys
from types import ModuleType
from typing import Any


class _Room(ModuleType):
    """A module that can be called: lithe's face offers a function of this room's name, and importing the room would hide it."""

    def __call__(self, *words: Any, **settings: Any) -> Any:
        from lithe.compress.api import compress

        return compress(*words, **settings)


sys.modules[__name__].__class__ = _Room
