"""Checkpoints: a folder with the weights (safetensors) and a description (JSON) that says what they are.

The description names the weights by their hash and is written last, so a checkpoint is there whole or not at all. It is
read back with suspicion: another schema, a missing or changed weight, a truncated file are refused with what is wrong.
Reading one needs no torch.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np
from msgspec import Meta
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from tapfinger_hpc.errors import CheckpointError
from tapfinger_hpc.features import graph, measures, options
from tapfinger_hpc.files import whole_or_not_at_all
from tapfinger_hpc.nets.compiled import CompiledNetwork
from tapfinger_hpc.nets.config import NetworkConfig
from tapfinger_hpc.policies.compiled.price import Prices
from tapfinger_hpc.sim.experience import Experience

DEFAULT = Path(__file__).parent / "checkpoints" / "default"
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
    experience: Experience | None = None
    """What was learned of the types' times, where the policy knows no more of them ("types")."""

    @property
    def fingerprint(self) -> str:
        """Short name of exactly these weights."""
        return self.weights_sha256[:12]


def save(
    folder: Path,
    config: NetworkConfig,
    weights: Mapping[str, np.ndarray],
    training: Training,
    advice: tuple[float, ...] = (),
    experience: Experience | None = None,
) -> CheckpointInfo:
    """Writes a checkpoint into the folder, in place of the one that may be there; whole or not at all."""
    weights_file = save_arrays({name: np.ascontiguousarray(values) for name, values in weights.items()})
    digest = hashlib.sha256(weights_file).hexdigest()
    info = CheckpointInfo(
        format="tapfinger-checkpoint",
        schema=SCHEMA,
        network=config,
        training=training,
        advice=advice,
        weights=f"weights-{digest[:12]}.safetensors",
        weights_sha256=digest,
        experience=experience,
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in (
            (info.weights, weights_file),
            (DESCRIPTION, msgspec.json.format(msgspec.json.encode(info), indent=1) + b"\n"),
        ):
            with whole_or_not_at_all(folder / name, CheckpointError) as partial:
                partial.write_bytes(content)
        for old in folder.glob("weights-*.safetensors"):
            if old.name != info.weights:
                old.unlink()
    except OSError as error:
        raise CheckpointError(f"checkpoint {str(folder)!r} cannot be written: {error.strerror}") from error
    return info


def load(folder: Path) -> tuple[CompiledNetwork, CheckpointInfo]:
    """The network of a checkpoint as it decides, and its description.

    Raises:
        CheckpointError: says what is wrong with it, and what to do.
    """
    weights, info = read(folder)
    try:
        return CompiledNetwork(info.network, weights), info
    except ValueError as error:
        raise CheckpointError(f"checkpoint {str(folder)!r}: {info.weights} does not fit: {error}") from error


def read(folder: Path) -> tuple[dict[str, np.ndarray], CheckpointInfo]:
    """The weights of a checkpoint by name, and its description.

    Raises:
        CheckpointError: as for ``load``.
    """
    info = describe(folder)
    content = _read(folder, info.weights)
    digest = hashlib.sha256(content).hexdigest()
    if digest != info.weights_sha256:
        raise CheckpointError(
            f"checkpoint {str(folder)!r}: {info.weights} is not what the description says "
            f"(SHA-256 {digest[:12]}..., expected {info.weights_sha256[:12]}...): truncated or changed; copy it again"
        )
    try:
        weights = load_arrays(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"checkpoint {str(folder)!r}: {info.weights} cannot be read: {error}") from error
    for name, values in weights.items():
        if values.dtype != np.float32 or not np.isfinite(values).all():
            raise CheckpointError(
                f"checkpoint {str(folder)!r}: {info.weights}: {name} holds values that are not (float32) numbers"
            )
    return weights, info


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
                'train one with `tapfinger train --scenario NAME`, or use the one that ships (server.checkpoint = "")'
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
        raise CheckpointError(
            f"checkpoint {str(folder)!r}: {name} cannot be read: {error.strerror}; "
            "train one with `tapfinger train --scenario NAME`"
        ) from error
