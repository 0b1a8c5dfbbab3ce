"""Diffusion language models: a text of masked places is filled in any order, several places a pass."""
