"""freshrank: a ranking service that learns from the click you just made."""

__version__ = "0.1.0"
