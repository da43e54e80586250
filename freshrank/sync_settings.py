"""How often parameters reach the replicas, and through what."""

from datetime import timedelta
from typing import Any, Literal

from pydantic import Field, field_validator

from freshrank.redis_settings import RedisSettings
from freshrank.units import Bytes, Part, Period


class ChannelSettings(RedisSettings):
    """The parameter channel: a directory of this machine, or a Redis for many machines."""

    kind: Literal["directory", "redis"] = "directory"
    # Of deltas: what is kept for replicas that were away, and what may follow a base before the
    # next one. Beside it lies the base, and its successor while that is published.
    retention: Bytes = 512 << 20


class SyncSettings(Part):
    """How often parameters reach the replicas."""

    sparse_every: Period = timedelta(seconds=1)
    dense_every: Period = timedelta(seconds=10)
    full_every: Period = timedelta(hours=1)
    # Of rows on their way: float16 halves what the channel carries, and rounds each weight to 2^-11
    # of it. Replicas must know the type before the trainer writes it.
    dtype: Literal["float32", "float16"] = "float32"
    channel: ChannelSettings = Field(default_factory=ChannelSettings)

    @field_validator("channel", mode="before")
    @classmethod
    def _kind_alone(cls, value: Any) -> Any:
        """`channel: directory` as it was written before there were two."""
        return {"kind": value} if isinstance(value, str) else value
