"""Checkpoints of networks on frames: a folder with the weights (safetensors) and a description (JSON) of what they are.

The description names the weights by their hash and is written last, so a checkpoint is there whole or not at all. It is
read back with suspicion: another schema, a missing or changed weight, a truncated file are refused with what is wrong.
"""

import hashlib
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import torch
from msgspec import Meta
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from tapfinger_hpc.errors import CheckpointError
from tapfinger_hpc.features import graph, measures, options
from tapfinger_hpc.nets.policy_network import NetworkConfig, PolicyNetwork
from tapfinger_hpc.policies.compiled.price import Prices
from tapfinger_hpc.training.checkpoint import write_whole

DESCRIPTION = "checkpoint.json"


class Schema(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What every number that goes into the network means; weights are of use for exactly one."""

    version: int
    columns: dict[str, tuple[str, ...]]
    edges: tuple[tuple[str, str, str], ...]
    agent: tuple[str, ...]
    options: dict[str, tuple[str, ...]]
    price_levels: tuple[float, ...]
    horizons: tuple[float, ...]


SCHEMA = Schema(
    version=graph.SCHEMA_VERSION,
    columns=graph.COLUMNS,
    edges=graph.EDGES,
    agent=options.AGENT_COLUMNS,
    options=options.OPTION_COLUMNS,
    price_levels=measures.PRICE_LEVELS,
    horizons=measures.HORIZONS,
)


class Training(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the weights come from."""

    scenario: str
    knowledge: str
    teacher: str
    seed: int
    iterations: int
    minutes: float
    episodes: int
    workers: int
    versions: dict[str, str]


class CheckpointInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The description of a checkpoint."""

    format: Literal["tapfinger-checkpoint"]
    schema: Schema
    network: NetworkConfig
    training: Training
    advice: tuple[float, ...]
    """Constants of the price heuristic whose advice the network hears; none where it hears none."""
    weights: Annotated[str, Meta(pattern=r"^weights-[0-9a-f]{12}\.safetensors$")]
    """File name beside the description."""
    weights_sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]

    @property
    def fingerprint(self) -> str:
        """Short name of exactly these weights."""
        return self.weights_sha256[:12]


def save(folder: Path, network: PolicyNetwork, training: Training, advice: tuple[float, ...] = ()) -> CheckpointInfo:
    """Writes a checkpoint into the folder, in place of the one that may be there; whole or not at all."""
    weights = save_tensors({name: tensor.contiguous() for name, tensor in network.state_dict().items()})
    digest = hashlib.sha256(weights).hexdigest()
    info = CheckpointInfo(
        format="tapfinger-checkpoint",
        schema=SCHEMA,
        network=network.config,
        training=training,
        advice=advice,
        weights=f"weights-{digest[:12]}.safetensors",
        weights_sha256=digest,
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / info.weights, weights)
        write_whole(folder / DESCRIPTION, msgspec.json.format(msgspec.json.encode(info), indent=1) + b"\n")
        for old in folder.glob("weights-*.safetensors"):
            if old.name != info.weights:
                old.unlink()
    except OSError as error:
        raise CheckpointError(f"checkpoint {str(folder)!r} cannot be written: {error.strerror}") from error
    return info


def load(folder: Path) -> tuple[PolicyNetwork, CheckpointInfo]:
    """The network of a checkpoint, and its description.

    Raises:
        CheckpointError: says what is wrong with it, and what to do.
    """
    info = describe(folder)
    weights = _read(folder, info.weights)
    digest = hashlib.sha256(weights).hexdigest()
    if digest != info.weights_sha256:
        raise CheckpointError(
            f"checkpoint {str(folder)!r}: {info.weights} is not what the description says "
            f"(SHA-256 {digest[:12]}..., expected {info.weights_sha256[:12]}...): truncated or changed; copy it again"
        )
    try:
        tensors = load_tensors(weights)
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"checkpoint {str(folder)!r}: {info.weights} cannot be read: {error}") from error
    if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
        raise CheckpointError(f"checkpoint {str(folder)!r}: {info.weights} holds values that are not numbers")
    network = PolicyNetwork(info.network)
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(f"checkpoint {str(folder)!r}: {info.weights} does not fit: {error}") from error
    return network.eval(), info


def describe(folder: Path) -> CheckpointInfo:
    """The description of a checkpoint, without its weights.

    Raises:
        CheckpointError: it cannot be read, or is of another schema.
    """
    text = _read(folder, DESCRIPTION)
    try:
        version = msgspec.json.decode(text, type=_Versioned).schema.version
        if version != SCHEMA.version:
            raise CheckpointError(
                f"checkpoint {str(folder)!r} is of schema {version}, this command reads {SCHEMA.version}: "
                "train one with `tapfinger train --scenario NAME`"
            )
        info = msgspec.json.decode(text, type=CheckpointInfo)
    except msgspec.DecodeError as error:
        raise CheckpointError(f"checkpoint {str(folder)!r}: {DESCRIPTION}: {error}") from error
    if info.schema != SCHEMA:
        name = next(name for name in Schema.__struct_fields__ if getattr(info.schema, name) != getattr(SCHEMA, name))
        raise CheckpointError(
            f"checkpoint {str(folder)!r} says schema {SCHEMA.version}, but its {name} are not those of this program; "
            "train one with `tapfinger train --scenario NAME`"
        )
    if info.advice and len(info.advice) != len(Prices._fields):
        raise CheckpointError(
            f"checkpoint {str(folder)!r}: advice has {len(info.advice)} constants, the price heuristic of this program "
            f"takes {len(Prices._fields)}; train one with `tapfinger train --scenario NAME`"
        )
    return info


class _SchemaVersion(msgspec.Struct, frozen=True):
    version: int


class _Versioned(msgspec.Struct, frozen=True):
    """What is read first, whatever else another schema holds."""

    schema: _SchemaVersion


def _read(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise CheckpointError(f"checkpoint {str(folder)!r}: {name} cannot be read: {error.strerror}") from error
