"""What every policy is: a pure function of the state."""

from typing import Protocol

from tapfinger_hpc.decision import Decision
from tapfinger_hpc.state import ClusterState


class Policy(Protocol):
    """Proposes what to do with the managed, eligible pending jobs of a state.

    The same state gets the same answer: a policy keeps nothing between calls, and one that draws at random draws from
    its seed and the state.
    """

    name: str

    def decide(self, state: ClusterState) -> tuple[Decision, ...]:
        """One decision for every managed, eligible pending job.

        Placements come first, in the order in which they are to be carried out, and each passes ``guard`` on the
        state that those before it leave; then the jobs that wait, with the reason.
        """
        ...
