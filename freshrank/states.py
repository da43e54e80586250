"""The feature state that a configuration names: one for joiners and services alike."""

from freshrank.feature_state import FeatureState, LocalFeatureState
from freshrank.settings import Settings


def open_state(settings: Settings) -> FeatureState:
    """Open it; whoever does closes it.

    In Redis nothing is asked before it is read or written: a service starts without it.

    Raises:
        ConfigError: it is in Redis, and the extra `redis` is not installed, or its url cannot be
            read or is none.
        SchemaError: it is in a file that is not one of ours, or of a newer version.
    """
    state = settings.state
    if state.kind == "local":
        path = settings.service.data_dir / "features" / "state.msgpack"
        return LocalFeatureState(settings, path)
    with state.opening("state") as url:
        from freshrank.redis_state import RedisFeatureState

        return RedisFeatureState(settings, url, prefix=state.prefix)
