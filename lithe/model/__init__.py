"""The decoder, its configuration, cache, checkpoints and tokenizer."""
