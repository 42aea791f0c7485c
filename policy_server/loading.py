"""Makes the policies that the configuration names: the configured one, or the fallback where it cannot be loaded."""

import inspect
import logging
from pathlib import Path

import msgspec
from msgspec.structs import replace

from policy_server.placer import Placer
from tapfinger_hpc import log
from tapfinger_hpc.config import ServerConfig
from tapfinger_hpc.errors import ConfigError
from tapfinger_hpc.policies import registry
from tapfinger_hpc.policies.base import Policy
from tapfinger_hpc.wire import PolicyDescription

logger = logging.getLogger(__name__)


def load_placer(config: ServerConfig) -> Placer:
    """A placer with the configured policy. A checkpoint that cannot be used costs the policy, not the server.

    Raises:
        ConfigError: the policy or the fallback is not known, or the constants cannot be used.
        TapfingerError: the fallback cannot be made either.
    """
    prices = None
    if config.constants:
        from tapfinger_hpc.policies import constants  # needs numba, which fifo and min do not

        prices = constants.read(Path(config.constants))
    fallback = registry.make(config.fallback, prices=prices)
    weights = Path(config.checkpoint) if config.checkpoint else None
    try:
        policy = registry.make(config.policy, checkpoint=weights, prices=prices)
    except ConfigError:
        raise
    except Exception as error:  # noqa: BLE001 - a torn file, weights of another shape, no numba: all end here
        why = f"policy {config.policy} could not be loaded: {error}"
        log.event(logger, logging.WARNING, "fallback", why=why, policy=fallback.name)
        standing_in = PolicyDescription(
            config.policy,
            checkpoint_folder=config.checkpoint,
            constants_file=config.constants,
            fallback=fallback.name,
            fallback_why=why,
        )
        return Placer(fallback, fallback, description=standing_in, patience_s=config.timeout_s)
    described = replace(
        describe(policy),
        checkpoint_folder=config.checkpoint,
        constants_file=config.constants,
        fallback=fallback.name,
    )
    return Placer(policy, fallback, description=described, patience_s=config.timeout_s)


def describe(policy: Policy) -> PolicyDescription:
    """What there is to tell of a policy; the learned one carries the description of its checkpoint as ``info``."""
    knowledge = inspect.cleandoc(type(policy).__doc__ or "").split("\n\n")[0].replace("\n", " ")
    info = getattr(policy, "info", None)
    if info is None:
        return PolicyDescription(policy.name, knowledge=knowledge)
    return PolicyDescription(
        policy.name,
        knowledge=knowledge,
        schema_version=info.schema.version,
        checkpoint=info.fingerprint,
        configuration=msgspec.to_builtins(info.network),
        training=msgspec.to_builtins(info.training),
    )
