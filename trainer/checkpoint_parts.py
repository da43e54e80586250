"""What of a trainer goes into a checkpoint, and back into another trainer."""

import numpy as np
import torch

from freshrank.errors import SchemaError
from freshrank.features import FeatureEncoder
from freshrank.settings import Settings
from trainer.checkpoint import Checkpoint
from trainer.evaluation import Evaluation
from trainer.guard_memory import GuardMemory
from trainer.learner import Learner
from trainer.state import TrainerState
from trainer.table_settings import adopt


def checkpoint(
    state: TrainerState,
    learner: Learner,
    evaluation: Evaluation,
    guard: GuardMemory | None = None,
) -> Checkpoint:
    """All that was learned, and what a guard goes by where there is one."""
    adam = learner.adam
    return Checkpoint(
        state=state.to_json(),
        dense={
            **{f"net.{name}": value.numpy() for name, value in learner.net.state_dict().items()},
            "adam.moment1": adam.moment1.numpy(),
            "adam.moment2": adam.moment2.numpy(),
            "adam.n_steps": np.array([adam.n_steps], np.int64),
        },
        windows=dict(evaluation.state()),
        guard={} if guard is None else guard.state(),
        tables=learner.sparse.tables,
    )


def restore(
    checkpoint: Checkpoint,
    settings: Settings,
    encoder: FeatureEncoder,
    learner: Learner,
    evaluation: Evaluation,
    guard: GuardMemory | None = None,
) -> TrainerState:
    """Put a checkpoint's parameters into a learner, its windows into the metrics.

    Raises:
        SchemaError: it was written for another configuration.
    """
    state = TrainerState.from_json(checkpoint.state)
    check_schema(state, encoder)
    dense = checkpoint.dense
    names = learner.net.state_dict()
    learner.adam.restore(
        parameters=torch.cat([torch.from_numpy(dense[f"net.{n}"]).reshape(-1) for n in names]),
        moment1=torch.from_numpy(dense["adam.moment1"]),
        moment2=torch.from_numpy(dense["adam.moment2"]),
        n_steps=int(dense["adam.n_steps"][0]),
    )
    adopt(checkpoint.tables, settings, encoder)
    learner.sparse.tables.update(checkpoint.tables)
    learner.clock_s = state.clock_s
    evaluation.restore(checkpoint.windows)
    if guard is not None:
        guard.restore(checkpoint.guard)
    return state


def check_schema(state: TrainerState, encoder: FeatureEncoder) -> None:
    """Hold that what was learned fits this configuration.

    Raises:
        SchemaError: it does not.
    """
    if state.schema_hash != encoder.schema_hash:
        raise SchemaError(
            f"the checkpoint was learned with schema {state.schema_hash}, this configuration is "
            f"{encoder.schema_hash}: start with the features, tasks, model and salt it had, or "
            "learn anew in another data directory"
        )
