"""One decision of all agents in many environments: round after round each picks a task or waits, Bayes settles who gets
a task that several want, and the winners choose node and amounts.

An agent that waits is done for this decision. The graph is encoded once; what changes between rounds comes with the
options. Training, evaluation and serving decode with this one loop: the network, how choices are made (drawn, most
probable, as a teacher says) and what a placement is put on (the simulator, or a live state) are the caller's.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from tapfinger_hpc.features import graph, measures, options
from tapfinger_hpc.features.graph import Graphs
from tapfinger_hpc.features.measures import Measures
from tapfinger_hpc.features.options import ADVISED_PLACE, Options
from tapfinger_hpc.features.rows import Rows
from tapfinger_hpc.frame import WAITING, Frame
from tapfinger_hpc.nets.config import Without
from tapfinger_hpc.policies.compiled import draws, price
from tapfinger_hpc.sim import core
from tapfinger_hpc.sim.core import Truth, compiled

WAIT = -1
"""In place of an option's number."""
MOST_ROUNDS = 10_000
"""Of one decision: each ends the turn of an agent or places a task."""
LOTS = 2**30
NOTHING = Without()
Choose = Callable[[Options, np.ndarray | None, np.ndarray | None], np.ndarray]
"""(options, their log probabilities, those of waiting) -> for each row the chosen option's number, or WAIT."""


