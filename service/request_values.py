"""A rank request -> the values to encode, or everything that is wrong with it."""

from collections.abc import Sequence
from typing import Final

from freshrank.errors import DataError
from freshrank.features import FeatureEncoder, Problem, RequestValues
from freshrank.messages import Value
from freshrank.settings import Settings
from service.bodies import RankRequest
from service.decoding import pointer
from service.known import KnownFeatures
from service.problems import FieldError, validation

# A client mends a handful at a time; a thousand equal lines help nobody.
ERRORS_MAX: Final = 20
MODEL_NAME: Final = "main"
CANDIDATE_SCOPES: Final = ("item", "candidate")


class RequestReader:
    """Checks a request and completes it with what is known besides."""

    def __init__(self, settings: Settings, encoder: FeatureEncoder, known: KnownFeatures) -> None:
        self._encoder = encoder
        self._known = known
        self._n_candidates_max = settings.limits.candidates

    def read(self, request: RankRequest, *, before_ms: int) -> RequestValues:
        """All values of the request, ids canonical, excluded items left out.

        Args:
            request: As decoded.
            before_ms: Time of the request; feature state shows what happened before.

        Raises:
            ProblemError: 422 with up to `ERRORS_MAX` mistakes.
        """
        n_candidates = len(request.candidates)
        if n_candidates > self._n_candidates_max:
            detail = f"{n_candidates} candidates, at most {self._n_candidates_max} are allowed"
            raise validation([FieldError("#/candidates", detail)])
        if request.model != MODEL_NAME:
            detail = f"no model {request.model!r}; there is {MODEL_NAME!r}"
            raise validation([FieldError("#/model", detail)])
        errors: list[FieldError] = []
        user = self._identity("user", request.user, ["user"], errors)
        excluded = {
            self._identity("item", item, ["exclude", i], errors)
            for i, item in enumerate(request.exclude)
        }
        sent = [candidate.item for candidate in request.candidates]
        items = self._encoder.plain_items(sent) or [
            self._identity("item", item, ["candidates", i, "item"], errors)
            for i, item in enumerate(sent)
        ]
        self._check(request, items, errors)
        if errors:
            raise validation(errors[:ERRORS_MAX])
        kept = [i for i, item in enumerate(items) if item not in excluded]
        return self._known.complete(
            user,
            [items[i] for i in kept],
            {**request.user_features, **request.context},
            [request.candidates[i].features for i in kept],
            before_ms=before_ms,
        )

    def missing_features(self, values: RequestValues) -> list[str]:
        """Features without a value, for the request or for at least one of its items."""
        missing = [name for name in self._known.names.shared if values.shared.get(name) is None]
        nothing: list[Value] = [None]
        for name in self._known.names.columns:
            if any(value is None for value in values.columns.get(name, nothing)):
                missing.append(name)
        return missing

    def _identity(
        self, scope: str, identity: int | str, place: list[str | int], errors: list[FieldError]
    ) -> str:
        to_text = self._encoder.canonical_user if scope == "user" else self._encoder.canonical_item
        try:
            return to_text(identity)
        except DataError as error:
            errors.append(FieldError(pointer(place), str(error)))
            return ""

    def _check(self, request: RankRequest, items: Sequence[str], errors: list[FieldError]) -> None:
        check = self._encoder.check
        errors += _located("#/user_features", check(request.user_features, ["user"]))
        errors += _located("#/context", check(request.context, ["context"]))
        if len(set(items)) == len(items) and not any(one.features for one in request.candidates):
            return
        first_of: dict[str, int] = {}
        for i, (item, candidate) in enumerate(zip(items, request.candidates, strict=True)):
            if len(errors) >= ERRORS_MAX:
                return
            if candidate.features:
                place = f"#/candidates/{i}/features"
                errors += _located(place, check(candidate.features, CANDIDATE_SCOPES))
            if item and (first := first_of.setdefault(item, i)) != i:
                detail = f"the same item as candidate {first}: send each once"
                errors.append(FieldError(f"#/candidates/{i}/item", detail))


def _located(place: str, problems: Sequence[Problem]) -> list[FieldError]:
    return [FieldError(f"{place}/{problem.pointer}", problem.detail) for problem in problems]
