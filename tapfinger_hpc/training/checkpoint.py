"""Checkpoints: a folder with the weights (safetensors) and a description (JSON) that says what they are.

The description names the weights by their hash and is written last, so a checkpoint is there whole or not at all. It is
read back with suspicion: another schema, a missing or changed weight, a truncated file are refused with what is wrong.
"""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
import torch
from msgspec import Meta
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from tapfinger_hpc import graph, room
from tapfinger_hpc.checkpoint import write_whole
from tapfinger_hpc.errors import CheckpointError
from tapfinger_hpc.nets.pointers import NetworkConfig, Pointers
from tapfinger_hpc.nets.served import ServedNetwork

if TYPE_CHECKING:
    from tapfinger_hpc.nets.network import Network

DEFAULT = Path(__file__).parents[1] / "checkpoints" / "default"
"""The checkpoint that ships with the package."""
DESCRIPTION = "checkpoint.json"


class Schema(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What every number that goes into the network means; weights are of use for exactly one."""

    version: int
    columns: dict[str, tuple[str, ...]]
    edges: tuple[tuple[str, str, str], ...]
    agent: tuple[str, ...]
    options: dict[str, tuple[str, ...]]
    price_levels: tuple[float, ...]


SCHEMA = Schema(
    version=graph.SCHEMA_VERSION,
    columns=graph.COLUMNS,
    edges=graph.EDGES,
    agent=room.AGENT_COLUMNS,
    options=room.OPTION_COLUMNS,
    price_levels=graph.PRICE_LEVELS,
)


class Validation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a policy did on workloads that it was not trained on, against another on the same workloads."""

    against: str
    workloads: str
    """What was replayed, in words."""
    seeds: int
    ratio: float
    """Mean completion time over that of the other, the mean of all workloads' ratios' logarithms."""
    low: float
    high: float
    """95 % interval over workloads."""


class Training(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the weights come from."""

    imitates: str
    seed: int
    steps: int
    minutes: float
    episodes: int
    decisions: int
    """States that were labelled."""
    data_sha256: str
    """Of all labelled states and labels, in the order in which they were made."""
    versions: dict[str, str]
    agreement: dict[str, float] = {}
    """Share of held-out choices, by head, in which the network would choose as its teacher did."""
    validation: tuple[Validation, ...] = ()


class CheckpointInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The description of a checkpoint."""

    format: Literal["tapfinger-checkpoint"]
    schema: Schema
    network: NetworkConfig
    training: Training
    weights: Annotated[str, Meta(pattern=r"^weights-[0-9a-f]{12}\.safetensors$")]
    """File name beside the description."""
    weights_sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]

    @property
    def fingerprint(self) -> str:
        """Short name of exactly these weights."""
        return self.weights_sha256[:12]


def save(folder: Path, network: Pointers, training: Training) -> CheckpointInfo:
    """Writes a checkpoint into the folder, in place of the one that may be there; whole or not at all."""
    weights = save_tensors({name: tensor.contiguous() for name, tensor in network.state_dict().items()})
    digest = hashlib.sha256(weights).hexdigest()
    info = CheckpointInfo(
        format="tapfinger-checkpoint",
        schema=SCHEMA,
        network=network.config,
        training=training,
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


def load(folder: Path) -> tuple["Network", CheckpointInfo]:
    """The network of a checkpoint as it is trained, and its description.

    Raises:
        CheckpointError: says what is wrong with it, and what to do.
    """
    from tapfinger_hpc.nets.network import Network  # brings torch-geometric, which serving does without

    _, info = load_served(folder)
    network = Network(info.network)
    network.load_state_dict(_tensors(folder, info))
    return network.eval(), info


def load_served(folder: Path) -> tuple[ServedNetwork, CheckpointInfo]:
    """The network of a checkpoint as it is served, and its description.

    Raises:
        CheckpointError: says what is wrong with it, and what to do.
    """
    info = describe(folder)
    tensors = _tensors(folder, info)
    try:
        return ServedNetwork(info.network, tensors), info
    except ValueError as error:
        raise CheckpointError(f"checkpoint {str(folder)!r}: {info.weights} does not fit: {error}") from error


def _tensors(folder: Path, info: CheckpointInfo) -> dict[str, torch.Tensor]:
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
    return tensors


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
                f"checkpoint {str(folder)!r} is of schema {version}, this program reads {SCHEMA.version}: "
                'train one with `tapfinger train`, or use the one that ships (server.checkpoint = "")'
            )
        info = msgspec.json.decode(text, type=CheckpointInfo)
    except msgspec.DecodeError as error:
        raise CheckpointError(f"checkpoint {str(folder)!r}: {DESCRIPTION}: {error}") from error
    if info.schema != SCHEMA:
        raise CheckpointError(
            f"checkpoint {str(folder)!r} says schema {SCHEMA.version} but its columns differ: "
            f"{_first_difference(info.schema)}; train one with `tapfinger train`"
        )
    return info


class _SchemaVersion(msgspec.Struct, frozen=True):
    version: int


class _Versioned(msgspec.Struct, frozen=True):
    """What is read first, whatever else another schema holds."""

    schema: _SchemaVersion


def _first_difference(schema: Schema) -> str:
    for name in ("columns", "edges", "agent", "options", "price_levels"):
        if getattr(schema, name) != getattr(SCHEMA, name):
            return f"{name} are not those of this program"
    return "none"


def _read(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"checkpoint {str(folder)!r}: {name} cannot be read: {error.strerror}; train one with `tapfinger train`"
        ) from error
