"""Pure functions of tensors: no model types, no state."""
