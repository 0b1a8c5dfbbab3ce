"""What the standard says of a text: Python's reference implementation, formats asserted, numbers exact."""

from __future__ import annotations

import json
import re
import warnings
from decimal import Decimal
from typing import Any

from lithe.errors import UnsupportedError


class Judge:
    """Says whether texts are valid. `known` is False where the reference cannot read the schema."""

    def __init__(self, schema: Any):
        try:
            import jsonschema
        except ImportError:
            raise UnsupportedError("the suite's judge is the library jsonschema: pip install 'lithe[json]'") from None
        kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
        self.validator = kind(_read(json.dumps(schema)), format_checker=kind.FORMAT_CHECKER)

    def __call__(self, text: str) -> bool | None:
        """True, False, or None where the reference itself fails on the schema, as with a pattern that Python cannot read."""
        try:
            value = _read(text)
        except (ValueError, RecursionError):
            return False
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # of patterns that a later Python may read otherwise
                return bool(self.validator.is_valid(value))
        except (re.error, RecursionError, ArithmeticError, TypeError):
            return None
        except Exception as problem:  # a reference that leads nowhere; the library raises what its own parts raise
            if "Unresolvable" in type(problem).__name__ or "WrappedReferencing" in type(problem).__name__:
                return None
            raise


def _read(text: str) -> Any:
    return json.loads(text, parse_float=Decimal)
