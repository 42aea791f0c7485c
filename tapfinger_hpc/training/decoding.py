"""One decision of all agents in many environments: round after round each picks a task or waits, Bayes settles who gets
a task that several want, and the winners choose node and amounts.

An agent that waits is done for this decision. The graph is encoded once; what changes between rounds comes with the
options. How choices are made (drawn, most probable, as a teacher says) is the caller's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tapfinger_hpc.features import graph, measures, options
from tapfinger_hpc.features.graph import Graphs
from tapfinger_hpc.features.measures import Measures
from tapfinger_hpc.features.options import ADVISED_PLACE, Options
from tapfinger_hpc.frame import Frame
from tapfinger_hpc.nets.policy_network import Embeddings, GraphTensors, PolicyNetwork, Rows
from tapfinger_hpc.policies.compiled import price
from tapfinger_hpc.sim import core
from tapfinger_hpc.sim.core import Truth, compiled

WAIT = -1
"""In place of an option's number."""
Choose = Callable[[Options, np.ndarray | None, np.ndarray | None], np.ndarray]
"""(options, their log probabilities, those of waiting) -> for each row the chosen option's number, or WAIT."""


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
    excess: np.ndarray  # float64 [env] seconds by which what was placed takes longer than it could at best
    placed: np.ndarray  # int64 [env]
    encoded: int = 0
    """Environments whose state went through the encoder: those in which something could be placed."""


class Batch:
    """Several decisions as one: to learn from them takes few large products instead of many small ones."""

    def __init__(self, decisions: Sequence[Decision]) -> None:
        self.graphs = GraphTensors.together([decision.graphs for decision in decisions])
        self.steps: list[Step] = []
        """One for each head that has rows."""
        sizes = np.array([(*decision.graphs.first[-1, :3], len(decision.envs)) for decision in decisions])
        starts = np.cumsum(sizes, axis=0) - sizes
        for task in (True, False):
            found = [
                (step, (int(start[0]), int(start[1]), int(start[2]), int(start[3])))
                for decision, start in zip(decisions, starts, strict=True)
                for step in decision.steps
                if step.rows.task == task
            ]
            if found:
                self.steps.append(Step.together([step for step, _ in found], [start for _, start in found]))

    @property
    def rows(self) -> int:
        return sum(len(step.chosen) for step in self.steps)


def log_probability_of_chosen(
    network: PolicyNetwork, embeddings: Embeddings, step: Step
) -> tuple[Tensor, Tensor, Tensor]:
    """[row] of what was chosen; with those of all options and of waiting."""
    of_options, of_waiting = network.log_probabilities(embeddings, step.rows)
    chosen = torch.from_numpy(step.chosen)
    found = of_options[chosen.clamp(min=0)]
    if len(of_waiting):
        found = torch.where(chosen == WAIT, of_waiting, found)
    return found, of_options, of_waiting


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


@compiled
def carry_out(
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
    """Places what the rows of a "place" head chose; adds up what it costs, and notes where it is not as advised."""
    for row in range(len(chosen)):
        position = made.env[row]
        env, job = envs[position], made.job[row]
        kind, node, choice = frame.kind[env, job], made.value[chosen[row]], made.choice[chosen[row]]
        amounts = frame.menu[env, kind, choice]
        if core.place(frame, truth, env, job, made.partition[row], node, amounts[0], amounts[1], amounts[2]):
            best = np.inf
            for other in range(frame.choices[env, kind]):
                best = min(best, frame.seconds[env, kind, other])
            excess[position] += frame.seconds[env, kind, choice] - best
            placed[position] += 1
            stale[position] = stale[position] or made.features[chosen[row], ADVISED_PLACE] == 0
        advice[env, job] = -1


@compiled
def advise(frame: Frame, envs: np.ndarray, asked: np.ndarray, prices: np.ndarray, advice: np.ndarray) -> None:
    """Asks the price heuristic what it would place now, in those of the environments that ``asked`` says."""
    out = np.zeros((frame.waiting.shape[1], 6), np.int64)
    for position, env in enumerate(envs):
        if not asked[position]:
            continue
        for place in range(frame.waiting_count[env]):
            advice[env, frame.waiting[env, place]] = -1
        for row in range(price.decide(frame, env, prices, out)):
            advice[env, out[row, 0]] = out[row, 1:]


class Decoder:
    """Makes decisions with a network; its scratch arrays belong to frames of one size."""

    def __init__(self, network: PolicyNetwork | None, frame: Frame, prices: np.ndarray | None = None) -> None:
        """``prices``: constants of the price heuristic, whose advice the network then hears."""
        self.network = network
        self._prices = prices
        self._advice = options.no_advice(frame)
        self._scratch: Measures = measures.allocate(frame)

    @torch.no_grad()
    def decide(
        self,
        frame: Frame,
        truth: Truth,
        envs: np.ndarray,
        choose: Choose,
        *,
        record: bool = False,
        max_rounds: int = 10_000,
    ) -> Decision:
        """Carries out one decision in each of the environments."""
        graphs = graph.build(frame, envs, self._scratch)
        embeddings = None
        waits = np.zeros(frame.member.shape[:2], np.bool_)
        stale = np.ones(len(envs), np.bool_)
        decision = Decision(graphs, envs, [], np.zeros(len(envs)), np.zeros(len(envs), np.int64))
        for number in range(max_rounds):
            if self._prices is not None and stale.any():
                # What departs from the advice makes the rest of it old.
                advise(frame, envs, stale, self._prices, self._advice)
                stale[:] = False
            offered = options.tasks(frame, envs, waits, number, self._scratch, self._advice)
            if not len(offered.env):
                break
            if number == 0:
                decision.encoded = len(np.unique(offered.env))
            rows = Rows.of(graphs, envs, offered, task=True)
            of_options = of_waiting = None
            if self.network is not None:
                if embeddings is None:
                    embeddings = self.network.encode(GraphTensors.of(graphs))
                found = self.network.log_probabilities(embeddings, rows)
                of_options, of_waiting = found[0].numpy(), found[1].numpy()
            chosen = choose(offered, of_options, of_waiting)
            if of_options is not None:
                take_what_waits_for_nothing(offered, of_options, chosen)
            waiting = chosen == WAIT
            waits[envs[offered.env[waiting]], offered.partition[waiting]] = True
            if record:
                log_probability = np.zeros(len(chosen), np.float32)
                if of_options is not None and of_waiting is not None:
                    log_probability = np.where(waiting, of_waiting, of_options[np.maximum(chosen, 0)])
                decision.steps.append(Step(rows, chosen, log_probability, offered.env))
            claiming = np.flatnonzero(~waiting)
            if not len(claiming):
                continue
            picks = chosen[claiming]
            probability = np.ones(len(picks)) if of_options is None else np.exp(of_options[picks].astype(np.float64))
            wins = settle(offered.env[claiming], offered.value[picks], probability, offered.room[picks])
            winners = claiming[wins]
            places = options.places(
                frame,
                envs,
                offered.env[winners],
                offered.partition[winners],
                offered.value[chosen[winners]],
                self._scratch,
                self._advice,
            )
            where = Rows.of(graphs, envs, places, task=False)
            of_places = None
            if self.network is not None and embeddings is not None:
                of_places = self.network.log_probabilities(embeddings, where)[0].numpy()
            placed_at = choose(places, of_places, None)
            if record:
                log_probability = np.zeros(len(placed_at), np.float32) if of_places is None else of_places[placed_at]
                decision.steps.append(Step(where, placed_at, log_probability, places.env))
            carry_out(frame, truth, envs, places, placed_at, decision.excess, decision.placed, self._advice, stale)
        return decision


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
