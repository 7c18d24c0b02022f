from collections.abc import Iterator

import pytest

from zonos2_triton.bench.proof.interpreter import checked

# Assertions of the shared suites are explained like those of a test file.
pytest.register_assert_rewrite("tests.kernels.operator_suite", "tests.kernels.step_suite")


@pytest.fixture
def quick_interpreter() -> Iterator[None]:
    """Quicker than as it comes. It checks nothing: each operator's suite does."""
    with checked(bounds=False, undefined=False, races=False):
        yield
