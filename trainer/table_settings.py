"""Tables as the configuration wants them: new ones, and restored ones under today's settings."""

from collections.abc import Mapping
from typing import Any

from embedding_store import Budget, Optimizer, StoreError, Table
from freshrank.errors import ConfigError, SchemaError
from freshrank.features import FeatureEncoder, TableSpec
from freshrank.settings import RowOptimizer, Settings
from freshrank.units import whole_seconds


def create_budgets(settings: Settings, encoder: FeatureEncoder) -> dict[str, Budget]:
    """Bytes that tables may hold, by name: each its own, within those of all together."""
    total = settings.store.max_bytes
    shared = None if total is None else Budget(total)
    own = {
        spec.name: Budget(spec.max_bytes, within=shared) if spec.max_bytes else shared
        for spec in encoder.tables
    }
    return {name: budget for name, budget in own.items() if budget is not None}


def create_tables(
    settings: Settings, encoder: FeatureEncoder, budgets: Mapping[str, Budget]
) -> dict[str, Table]:
    """Empty tables, by name.

    Raises:
        ConfigError: vectors of several lengths, which the factorisation machine cannot multiply; or
            a table that the store refuses, as its budget is too small.
    """
    dims = {spec.name: spec.dim for spec in encoder.tables}
    if len(set(dims.values())) > 1:
        raise ConfigError(f"all tables of a {settings.model.kind} need the same dim, got {dims}")
    tables = {}
    for spec in encoder.tables:
        try:
            tables[spec.name] = _create(settings, spec, budgets.get(spec.name))
        except StoreError as error:
            has_budget = spec.name in budgets
            where = _limits(settings, spec) if has_budget else "see store and optimizer.sparse"
            raise ConfigError(f"table {spec.name}: {error}; {where}") from error
    return tables


def _create(settings: Settings, spec: TableSpec, budget: Budget | None) -> Table:
    table = Table(
        dim=spec.dim,
        first_order=True,
        init_scale=settings.store.init.scale,
        seed=settings.trainer.seed,
        slot=spec.index,
        initial_rows=settings.store.initial_rows,
        pending_bytes=spec.pending_bytes,
        budget=budget,
        **_policy(settings, spec),
    )
    table.threads = settings.store.threads
    return table


def _limits(settings: Settings, spec: TableSpec) -> str:
    """The settings that a table's room rests on, as they are."""
    found = {
        "store.max_bytes": settings.store.max_bytes,
        "the feature's max_bytes": spec.max_bytes or None,
        "store.initial_rows": settings.store.initial_rows,
    }
    told = ", ".join(f"{key} is {value}" for key, value in found.items() if value is not None)
    return f"{told}: raise max_bytes, or lower initial_rows"


def _policy(settings: Settings, spec: TableSpec) -> dict[str, Any]:
    """What may change from one start to the next, as `Table` and `Table.configure` name it."""
    sparse = settings.optimizer.sparse
    # None: one optimizer for the whole row.
    first_order = None if sparse.first_order is None else _optimizer(sparse.first_order)
    return {
        "optimizer": _optimizer(sparse),
        "first_order_optimizer": first_order,
        "min_count": spec.min_count,
        "probability": spec.probability,
        "ttl_s": spec.ttl_s,
        "min_rows": spec.min_rows,
        "count_half_life_s": spec.count_half_life_s,
    }


def _optimizer(row: RowOptimizer) -> Optimizer:
    return Optimizer(
        row.kind,
        lr=row.lr,
        l1=row.l1,
        l2=row.l2,
        weight_decay=row.weight_decay,
        eps=row.eps,
        beta=row.beta,
        beta1=row.beta1,
        beta2=row.beta2,
        initial_accumulator=row.initial_accumulator,
        accumulator_half_life_s=whole_seconds(row.accumulator_half_life),
        clip_norm=row.clip_norm or 0.0,
        clip_value=row.clip_value or 0.0,
    )


def adopt(tables: Mapping[str, Table], settings: Settings, encoder: FeatureEncoder) -> None:
    """Let restored tables go on under today's rates, thresholds and times to live.

    Raises:
        SchemaError: a table's rows hold the state of another optimizer, or what it counts cannot go
            on under today's settings.
    """
    for spec in encoder.tables:
        table = tables[spec.name]
        try:
            if table.pending_bytes != spec.pending_bytes:
                raise StoreError(
                    f"admission.pending_bytes is {table.pending_bytes} there and cannot change to "
                    f"{spec.pending_bytes} (0: none)"
                )
            table.configure(**_policy(settings, spec))
            table.threads = settings.store.threads
        except StoreError as error:
            raise SchemaError(
                f"the checkpoint's table {spec.name} does not go with the settings: {error}. "
                "Set it back, or learn anew in another data directory"
            ) from error
