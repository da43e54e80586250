"""One tree of errors.

```
Error
├── ConfigError     the configuration file or an option is wrong (exit code 2)
├── DataError       an event, example or request is wrong; it goes to the dead letter or to a 4xx
├── SchemaError     two sides disagree on features, tasks or format versions
├── TransportError  the event log or the parameter channel failed (exit code 3)
└── SyncError       a parameter frame cannot be applied: gap, checksum, epoch
```

`embedding_store.StoreError` stands apart: the store knows nothing of this package.
"""


class Error(Exception):
    """Base of every error freshrank raises on purpose.

    Args:
        message: What was wrong, where, with which value, and what to do.
        code: A stable slug for counters, problem documents and tests.
    """

    code = "error"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code


class ConfigError(Error):
    """The configuration is wrong."""

    code = "config"


class DataError(Error):
    """An event, an example or a request is wrong."""

    code = "data"


class SchemaError(Error):
    """Two sides disagree on features, tasks or a format version."""

    code = "schema"


class TransportError(Error):
    """The event log or the parameter channel failed."""

    code = "transport"


class SyncError(Error):
    """A parameter frame cannot be applied."""

    code = "sync"
