"""Prometheus' own judgement of what is written for it."""

import os
import shutil

import pytest

from tests.programs import ended
from tests.servers import REQUIRED


def promtool(*arguments: str, given: str = "") -> str:
    """Run `promtool`; what it complains of fails the test.

    Args:
        arguments: Of the command.
        given: Its standard input.

    Returns:
        What it said.
    """
    if shutil.which("promtool") is None:
        assert not os.environ.get(REQUIRED), "promtool is missing: apt-get install prometheus"
        pytest.skip("promtool is missing: apt-get install prometheus")
    done = ended("promtool", *arguments, input=given)
    return done.stdout + done.stderr
