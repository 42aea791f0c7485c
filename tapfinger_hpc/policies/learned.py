"""The learned policy on a live cluster: one agent for each partition, answering the same state the same way.

The state becomes a frame, and the decision is made by the code that plays and trains in the simulator. Each placement
passes the guard before it counts, so a network that is wrong can waste room but not break anything.
"""

from pathlib import Path

import numpy as np

from tapfinger_hpc import checkpoint
from tapfinger_hpc.checkpoint import CheckpointInfo
from tapfinger_hpc.decision import Alternative, Decision
from tapfinger_hpc.features.options import ADVISED_PLACE
from tapfinger_hpc.frame import Frame
from tapfinger_hpc.live import ENV, View
from tapfinger_hpc.policies import decoding
from tapfinger_hpc.policies.compiled import tuned
from tapfinger_hpc.policies.compiled.price import Prices
from tapfinger_hpc.policies.decoding import WAIT, Decoder, Network, Round, most_probable
from tapfinger_hpc.policies.price import PATIENCE, span
from tapfinger_hpc.sim.levels import ORACLE
from tapfinger_hpc.sim.scenarios import CLUSTER
from tapfinger_hpc.state import ClusterState, PendingJob

RUNNERS_UP = 3
"""Other nodes and amounts that are told of a placement."""


class LearnedPolicy:
    """A trained network as a policy. Greedy: it draws nothing at random and keeps nothing between calls."""

    name = "tapfinger"

    def __init__(
        self,
        network: Network,
        *,
        advised: bool = True,
        prices: Prices | None = None,
        info: CheckpointInfo | None = None,
    ) -> None:
        """
        Args:
            advised: whether the network hears what the price heuristic would do.
            prices: the heuristic's constants; None: those for any live cluster.
        """
        self.info = info
        self._network = network
        # The constants in the checkpoint are those of the scenario that it was trained in; these are for live clusters.
        self._prices = (prices or tuned.prices(CLUSTER)).array() if advised else None

    @classmethod
    def load(cls, folder: Path | None = None, prices: Prices | None = None) -> "LearnedPolicy":
        """The policy of a checkpoint; None is the one that ships with the package.

        Args:
            prices: constants of the price heuristic, whose advice the network hears; None: those for any live cluster.

        Raises:
            CheckpointError: it cannot be used, and why.
        """
        network, info = checkpoint.load(folder or checkpoint.DEFAULT)
        return cls(network, advised=bool(info.advice), prices=prices, info=info)

    def decide(self, state: ClusterState) -> tuple[Decision, ...]:
        """Placements first, in the order in which they are to be carried out; then the jobs that wait."""
        view = View(state)
        if view.jobs:
            if self.info is not None and self.info.training.knowledge == ORACLE:
                view.frame.log_std[:] = 0.0  # a network that was never in doubt has not learned what doubt means
            cluster = _Cluster(view)
            without = decoding.NOTHING if self.info is None else self.info.network.without
            decoder = Decoder(self._network, view.frame, self._prices, patience=PATIENCE, without=without)
            for _ in decoder.slot(cluster, np.array([ENV]), lambda _: most_probable):
                pass
            cluster.leave_the_rest()
        return view.decisions()


