"""Compiled twins of the decoder's operators: C behind a plain interface, built with the system's compiler."""
