"""Backups of what a deployment must keep, and back from them."""
