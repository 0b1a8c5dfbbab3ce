"""Autoregressive decoding: one loop that drafts, verifies in one pass, walks and commits."""
