"""Joins impressions and actions into training examples; needs no torch."""

from trainer.joiner.joiner import Joiner

__all__ = ["Joiner"]
