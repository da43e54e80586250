"""Where feature state is: in this process, or in a Redis that several share."""

from typing import Literal

from freshrank.redis_settings import RedisSettings


class StateSettings(RedisSettings):
    """Feature state: what users did lately, and how often."""

    kind: Literal["local", "redis"] = "local"
