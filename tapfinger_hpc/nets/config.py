"""Sizes of the network, which are part of a checkpoint. Stands alone: who reads a checkpoint need not have torch."""

import msgspec


class NetworkConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How wide and how deep."""

    hidden: int = 64
    rounds: int = 2
    """Rounds of attention."""
    heads: int = 4
