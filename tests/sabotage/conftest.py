"""An act runs twice on a workshop: once doing all but the harm, which must pass, and once with it."""

import pytest

from tests.problem.workshop import intact, workshop

__all__ = ["intact", "workshop"]  # fixtures


@pytest.fixture(params=[False, True], ids=["untouched", "sabotaged"])
def sabotaged(request: pytest.FixtureRequest) -> bool:
    """Whether the act does its harm."""
    return bool(request.param)
