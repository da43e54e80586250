"""What settings of a Redis have in common: where it is, and what its keys begin with."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from freshrank.errors import ConfigError
from freshrank.units import FilePath, Part

_SCHEMES: Final = ("redis", "rediss", "unix")
_MEND: Final = "pip install 'freshrank[redis]'"
# What stands in the braces of each key; a brace of its own would end them.
KeyPrefix = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,50}$")]


class RedisSettings(Part):
    """Base of a section of several kinds, one of them `redis`; every other field is of that one."""

    kind: str
    # redis://host:6379/0; rediss:// with TLS, its options as in ?ssl_ca_certs=/run/ca.pem.
    url: str | None = None
    url_file: FilePath | None = None  # the same in a file, with user and password
    prefix: KeyPrefix = "freshrank"  # of every key: several deployments, one server

    @model_validator(mode="after")
    def _fields_of_its_kind(self) -> Self:
        if self.kind != "redis":
            for name, field in type(self).model_fields.items():
                if name != "kind" and getattr(self, name) != field.default:
                    raise ValueError(f"{name} is of kind redis; kind is {self.kind}")
        elif (self.url is None) == (self.url_file is None):
            raise ValueError("kind redis needs either url (redis://host:6379/0) or url_file")
        if self.url is not None:
            if urlsplit(self.url).scheme not in _SCHEMES:
                raise ValueError("url is none of redis://host:6379/0, rediss:// (TLS), unix://path")
            if urlsplit(self.url).password is not None:
                raise ValueError("url has a password: put the whole url into a file, as url_file")
        return self

    @contextmanager
    def opening(self, section: str) -> Iterator[str]:
        """The url, to open something with.

        Args:
            section: Where these settings stand, for messages: `state`.

        Raises:
            ConfigError: the extra `redis` is not installed, or the url cannot be read or is none.
        """
        name = f"{section}.url" if self.url_file is None else f"{section}.url_file"
        try:
            yield self.url or "" if self.url_file is None else _content(self.url_file, name)
        except ImportError as error:
            text = f"{section}.kind is redis, which needs {error.name}: {_MEND}"
            raise ConfigError(text) from None
        except ValueError:  # its text may hold the password
            raise ConfigError(
                f"{name}: not the address of a Redis: write redis://host:6379/0"
            ) from None


def _content(path: Path, name: str) -> str:
    try:
        url = path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}: cannot read it: {error}") from error
    if not url.startswith(tuple(f"{scheme}://" for scheme in _SCHEMES)):
        raise ConfigError(f"{name}: {path} holds no url: write redis://user:password@host:6379/0")
    return url
