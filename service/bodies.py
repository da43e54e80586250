"""What requests and answers look like: the one definition that decoding and OpenAPI both use."""

from typing import Annotated, Final, Literal

import msgspec

from freshrank.messages import Value

TEXT_CHARACTERS_MAX: Final = 256
CHECKPOINT_CHARACTERS_MAX: Final = 80
FEATURES_MAX: Final = 128
# An impression a client reports; a rank request is limited by `limits.candidates`.
ITEMS_MAX: Final = 1_000

Text = Annotated[str, msgspec.Meta(min_length=1, max_length=TEXT_CHARACTERS_MAX)]
Identity = int | Text
Features = Annotated[
    dict[Annotated[str, msgspec.Meta(max_length=TEXT_CHARACTERS_MAX)], Value],
    msgspec.Meta(max_length=FEATURES_MAX),
]
# RFC 3339, or seconds since 1970 UTC.
Moment = int | float | Annotated[str, msgspec.Meta(max_length=64)]
Position = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
# Names a span of offsets per log: 12 bytes each, three topics of up to 64 partitions.
ReceiptText = Annotated[str, msgspec.Meta(max_length=4_096)]
# An hour: whoever waits longer has gone. Python's timers take no 2^63.
DeadlineMs = Annotated[int, msgspec.Meta(ge=1, le=3_600_000)]


class Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of everything a client sends: an unknown field is a mistake."""


class Candidate(Body, frozen=True, kw_only=True):
    """An item to score, with features that hold for this request only or override known ones."""

    item: Identity
    features: Features = {}


class RankRequest(Body, frozen=True, kw_only=True):
    """Candidates to order for a user.

    Attributes:
        user: Whom to rank for.
        candidates: What to rank.
        request_id: Ties feedback to this answer; made when absent.
        user_features: Features of scope user; they win over those sent as a user event.
        context: Features of scope context.
        top_k: Items in the answer; all when absent.
        model: Name of the model; there is one.
        exclude: Items to leave out.
        log_impression: False scores without learning from what happens next.
        deadline_ms: Items not scored by then stand last with score null.
        after: A receipt; the answer says whether its events are in the parameters.
    """

    user: Identity
    candidates: list[Candidate]
    request_id: Text | None = None
    user_features: Features = {}
    context: Features = {}
    top_k: Position | None = None
    model: Text = "main"
    exclude: list[Identity] = []
    log_impression: bool = True
    deadline_ms: DeadlineMs | None = None
    after: ReceiptText | None = None


class ShownItem(Body, frozen=True, kw_only=True):
    """An item of a reported impression."""

    item: Identity
    position: Position | None = None
    features: Features = {}


class _Event(Body, frozen=True, kw_only=True, tag_field="kind"):
    event_id: Text | None = None
    ts: Moment | None = None


class ImpressionEvent(_Event, frozen=True, kw_only=True, tag="impression"):
    """Items that a user was shown, and the features of user and context at that time."""

    request_id: Text
    items: Annotated[list[ShownItem], msgspec.Meta(min_length=1, max_length=ITEMS_MAX)]
    user: Identity | None = None
    user_features: Features = {}
    context: Features = {}


class FeedbackEvent(_Event, frozen=True, kw_only=True, tag="feedback"):
    """Something the user did with an item of a request."""

    request_id: Text
    item: Identity
    event: Text
    user: Identity | None = None
    value: float = 1.0


class ItemEvent(_Event, frozen=True, kw_only=True, tag="item"):
    """Features of an item; they replace those sent before."""

    item: Identity
    features: Features


class UserEvent(_Event, frozen=True, kw_only=True, tag="user"):
    """Features of a user; they replace those sent before."""

    user: Identity
    features: Features


EventBody = ImpressionEvent | FeedbackEvent | ItemEvent | UserEvent


class EventsRequest(Body, frozen=True, kw_only=True):
    """Events as the documentation shows them; the service decodes them one by one."""

    events: list[EventBody]


class RawEvents(Body, frozen=True, kw_only=True):
    """The same, each event still text, so that one bad event does not refuse the others."""

    events: list[msgspec.Raw]


class Feedback(Body, frozen=True, kw_only=True):
    """One feedback event, shortest form."""

    request_id: Text
    item: Identity
    event: Text
    event_id: Text | None = None
    user: Identity | None = None
    value: float = 1.0
    ts: Moment | None = None


class ControlRequest(Body, frozen=True, kw_only=True):
    """Why an operator acts."""

    reason: Annotated[str, msgspec.Meta(max_length=TEXT_CHARACTERS_MAX)] = ""


class RollbackRequest(Body, frozen=True, kw_only=True):
    """Where the trainer is to go back to.

    Attributes:
        to: Name of a checkpoint, as `freshrank snapshots list` shows it.
        reason: Why.
        relearn: Learn once more what was learned since.
        dry_run: Only say what would be undone.
    """

    to: Annotated[str, msgspec.Meta(min_length=1, max_length=CHECKPOINT_CHARACTERS_MAX)]
    reason: Annotated[str, msgspec.Meta(max_length=TEXT_CHARACTERS_MAX)] = ""
    relearn: bool = False
    dry_run: bool = False


class RankedItem(msgspec.Struct, frozen=True):
    """An item of the answer.

    Attributes:
        item: Canonical text of its id.
        rank: From 1.
        score: Prediction of the first task; null when the deadline came first, or when extreme
            features made it no number.
        task_scores: Prediction per task.
        known: False when the item has no row: it was scored as any unknown item.
    """

    item: str
    rank: int
    score: float | None
    task_scores: dict[str, float]
    known: bool


class ModelName(msgspec.Struct, frozen=True):
    """Which parameters answered."""

    name: str
    version: str


class Freshness(msgspec.Struct, frozen=True):
    """How new the parameters of an answer are; null where nothing was learned yet.

    Attributes:
        sparse_age_seconds: Since the newest applied frame was published.
        dense_age_seconds: Since the dense net in use was published.
        newest_event_age_seconds: Since the newest event that the parameters reflect.
        sparse_seq: Sequence number of the rows.
        after_satisfied: Whether the events of `after` are in the parameters; null without `after`.
    """

    sparse_age_seconds: float
    dense_age_seconds: float
    newest_event_age_seconds: float | None
    sparse_seq: int
    after_satisfied: bool | None


class Missing(msgspec.Struct, frozen=True):
    """What the answer had to do without.

    Attributes:
        user: The user has no row.
        items: Returned items without a row.
        features: Features without a value, for at least one candidate.
    """

    user: bool
    items: list[str]
    features: list[str]


class RankResponse(msgspec.Struct, frozen=True):
    """Candidates in order."""

    request_id: str
    items: list[RankedItem]
    model: ModelName
    freshness: Freshness
    missing: Missing
    degraded: list[str]
    took_ms: float


class Rejection(msgspec.Struct, frozen=True):
    """An event that was not accepted.

    Attributes:
        index: Its place in the request, from 0.
        pointer: Where in the request.
        detail: What is wrong and what is expected.
    """

    index: int
    pointer: str
    detail: str


class EventsResponse(msgspec.Struct, frozen=True):
    """What became of a batch of events.

    Attributes:
        accepted: Events in the log, duplicates among them.
        duplicates: How many of them were seen lately; the joiner has the last word.
        rejected: The others, each with its reason.
        receipt: Ask `GET /v1/events/{receipt}` what became of them.
    """

    accepted: int
    duplicates: int
    rejected: list[Rejection]
    receipt: str


class EventOutcome(msgspec.Struct, frozen=True):
    """What became of one record."""

    topic: str
    partition: int
    offset: int
    outcome: str


class ReceiptResponse(msgspec.Struct, frozen=True):
    """How far the events of a receipt have come.

    Attributes:
        receipt: As asked.
        state: queued, joined, trained or servable: the least of its events.
        outcomes: Of each action, and of other events where there is something to say; `unknown`
            where this replica began after it was decided.
        queued_at: When they entered the log.
        trained_at: When the frame that first held them was published.
        servable_at: When this replica had applied it.
        event_to_servable_seconds: From `queued_at` to `servable_at`.
    """

    receipt: str
    state: Literal["queued", "joined", "trained", "servable"]
    outcomes: list[EventOutcome]
    queued_at: str
    trained_at: str | None
    servable_at: str | None
    event_to_servable_seconds: float | None
