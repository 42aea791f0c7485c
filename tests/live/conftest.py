"""Real throw-away Slurm clusters for the tests of this folder; each pytest worker has its own.

``sandbox`` lives as long as the session, ``cluster`` is the same one, idle at the start of each test, and
``sandbox_factory`` starts others (no accounting, no hook, more nodes). All are taken down, also when a test fails.
All are of the Slurm that ``--slurm-release`` names.
"""

import contextlib
import signal
from collections.abc import Callable, Iterator

import pytest
from msgspec.structs import replace

from slurm_plugin.sandbox import Sandbox, SandboxSpec
from slurm_plugin.sandbox.packages import why_not
from slurm_plugin.sandbox.userland import Userland

# A shell that starts the tests in the background has them ignore SIGINT, and so would all that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

SandboxFactory = Callable[[SandboxSpec], Sandbox]


@pytest.fixture(scope="session", autouse=True)
def _possible(release: str) -> None:
    if reason := why_not(Userland(release)):
        pytest.skip(reason)


@pytest.fixture(scope="session")
def sandbox(release: str) -> Iterator[Sandbox]:
    """One cluster with accounting and hook for the whole session; use ``cluster`` unless the state does not matter."""
    with Sandbox.up(SandboxSpec(release=release)) as started:
        yield started


@pytest.fixture
def cluster(sandbox: Sandbox) -> Sandbox:
    """The session's cluster: no job, all nodes idle, nothing of ours running."""
    sandbox.reset()
    return sandbox


@pytest.fixture(scope="session")
def sandbox_factory(release: str) -> Iterator[SandboxFactory]:
    """Starts clusters of other kinds; the same spec twice in a session is the same cluster, reset."""
    started: dict[SandboxSpec, Sandbox] = {}
    with contextlib.ExitStack() as stack:

        def make(spec: SandboxSpec) -> Sandbox:
            spec = replace(spec, release=release)
            if spec in started and started[spec].directory.exists():
                started[spec].reset()
            else:
                started[spec] = stack.enter_context(Sandbox.up(spec))
            return started[spec]

        yield make
