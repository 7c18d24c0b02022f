import pytest

# Assertions of the shared suites are explained like those of a test file.
pytest.register_assert_rewrite("tests.kernels.operator_suite", "tests.kernels.step_suite")