class _Cluster:
    """A live state as what placements are put on; keeps what the agents thought, for the reasons."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._declined: dict[int, tuple[int, float, float]] = {}  # job -> agent, its probability, that of waiting

    @property
    def frame(self) -> Frame:
        return self._view.frame

    def carry_out(
        self, _envs: np.ndarray, round_: Round, decision: decoding.Decision, advice: np.ndarray
    ) -> np.ndarray:
        """Places what the winners chose and the guard lets pass, the surest first."""
        self._remember(round_)
        places, stale = round_.places, False
        # The guard may change the menus while placements are carried out.
        amounts = self.frame.menu[ENV, self.frame.kind[ENV, places.job[places.row_of]], places.choice]
        rows = np.column_stack((places.job[places.row_of], places.partition[places.row_of], places.value, amounts))
        assert round_.of_options is not None
        sure = round_.of_options[round_.chosen[round_.winners]]
        for winner in np.argsort(-sure, kind="stable").tolist():
            chosen = round_.placed_at[winner]
            row = rows[chosen]
            advice[ENV, row[0]] = -1
            if not self._open(row):
                continue  # an agent that shares the node was faster; the next round knows what it left
            if self._view.refusal(row) is not None:
                stale = True
                if self._view.exhausted:
                    self.frame.seen[ENV] = False
                    break
                continue
            stale = stale or places.features[chosen, ADVISED_PLACE] == 0
            decision.placed[ENV] += 1
            self._place(round_, winner, rows)
        return np.array([stale])

    def leave_the_rest(self) -> None:
        """Says of all jobs that are left why they wait."""
        view = self._view
        for job in view.frame.waiting[ENV, : view.frame.waiting_count[ENV]].tolist():
            score, refused = 0.0, view.why_refused(job)
            if refused is not None:
                reason = f"not placed for the sake of others: {refused}"
            elif not self._fits_somewhere(job):
                reason = f"its least amounts ({_least(view.jobs[job])}) are not free on any node it may use"
            elif job in self._declined:
                agent, probability, score = self._declined[job]
                name = view.state.partitions[agent].name
                reason = f"partition {name} would rather wait ({score:.2f}) than start it now ({probability:.2f})"
            else:
                reason = (
                    f"{view.refusals} choices were refused for the sake of jobs of others, so none was tried for it"
                )
            view.wait(job, reason, score)

    def _remember(self, round_: Round) -> None:
        """What the agents thought of the tasks that they might have taken: of each task the one that wanted it most."""
        assert round_.of_options is not None
        assert round_.of_waiting is not None
        offered = round_.offered
        for option in np.argsort(round_.of_options, kind="stable").tolist():
            agent = offered.row_of[option]
            thought = float(np.exp(round_.of_options[option])), float(np.exp(round_.of_waiting[agent]))
            self._declined[int(offered.value[option])] = (int(offered.partition[agent]), *thought)

    def _open(self, row: np.ndarray) -> bool:
        """Whether the placement is still to be had, after those before it in the same round."""
        job, node, amounts = row[0], row[2], row[3:6]
        kind = self._view.kinds[self.frame.kind[ENV, job]]
        on_menu = (kind.taken == amounts).all(axis=1).any()
        return bool(on_menu and kind.usable[node] and (amounts <= self.frame.free[ENV, node]).all())

    def _fits_somewhere(self, job: int) -> bool:
        frame, kind = self.frame, self._view.kinds[self.frame.kind[ENV, job]]
        nodes = frame.member[ENV, frame.reach[ENV, job]].any(axis=0) & frame.available[ENV] & kind.usable
        return bool((kind.taken[:, None, :] <= frame.free[ENV, nodes]).all(axis=2).any())

    # For people.

    def _place(self, round_: Round, winner: int, rows: np.ndarray) -> None:
        assert round_.of_options is not None
        assert round_.of_waiting is not None
        assert round_.of_places is not None
        view, agent, chosen = self._view, round_.winners[winner], round_.placed_at[winner]
        options = np.flatnonzero(round_.places.row_of == winner)
        sure = float(np.exp(round_.of_options[round_.chosen[agent]]))
        waiting = float(np.exp(round_.of_waiting[agent]))
        probability = np.exp(round_.of_places.astype(np.float64))
        others = sorted((option for option in options if option != chosen), key=lambda option: -probability[option])
        runners_up = [
            Alternative(view.placement(rows[option]), sure * float(probability[option]))
            for option in others[:RUNNERS_UP]
            if self._open(rows[option])
        ]
        runners_up = sorted([*runners_up, Alternative(None, waiting)], key=lambda other: -other.score)
        reason = self._reason(round_, winner, rows[chosen], sure, waiting, float(probability[chosen]))
        view.place(rows[chosen], reason, sure * float(probability[chosen]), runners_up)

    def _reason(
        self, round_: Round, winner: int, row: np.ndarray, sure: float, waiting: float, probability: float
    ) -> str:
        view, agent = self._view, round_.winners[winner]
        place = view.placement(row)
        words = [f"partition {place.partition} takes it (probability {sure:.2f}; waiting {waiting:.2f})"]
        if agent in round_.urged:
            words.append("every node it may use is idle, so waiting would bring nothing")
        words += self._rivals(round_, agent)
        words.append(
            f"{place.node} with {place.amounts.gpus} GPUs, {place.amounts.cpus} CPUs, {place.amounts.mem_mb} MiB "
            f"({probability:.2f}{self._advised(round_, winner)})"
        )
        words.append(f"expected to run {span(view.seconds(row))}")
        return "; ".join(words)

    def _advised(self, round_: Round, winner: int) -> str:
        return ", as price advises" if round_.places.features[round_.placed_at[winner], ADVISED_PLACE] else ""

    def _rivals(self, round_: Round, agent: int) -> list[str]:
        """By how much Bayes preferred the winner over others that wanted the task."""
        assert round_.of_options is not None
        offered, chosen = round_.offered, round_.chosen
        claiming = [
            row for row in np.flatnonzero(chosen != WAIT) if offered.value[chosen[row]] == offered.value[chosen[agent]]
        ]
        if len(claiming) == 1:
            return []
        scores = np.array([round_.of_options[chosen[row]] + offered.room[chosen[row]] for row in claiming])
        scores = np.exp(scores - scores.max())
        scores /= scores.sum()
        names = [self._view.state.partitions[offered.partition[row]].name for row in claiming]
        own = next(place for place, row in enumerate(claiming) if row == agent)
        rivals = ", ".join(
            f"{name} ({score:.2f})" for row, (name, score) in enumerate(zip(names, scores, strict=True)) if row != own
        )
        return [f"preferred ({scores[own]:.2f}) over {rivals}"]


def _least(job: PendingJob) -> str:
    return str(job.minimum)
