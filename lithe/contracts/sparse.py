"""Methods that tune single entries keep what adapters keep: they build the same parts for the same rack."""

from lithe.contracts.adapter import check_merge_equals_wrap, check_touches_only, check_verbs, check_zero_at_start

__all__ = ["check_merge_equals_wrap", "check_touches_only", "check_verbs", "check_zero_at_start"]
