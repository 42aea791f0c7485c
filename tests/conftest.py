"""What all tests may ask for."""

import os

import pytest

from slurm_plugin.sandbox.userland import RELEASES


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--slurm-release",
        default=os.environ.get("TAPFINGER_SLURM_RELEASE", ""),
        choices=("", *RELEASES),
        help="tests on a real Slurm take that of this Debian release (tapfinger sandbox install --release ...)",
    )


@pytest.fixture(scope="session")
def release(request: pytest.FixtureRequest) -> str:
    """The Debian release whose Slurm is tested; "" is that of this machine."""
    return request.config.getoption("--slurm-release")
