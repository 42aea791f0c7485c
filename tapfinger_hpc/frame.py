"""Cluster states as plain arrays, many side by side: what compiled policies and features read, and all that they may.

A frame holds no true runtime: times in it are what is believed. The simulator fills frames of many environments; one
real cluster's state fills a frame of one. Amounts are in the order CPUs, GPUs, MiB.
"""

from typing import NamedTuple

import numpy as np

FUTURE, WAITING, RUNNING, DONE = 0, 1, 2, 3
"""What ``Frame.status`` says of a job."""


class Frame(NamedTuple):
    """B environments; of each array only the part that the counts name is in use. Sizes: P partitions, M nodes,
    K kinds, O choices of amounts, J jobs.
    """

    # The cluster.
    partitions: np.ndarray  # int64 [B]
    nodes: np.ndarray  # int64 [B]
    member: np.ndarray  # bool [B, P, M] the node belongs to the partition
    capacity: np.ndarray  # int64 [B, M, 3]
    free: np.ndarray  # int64 [B, M, 3]
    available: np.ndarray  # bool [B, M]
    now: np.ndarray  # float64 [B]
    slot: np.ndarray  # float64 [B] length of a slot; 0 in event time
    # Kinds of jobs, each with its menu: amounts worth having, ascending, none dominated by another of them.
    kinds: np.ndarray  # int64 [B]
    choices: np.ndarray  # int64 [B, K] how many amounts are on the menu
    menu: np.ndarray  # int64 [B, K, O, 3]
    seconds: np.ndarray  # float64 [B, K, O] believed time of a job on these amounts (slots where time is slotted)
    log_std: np.ndarray  # float64 [B, K] standard deviation of its logarithm
    usable: np.ndarray  # bool [B, K, M] nodes that such jobs may use where their partitions have them; else barred
    # Jobs, by number.
    kind: np.ndarray  # int64 [B, J]; -1 of a running job of whose like nothing is known
    arrival: np.ndarray  # float64 [B, J]
    status: np.ndarray  # int8 [B, J]
    reach: np.ndarray  # bool [B, J, P] partitions whose agents may ever take it
    seen: np.ndarray  # bool [B, J, P] partitions whose agents may take it now: it stands in their window
    node: np.ndarray  # int64 [B, J] of a running job
    partition: np.ndarray  # int64 [B, J] of a running job; -1 where it is not among these
    amounts: np.ndarray  # int64 [B, J, 3] of a running job
    start: np.ndarray  # float64 [B, J] of a running job
    expected_end: np.ndarray  # float64 [B, J] of a running job
    waiting: np.ndarray  # int64 [B, J] numbers of the waiting jobs, oldest first
    waiting_count: np.ndarray  # int64 [B]
    running: np.ndarray  # int64 [B, J] numbers of the running jobs, in the order of their starts
    running_count: np.ndarray  # int64 [B]


def allocate(batch: int, *, partitions: int, nodes: int, kinds: int, choices: int, jobs: int) -> Frame:
    """An empty frame with room for so much in each environment."""
    return Frame(
        partitions=np.zeros(batch, np.int64),
        nodes=np.zeros(batch, np.int64),
        member=np.zeros((batch, partitions, nodes), np.bool_),
        capacity=np.zeros((batch, nodes, 3), np.int64),
        free=np.zeros((batch, nodes, 3), np.int64),
        available=np.zeros((batch, nodes), np.bool_),
        now=np.zeros(batch),
        slot=np.zeros(batch),
        kinds=np.zeros(batch, np.int64),
        choices=np.zeros((batch, kinds), np.int64),
        menu=np.zeros((batch, kinds, choices, 3), np.int64),
        seconds=np.full((batch, kinds, choices), np.inf),
        log_std=np.zeros((batch, kinds)),
        usable=np.ones((batch, kinds, nodes), np.bool_),
        kind=np.zeros((batch, jobs), np.int64),
        arrival=np.zeros((batch, jobs)),
        status=np.zeros((batch, jobs), np.int8),
        reach=np.zeros((batch, jobs, partitions), np.bool_),
        seen=np.zeros((batch, jobs, partitions), np.bool_),
        node=np.full((batch, jobs), -1, np.int64),
        partition=np.full((batch, jobs), -1, np.int64),
        amounts=np.zeros((batch, jobs, 3), np.int64),
        start=np.zeros((batch, jobs)),
        expected_end=np.zeros((batch, jobs)),
        waiting=np.zeros((batch, jobs), np.int64),
        waiting_count=np.zeros(batch, np.int64),
        running=np.zeros((batch, jobs), np.int64),
        running_count=np.zeros(batch, np.int64),
    )
