"""Tuning: adapters, the rack that holds them, and their folders."""
