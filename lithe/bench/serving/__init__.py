"""The serving suite: what the engine costs, what chunks and shared prefixes gain, and how much goes through."""
