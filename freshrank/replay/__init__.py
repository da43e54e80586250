"""Replays a log or a table in event time and reports how well each model predicted it."""
