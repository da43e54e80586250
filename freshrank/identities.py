"""Ids of users and items as clients send them -> the one text that names each."""

from collections.abc import Sequence

from freshrank.encoding import are_plain_texts, parse_text, parse_uint64, plain_integers
from freshrank.errors import DataError
from freshrank.messages import Value
from freshrank.settings import Feature, IdFeature


class Identities:
    """Canonical ids of one of the reserved features. Immutable.

    Args:
        name: `user_id` or `item_id`.
        feature: That feature; without one ids are strings.
    """

    def __init__(self, name: str, feature: Feature | None) -> None:
        self._name = name
        self._is_uint64 = isinstance(feature, IdFeature) and feature.key == "uint64"

    def canonical(self, identity: object) -> str:
        """The text of one id.

        Raises:
            DataError: not legal for the key type (code `bad-id`).
        """
        try:
            if self._is_uint64:
                return str(parse_uint64(identity))
            if text := parse_text(identity):
                return text
        except DataError as error:
            raise DataError(f"{self._name}: {error}", code="bad-id") from None
        raise DataError(f"{self._name}: expected a non-empty string", code="bad-id")

    def plain(self, identities: Sequence[Value]) -> list[str] | None:
        """The texts of many ids, fast; None where one of them needs `canonical`."""
        if self._is_uint64:
            return None if plain_integers(identities) is None else list(map(str, identities))
        texts = [one for one in identities if isinstance(one, str)]
        is_plain = len(texts) == len(identities) and all(texts) and are_plain_texts(texts)
        return texts if is_plain else None
