"""Checkpoints: they come back as they were saved, and what is wrong with one is said."""

import hashlib
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from tapfinger_hpc import checkpoint
from tapfinger_hpc.checkpoint import Training
from tapfinger_hpc.errors import CheckpointError
from tapfinger_hpc.nets.config import NetworkConfig
from tapfinger_hpc.nets.policy_network import PolicyNetwork

CONFIG = NetworkConfig(hidden=16, rounds=1)
TOLD = Training("nowhere", "oracle", "", seed=0, iterations=0, minutes=0.0, episodes=0, workers=1, versions={})


def random_weights(seed: int = 0) -> dict[str, np.ndarray]:
    torch.manual_seed(seed)
    return PolicyNetwork(CONFIG).weights()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint of random weights."""
    checkpoint.save(tmp_path / "saved", CONFIG, random_weights(), TOLD)
    return tmp_path / "saved"


def weights_of(folder: Path) -> Path:
    (found,) = folder.glob("weights-*.safetensors")
    return found


def rewritten(folder: Path, change) -> None:
    """Changes the description on disk, as someone with an editor would."""
    path = folder / checkpoint.DESCRIPTION
    content = msgspec.json.decode(path.read_bytes())
    change(content)
    path.write_bytes(msgspec.json.encode(content))


def test_a_checkpoint_comes_back_as_it_was_saved(folder: Path) -> None:
    weights, info = checkpoint.read(folder)
    network, told = checkpoint.load(folder)
    assert (network.config, told) == (CONFIG, info)
    assert weights.keys() == random_weights().keys()
    for name, values in random_weights().items():
        np.testing.assert_array_equal(weights[name], values)
    assert info == checkpoint.describe(folder)
    assert info.training == TOLD
    assert info.fingerprint == hashlib.sha256(weights_of(folder).read_bytes()).hexdigest()[:12]


def test_saving_again_leaves_one_checkpoint(folder: Path) -> None:
    first = checkpoint.describe(folder)
    second = checkpoint.save(folder, CONFIG, random_weights(seed=1), TOLD)
    assert second.fingerprint != first.fingerprint
    assert sorted(file.name for file in folder.iterdir()) == [checkpoint.DESCRIPTION, second.weights]
    checkpoint.load(folder)


@pytest.mark.parametrize("cut", [1, 100, 10**9])
def test_truncated_weights_are_refused(folder: Path, cut: int) -> None:
    path = weights_of(folder)
    path.write_bytes(path.read_bytes()[:-cut] if cut < 10**9 else b"")
    with pytest.raises(CheckpointError, match="truncated or changed"):
        checkpoint.load(folder)


@pytest.mark.parametrize("position", [10, -20])
def test_one_changed_byte_is_refused(folder: Path, position: int) -> None:
    path = weights_of(folder)
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match="truncated or changed"):
        checkpoint.load(folder)


def test_weights_that_are_missing_are_refused_by_name(folder: Path) -> None:
    path = weights_of(folder)
    path.unlink()
    with pytest.raises(CheckpointError, match=path.name):
        checkpoint.load(folder)


def test_another_schema_is_refused_whatever_else_it_holds(folder: Path) -> None:
    rewritten(folder, lambda content: content.update(schema={"version": 99}, new_field=1))
    with pytest.raises(CheckpointError, match=r"schema 99.*tapfinger train"):
        checkpoint.load(folder)


def test_the_same_schema_with_other_columns_is_refused(folder: Path) -> None:
    rewritten(folder, lambda content: content["schema"]["columns"]["node"].reverse())
    with pytest.raises(CheckpointError, match="columns"):
        checkpoint.load(folder)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"format": "tapfinger-checkpoint"}', b"\xff\xfe"])
def test_a_description_that_cannot_be_read_is_refused(folder: Path, text: bytes) -> None:
    (folder / checkpoint.DESCRIPTION).write_bytes(text)
    with pytest.raises(CheckpointError, match=checkpoint.DESCRIPTION):
        checkpoint.load(folder)


def test_a_description_may_not_lead_out_of_its_folder(folder: Path) -> None:
    rewritten(folder, lambda content: content.update(weights="../weights-000000000000.safetensors"))
    with pytest.raises(CheckpointError, match="weights"):
        checkpoint.load(folder)


def test_weights_of_another_size_are_refused(folder: Path) -> None:
    rewritten(folder, lambda content: content["network"].update(hidden=32))
    with pytest.raises(CheckpointError, match="does not fit"):
        checkpoint.load(folder)


def test_weights_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    for wrong in (np.nan, np.inf):
        weights = random_weights()
        weights["wait.0.weight"][0, 0] = wrong
        checkpoint.save(tmp_path, CONFIG, weights, TOLD)
        with pytest.raises(CheckpointError, match=r"wait\.0\.weight holds values that are not"):
            checkpoint.load(tmp_path)


def test_weights_of_another_type_are_refused(tmp_path: Path) -> None:
    weights = {name: values.astype(np.float64) for name, values in random_weights().items()}
    checkpoint.save(tmp_path, CONFIG, weights, TOLD)
    with pytest.raises(CheckpointError, match="float32"):
        checkpoint.load(tmp_path)


def test_advice_of_other_constants_is_refused(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, CONFIG, random_weights(), TOLD, (1.0, 2.0))
    with pytest.raises(CheckpointError, match="2 constants"):
        checkpoint.load(tmp_path)


def test_a_folder_without_a_checkpoint_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="tapfinger train"):
        checkpoint.load(tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="cannot be written"):
        checkpoint.save(tmp_path / "file", CONFIG, random_weights(), TOLD)
