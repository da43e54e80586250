"""What a process writes about itself to its standard error."""

from typing import Literal

from freshrank.units import Part


class LoggingSettings(Part):
    """Which log lines are written, and how."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "console"] = "auto"  # auto: console on a terminal, else JSON
