"""Makes the policies that the configuration names: the configured one, or the fallback where it cannot be loaded."""

import logging
from pathlib import Path

from policy_server.placer import Placer
from tapfinger_hpc.config import ServerConfig
from tapfinger_hpc.errors import ConfigError
from tapfinger_hpc.policies import registry
from tapfinger_hpc.policies.base import Policy
from tapfinger_hpc.wire import PolicyDescription

logger = logging.getLogger(__name__)


def load_placer(config: ServerConfig) -> Placer:
    """A placer with the configured policy. A checkpoint that cannot be used costs the policy, not the server.

    Raises:
        ConfigError: the policy or the fallback is not known.
        TapfingerError: the fallback cannot be made either.
    """
    fallback = registry.make(config.fallback)
    try:
        policy = registry.make(config.policy, checkpoint=Path(config.checkpoint) if config.checkpoint else None)
    except ConfigError:
        raise
    except Exception as error:  # noqa: BLE001 - no torch, a torn file, weights of another shape: all end here
        why = f"policy {config.policy} could not be loaded: {error}"
        logger.warning("%s; policy %s answers instead", why, fallback.name)
        description = PolicyDescription(
            name=config.policy, checkpoint=config.checkpoint, fallback=fallback.name, fallback_why=why
        )
        return Placer(fallback, fallback, description=description, patience_s=config.timeout_s)
    return Placer(policy, fallback, description=_describe(policy, fallback), patience_s=config.timeout_s)


def _describe(policy: Policy, fallback: Policy) -> PolicyDescription:
    return PolicyDescription(name=policy.name, fallback=fallback.name)
