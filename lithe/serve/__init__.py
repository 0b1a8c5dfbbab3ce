"""Requests from many sides on one model: the engine, its schedules, and the doors to it."""
