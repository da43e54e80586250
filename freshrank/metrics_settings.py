"""Where processes without HTTP of their own answer Prometheus."""

from typing import Annotated

from pydantic import Field

from freshrank.units import Part


class MetricsSettings(Part):
    """The port of `freshrank join` and `freshrank train`; `freshrank serve` has its own."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] | None = None  # None: closed; 0: any free one
