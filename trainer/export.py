"""The dense net as ONNX: traced once, then only its numbers are replaced.

A trace takes far longer than a publication may, and every trace could name things anew. So the
graph is made at start, its initialisers are asserted to be the net's parameters by name and shape,
and a publication writes the parameters' bytes into them. Before the bytes leave, rows that were
learned are scored by torch and by the runtime that will serve them.
"""

import copy
import io
import logging
import warnings
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx
import torch

from freshrank.errors import SchemaError
from freshrank.onnx_session import open_session
from trainer.losses import Loss, served
from trainer.models import Net

logger = logging.getLogger(__name__)

F32 = npt.NDArray[np.float32]

# The newest set whose every operator onnxruntime 1.20, the oldest the service takes, knows.
OPSET: Final = 17
# Scores are probabilities, or values of a Huber task: relative above 1. float32 sums of a few
# hundred terms differ by some 1e-6 between two orders of summation.
TOLERANCE: Final = 1e-5


class OnnxExport:
    """The graph of one net.

    Args:
        net: Traced now; its parameters are read at each `render`.
        losses: Kind of each task: scores are compared as served.

    Attributes:
        n_refused: Renderings that did not agree with torch.
    """

    def __init__(self, net: Net, losses: list[Loss]) -> None:
        self._net = net
        self._losses = losses
        self._model = onnx.load_model_from_string(_trace(net))
        self._model.producer_name, self._model.producer_version = "freshrank", ""
        self.n_refused = 0
        shapes = {i.name: tuple(i.dims) for i in self._model.graph.initializer}
        expected = {name: tuple(value.shape) for name, value in net.state_dict().items()}
        if shapes != expected:
            raise SchemaError(
                f"the exported graph holds {shapes}, the net {expected}: this version of torch "
                "names or folds parameters differently; install one that the tests pass with"
            )

    def render(self, rows: F32, dense: F32) -> bytes | None:
        """The net as it is now; None when it does not score as torch does.

        Args:
            rows: `float32[n, S, W]`, pooled rows to compare on.
            dense: `float32[n, K]`.
        """
        parameters = self._net.state_dict()
        for initializer in self._model.graph.initializer:
            initializer.raw_data = parameters[initializer.name].numpy().tobytes()
        data: bytes = self._model.SerializeToString()
        difference = self._difference(data, rows, dense)
        if not difference <= TOLERANCE:  # NaN must not pass
            self.n_refused += 1
            logger.error("dense_net=refused difference=%g tolerance=%g", difference, TOLERANCE)
            return None
        return data

    def _difference(self, data: bytes, rows: F32, dense: F32) -> float:
        """The largest difference between scores of torch and of the runtime."""
        session = open_session(data)
        inputs = {"rows": rows} | ({"dense": dense} if self._net.n_dense else {})
        there: F32 = session.run(["z"], inputs)[0]
        with torch.no_grad():
            tensors = [torch.from_numpy(array) for array in inputs.values()]
            here: F32 = self._net(*tensors).numpy()
        a, b = served(there, self._losses), served(here, self._losses)
        return float(np.max(np.abs(a - b) / np.maximum(1.0, np.abs(b))))


def _trace(net: Net) -> bytes:
    """The net as ONNX, any number of rows, constants not folded into parameters."""
    inputs: dict[str, torch.Tensor] = {"rows": torch.zeros(2, net.n_slots, net.width)}
    if net.n_dense:
        inputs["dense"] = torch.zeros(2, net.n_dense)
    # The exporter merges parameters of equal value, and two biases that start at 0 are equal. So a
    # copy with numbers of its own is traced.
    net = copy.deepcopy(net)
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        parameter.data = torch.rand(parameter.shape, generator=generator)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # Decision 0006: the tracing exporter, deprecated in favour of one that takes 50 times
        # longer.
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torch\.onnx")
        warnings.filterwarnings("ignore", "You are using the legacy", DeprecationWarning)
        torch.onnx.export(
            net,
            tuple(inputs.values()),
            buffer,  # type: ignore[arg-type]  # the tracing exporter writes to files too
            dynamo=False,
            do_constant_folding=False,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=["z"],
            dynamic_axes={name: {0: "n"} for name in [*inputs, "z"]},
        )
    return buffer.getvalue()