class Network(Protocol):
    """What scores options."""

    def encode(self, graphs: Graphs) -> Any:
        """Embeddings of a state, once per decision."""
        ...

    def log_probabilities(self, embeddings: Any, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        """float32, of every option [option] and, where tasks are chosen, of waiting [row] (otherwise empty)."""
        ...


@dataclass
class Step:
    """What was chosen in one round."""

    rows: Rows
    chosen: np.ndarray  # int64 [row] option, or WAIT
    log_probability: np.ndarray  # float32 [row] as it was when the choice was made
    env: np.ndarray  # int64 [row] position among the environments

    @classmethod
    def together(cls, several: "Sequence[Step]", starts: Sequence[tuple[int, int, int, int]]) -> "Step":
        """Several of one head as one; ``starts`` are the first partition, node, pending and environment of each."""
        options = np.cumsum([0, *(len(step.rows.row_of) for step in several[:-1])])
        return cls(
            Rows.together([step.rows for step in several], [start[:3] for start in starts]),
            np.concatenate(
                [
                    np.where(step.chosen == WAIT, WAIT, step.chosen + begun)
                    for step, begun in zip(several, options, strict=True)
                ]
            ),
            np.concatenate([step.log_probability for step in several]),
            np.concatenate([step.env + start[3] for step, start in zip(several, starts, strict=True)]),
        )


@dataclass
class Decision:
    """What was seen and chosen in one decision of many environments."""

    graphs: Graphs
    envs: np.ndarray
    steps: list[Step]
    excess: np.ndarray  # float64 [env] seconds by which what was placed takes longer than was thought possible at best
    placed: np.ndarray  # int64 [env]
    last: np.ndarray  # bool [env] no further decision follows in the same slot
    encoded: int = 0
    """Environments whose state went through the encoder: those in which something could be placed."""


@dataclass(frozen=True)
class Round:
    """What was offered and chosen in one round, as far as it has come when winners are to be placed."""

    offered: Options
    of_options: np.ndarray | None
    of_waiting: np.ndarray | None
    chosen: np.ndarray  # int64 [row] option, or WAIT
    urged: np.ndarray  # int64 rows that would have waited, had there been anything to wait for
    winners: np.ndarray  # int64 rows that got the task they chose
    places: Options
    """A row for each winner."""
    of_places: np.ndarray | None
    placed_at: np.ndarray  # int64 [winner] option among ``places``


class World(Protocol):
    """What placements are put on."""

    @property
    def frame(self) -> Frame: ...

    def carry_out(self, envs: np.ndarray, round_: Round, decision: Decision, advice: np.ndarray) -> np.ndarray:
        """Places what the winners chose, adds it up in ``decision``, and forgets the advice on it.

        Returns:
            bool [env] where what was done is not what was advised, so that the rest of the advice is old.
        """
        ...


@compiled
def settle(env: np.ndarray, job: np.ndarray, probability: np.ndarray, room: np.ndarray) -> np.ndarray:
    """Which of these claims win: of those that want the same task, the agent that it most probably belongs to.

    Bayes, for the agent given the task: p(task | agent) * p(agent), where an agent is the likelier the more of the
    task's least amounts it has free (a softmax of ``room`` over the rivals). Ties go to the first.
    """
    wins = np.ones(len(env), np.bool_)
    for claim in range(len(env)):
        for rival in range(len(env)):
            if rival == claim or env[rival] != env[claim] or job[rival] != job[claim]:
                continue
            # The common denominators of softmax and Bayes do not change who is ahead.
            ahead = np.log(probability[rival]) + room[rival] - np.log(probability[claim]) - room[claim]
            if ahead > 0 or (ahead == 0 and rival < claim):
                wins[claim] = False
    return wins


@compiled
def lots(frame: Frame, envs: np.ndarray, partitions: np.ndarray, jobs: np.ndarray) -> np.ndarray:
    """float64 [claim] above 0 and up to 1, at random: of the same state, the same."""
    drawn = np.zeros(len(envs))
    for claim in range(len(envs)):
        state = draws.source(frame, envs[claim], jobs[claim] * frame.partitions[envs[claim]] + partitions[claim])
        drawn[claim] = (1 + draws.below(state, LOTS)) / LOTS
    return drawn


@compiled
def take_what_waits_for_nothing(offered: Options, of_options: np.ndarray, chosen: np.ndarray) -> None:
    """Where all agents of an environment would wait, the likeliest task that could only gain by starting is taken: a
    network that always waits must not stop a cluster.
    """
    begun = 0
    while begun < len(of_options):
        env = offered.env[offered.row_of[begun]]
        option, best, taken = begun, -1, False
        while option < len(of_options) and offered.env[offered.row_of[option]] == env:
            taken = taken or chosen[offered.row_of[option]] != WAIT
            if offered.idle[option] and (best < 0 or of_options[option] > of_options[best]):
                best = option
            option += 1
        if best >= 0 and not taken:
            chosen[offered.row_of[best]] = best
        begun = option


@dataclass(frozen=True)
class Simulated:
    """Environments of the simulator."""

    frame: Frame
    truth: Truth

    def carry_out(self, envs: np.ndarray, round_: Round, decision: Decision, advice: np.ndarray) -> np.ndarray:
        """Places what the winners chose."""
        stale = np.zeros(len(envs), np.bool_)
        made, placed_at = round_.places, round_.placed_at
        _carry_out(self.frame, self.truth, envs, made, placed_at, decision.excess, decision.placed, advice, stale)
        return stale


@compiled
def _carry_out(
    frame: Frame,
    truth: Truth,
    envs: np.ndarray,
    made: Options,
    chosen: np.ndarray,
    excess: np.ndarray,
    placed: np.ndarray,
    advice: np.ndarray,
    stale: np.ndarray,
) -> None:
    """Places what the rows of a "place" head chose; adds up what it costs in truth, and notes where it departs from the
    advice.
    """
    for row in range(len(chosen)):
        position = made.env[row]
        env, job = envs[position], made.job[row]
        kind, node, choice = frame.kind[env, job], made.value[chosen[row]], made.choice[chosen[row]]
        amounts = frame.menu[env, kind, choice]
        if core.place(frame, truth, env, job, made.partition[row], node, amounts[0], amounts[1], amounts[2]):
            best = np.inf
            for other in range(frame.choices[env, kind]):
                best = min(best, frame.seconds[env, kind, other])
            excess[position] += truth.end[env, job] - frame.start[env, job] - best * truth.job[env, job].pace
            placed[position] += 1
            stale[position] = stale[position] or made.features[chosen[row], ADVISED_PLACE] == 0
        advice[env, job] = -1


@compiled
def advise(
    frame: Frame, envs: np.ndarray, asked: np.ndarray, prices: np.ndarray, patience: float, advice: np.ndarray
) -> None:
    """Asks the price heuristic what it would place now, in those of the environments that ``asked`` says.

    Args:
        prices: float64 [environment that decides, constant].
    """
    out = np.zeros((frame.waiting.shape[1], 6), np.int64)
    for position, env in enumerate(envs):
        if not asked[position]:
            continue
        for place in range(frame.waiting_count[env]):
            advice[env, frame.waiting[env, place]] = -1
        for row in range(price.start_now(frame, env, prices[env], patience, out)):
            advice[env, out[row, 0]] = out[row, 1:]


class Decoder:
    """Makes decisions with a network; its scratch arrays belong to frames of one size."""

    def __init__(
        self,
        network: Network | None,
        frame: Frame,
        prices: np.ndarray | None = None,
        *,
        patience: float = math.inf,
        without: Without = NOTHING,
    ) -> None:
        """
        Args:
            prices: constants of the price heuristic, whose advice the network then hears: [constant], or
                [environment that decides, constant] where each has its own.
            patience: the heuristic's with jobs that have waited long, as for ``price.lay_out``.
            without: what its agents go without.
        """
        self.network, self._without = network, without
        self._prices, self._patience = None, patience
        if prices is not None:
            self._prices = np.tile(prices, (len(frame.now), 1)) if prices.ndim == 1 else prices
        self._advice = options.no_advice(frame)
        self._scratch: Measures = measures.allocate(frame)

    def slot(
        self, world: World, envs: np.ndarray, choose: Callable[[np.ndarray], Choose], *, record: bool = False
    ) -> Iterator[Decision]:
        """Carries out all decisions of the present slot. Multi-task it is one; otherwise one after the other, of those
        environments in which something was placed by the last.

        Args:
            choose: told the environments of each decision.
        """
        most = 1 if self._without.multi_task else MOST_ROUNDS
        while len(envs):
            decision = self.decide(world, envs, choose(envs), record=record, max_rounds=most)
            if self._without.multi_task:
                decision.last = decision.placed == 0
            yield decision
            envs = envs[~decision.last]

    def decide(
        self, world: World, envs: np.ndarray, choose: Choose, *, record: bool = False, max_rounds: int = MOST_ROUNDS
    ) -> Decision:
        """Carries out one decision in each of the environments."""
        frame, without = world.frame, self._without
        graphs = graph.build(frame, envs, self._scratch)
        embeddings = None
        waits = np.zeros(frame.member.shape[:2], np.bool_)
        stale = np.ones(len(envs), np.bool_)
        decision = Decision(
            graphs, envs, [], np.zeros(len(envs)), np.zeros(len(envs), np.int64), np.ones(len(envs), np.bool_)
        )
        for number in range(max_rounds):
            if self._prices is not None and stale.any():
                advise(frame, envs, stale, self._prices, self._patience, self._advice)
            offered = options.tasks(frame, envs, waits, number, self._scratch, self._advice, masked=not without.masks)
            if without.pointer:
                offered = options.first_of_rows(offered)
            if not len(offered.env):
                break
            if self.network is not None and embeddings is None:
                embeddings = self.network.encode(graphs)
                decision.encoded = len(np.unique(offered.env))
            rows, of_options, of_waiting = self._scored(embeddings, graphs, envs, offered, task=True)
            chosen = choose(offered, of_options, of_waiting)
            urged = np.zeros(0, np.int64)
            if of_options is not None or without.pointer:  # a teacher may want none of the first tasks, for ever
                before = chosen.copy()
                likely = np.zeros(len(offered.value), np.float32) if of_options is None else of_options
                take_what_waits_for_nothing(offered, likely, chosen)
                urged = np.flatnonzero(chosen != before)
            # Where one was urged, the others may have something that waits for nothing as well.
            waiting = (chosen == WAIT) & ~np.isin(offered.env, offered.env[urged])
            waits[envs[offered.env[waiting]], offered.partition[waiting]] = True
            if record:
                decision.steps.append(_step(rows, offered, chosen, of_options, of_waiting))
            winners = self._winners(frame, envs, offered, chosen, of_options)
            places = options.places(
                frame,
                envs,
                offered.env[winners],
                offered.partition[winners],
                offered.value[chosen[winners]],
                self._scratch,
                self._advice,
                masked=not without.masks,
            )
            of_places, placed_at = None, np.zeros(0, np.int64)
            if len(winners):
                where, of_places, _ = self._scored(embeddings, graphs, envs, places, task=False)
                placed_at = choose(places, of_places, None)
                if record:
                    decision.steps.append(_step(where, places, placed_at, of_places, None))
            round_ = Round(offered, of_options, of_waiting, chosen, urged, winners, places, of_places, placed_at)
            stale = world.carry_out(envs, round_, decision, self._advice)
            if len(winners):
                measures.forget(self._scratch)
            if without.masks:
                _punish(frame, envs, places, decision, waits)
        return decision

    def _winners(
        self, frame: Frame, envs: np.ndarray, offered: Options, chosen: np.ndarray, of_options: np.ndarray | None
    ) -> np.ndarray:
        """int64 the rows that get the task they chose."""
        claiming = np.flatnonzero(chosen != WAIT)
        picks = chosen[claiming]
        probability, room = np.ones(len(picks)), offered.room[picks]
        if self._without.bayes:
            probability = lots(frame, envs[offered.env[claiming]], offered.partition[claiming], offered.value[picks])
            room = np.zeros(len(picks))
        elif of_options is not None:
            probability = np.exp(of_options[picks].astype(np.float64))
        return claiming[settle(offered.env[claiming], offered.value[picks], probability, room)]

    def _scored(
        self, embeddings: Any, graphs: Graphs, envs: np.ndarray, offered: Options, *, task: bool
    ) -> tuple[Rows, np.ndarray | None, np.ndarray | None]:
        rows = Rows.of(graphs, envs, offered, task=task)
        if self.network is None:
            return rows, None, None
        of_options, of_waiting = self.network.log_probabilities(embeddings, rows)
        return rows, of_options, of_waiting if task else None


def _punish(frame: Frame, envs: np.ndarray, made: Options, decision: Decision, waits: np.ndarray) -> None:
    """Agents whose choice could not be carried out are done for this decision, and pay what the task takes at best."""
    for row in np.flatnonzero(frame.status[envs[made.env], made.job] == WAITING):
        env, kind = envs[made.env[row]], frame.kind[envs[made.env[row]], made.job[row]]
        waits[env, made.partition[row]] = True
        decision.excess[made.env[row]] += frame.seconds[env, kind, : frame.choices[env, kind]].min()


def _step(
    rows: Rows, offered: Options, chosen: np.ndarray, of_options: np.ndarray | None, of_waiting: np.ndarray | None
) -> Step:
    log_probability = np.zeros(len(chosen), np.float32)
    if of_options is not None:
        log_probability = of_options[np.maximum(chosen, 0)]
    if of_waiting is not None:
        log_probability = np.where(chosen == WAIT, of_waiting, log_probability)
    return Step(rows, chosen, log_probability, offered.env)


def most_probable(offered: Options, of_options: np.ndarray | None, of_waiting: np.ndarray | None) -> np.ndarray:
    """The most probable option of each row; of equal ones the first.

    An agent waits where waiting is more probable than not, unless the agents together would rather take its first task
    than leave it: where several could do it as well, none is sure that it is the one.
    """
    assert of_options is not None
    rows = len(offered.env)
    best = _best_of_rows(of_options, offered.row_of, np.zeros(0), rows)
    if of_waiting is None or not len(of_waiting):
        return best
    wanted = _wanted(offered, np.exp(of_options))
    return np.where((np.exp(of_waiting) < 0.5) | (wanted[best] > 0.5), best, WAIT)


@compiled
def _wanted(offered: Options, probability: np.ndarray) -> np.ndarray:
    """[option] sum over all agents of its environment of the probability that they give to its task."""
    total = np.zeros(len(probability))
    begun = 0
    while begun < len(probability):
        env = offered.env[offered.row_of[begun]]
        ended = begun
        while ended < len(probability) and offered.env[offered.row_of[ended]] == env:
            ended += 1
        for option in range(begun, ended):
            for other in range(begun, ended):
                if offered.value[other] == offered.value[option]:
                    total[option] += probability[other]
        begun = ended
    return total


class Draw:
    """Draws options by their probabilities."""

    def __init__(self, source: np.random.Generator) -> None:
        self._source = source

    def __call__(self, offered: Options, of_options: np.ndarray | None, of_waiting: np.ndarray | None) -> np.ndarray:
        assert of_options is not None
        noisy = of_options + self._source.gumbel(size=len(of_options))
        waiting = np.zeros(0) if of_waiting is None else of_waiting + self._source.gumbel(size=len(of_waiting))
        return _best_of_rows(noisy, offered.row_of, waiting, len(offered.env))


@compiled
def _best_of_rows(score: np.ndarray, row_of: np.ndarray, waiting: np.ndarray, rows: int) -> np.ndarray:
    chosen = np.full(rows, WAIT)
    best = np.full(rows, -np.inf)
    if len(waiting):
        best[:] = waiting
    for option in range(len(score)):
        if score[option] > best[row_of[option]]:
            best[row_of[option]] = score[option]
            chosen[row_of[option]] = option
    return chosen
