"""What a network is, and what its agents go without: part of a checkpoint. Stands alone: to read one takes no torch."""

import msgspec

ABLATIONS = ("attention", "pointer", "bayes", "masks", "multi-task", "imitation", "advice")
"""Parts that a course of training can go without."""


class Without(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Parts of the way to a decision that are left out, in training as in play, to see what they are worth."""

    pointer: bool = False
    """Agents are offered the first task alone that they see and have room for."""
    bayes: bool = False
    """Who gets a task that several want is drawn by lot."""
    masks: bool = False
    """What is not free is offered too; to choose it does nothing, ends the agent's turn and costs a penalty."""
    multi_task: bool = False
    """Each agent takes at most one task, then the state is looked at anew."""


class NetworkConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How wide and how deep, and what its agents go without."""

    hidden: int = 64
    rounds: int = 2
    """Rounds of attention. 0: what is known of a graph node is what its own features say."""
    heads: int = 4
    without: Without = Without()
