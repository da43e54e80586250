"""The parameter channel that a configuration names."""

from freshrank.clock import Clock
from freshrank.settings import Settings
from freshrank.transport.base import ParameterChannel
from freshrank.transport.directory import DirectoryChannel


def open_channel(settings: Settings, clock: Clock) -> ParameterChannel:
    """Open it; whoever does closes it.

    In Redis nothing is asked before it is read or written: a service starts without it.

    Args:
        settings: The configuration.
        clock: Tells when frames are published.

    Raises:
        ConfigError: it is in Redis, and the extra `redis` is not installed, or its url cannot be
            read or is none.
        TransportError: its directory cannot be made.
    """
    channel = settings.sync.channel
    if channel.kind == "directory":
        return DirectoryChannel(settings.service.data_dir / "parameters", clock=clock)
    with channel.opening("sync.channel") as url:
        from freshrank.transport.redis_channel import RedisChannel

        return RedisChannel(
            url, prefix=channel.prefix, retention_bytes=channel.retention, clock=clock
        )
