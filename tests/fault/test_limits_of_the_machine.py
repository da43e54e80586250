"""A service without descriptors to spare lets nobody in, and goes on once there are some."""

import resource
import socket
from contextlib import ExitStack, closing
from pathlib import Path

from tests.fault.serving import serving
from tests.integration.transport.log_checks import eventually
from tests.roles import Api


def test_without_descriptors_nobody_new_is_let_in_until_there_are_some(tmp_path: Path) -> None:
    with serving(tmp_path) as one:
        assert one.rank() == 200  # over a connection that stays
        most = one.n_descriptors + 10
        with ExitStack() as crowd, one.limited(resource.RLIMIT_NOFILE, most):
            for _ in range(60):
                crowd.enter_context(socket.create_connection(("127.0.0.1", one.port)))
            eventually(lambda: one.n_descriptors >= most)
            assert one.rank() == 200
            crowd.close()
            with closing(Api(one.port)) as newcomer:
                eventually(lambda: newcomer.ask("/health/live").status_code == 200)
        one.learns()
