"""Opens dense nets in onnxruntime, which is kept from reporting home.

onnxruntime measures how it is used and sends that to its vendor (seen in 1.31: a session id in the
temporary directory, made when the module is loaded). Whoever runs freshrank did not agree to that,
so it is off unless the environment says otherwise; that can only be said before the first import,
which is why no other module of the product imports onnxruntime.
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime


def open_session(onnx: bytes) -> onnxruntime.InferenceSession:
    """A session on one thread of the CPU.

    Requests are answered in parallel already: more threads per session would only contend.

    Args:
        onnx: The graph.

    Raises:
        Exception: onnxruntime's own, which have no common base: the graph cannot be used.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # a refused graph is the caller's to report
    return onnxruntime.InferenceSession(
        onnx, sess_options=options, providers=["CPUExecutionProvider"]
    )
