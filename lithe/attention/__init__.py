"""Attention: which keys are read, how they are kept, and who reads them together."""
