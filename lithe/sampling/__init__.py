"""From logits to a distribution: warps, and the sequences that ask for them."""
