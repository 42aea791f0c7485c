"""Imitation: labels say what the teacher did, steps lower the loss, and what is written can be trusted."""

import hashlib
import math
from pathlib import Path

import msgspec
import pytest
import torch
from click.testing import CliRunner
from cluster_states import job, state, states
from hypothesis import given, settings
from msgspec.structs import replace

from tapfinger_hpc.errors import CheckpointError
from tapfinger_hpc.nets.network import Network, NetworkConfig
from tapfinger_hpc.policies.fifo import FifoPolicy
from tapfinger_hpc.policies.learned import LearnedPolicy
from tapfinger_hpc.policies.minimum import MinimumPolicy
from tapfinger_hpc.policies.price import PricePolicy
from tapfinger_hpc.state import ClusterState, Partition
from tapfinger_hpc.training import checkpoint, imitation
from tapfinger_hpc.training.checkpoint import CheckpointInfo, Training
from tapfinger_hpc.training.cli import train as train_command
from tapfinger_hpc.training.episodes import HELD_OUT, TRAINING, Recorder, demo_scenario, random_scenario, record
from tapfinger_hpc.training.examples import WAIT, collate, label
from tapfinger_hpc.training.imitation import ImitationConfig, Progress, TrainingError, loss_of, train
from tapfinger_hpc.training.validate import STOCK, agreement, compare

torch.set_num_threads(1)
SMALL = ImitationConfig(
    steps=6,
    seed=5,
    network=NetworkConfig(hidden=16, rounds=1),
    batch=8,
    warm_up=1,
    steps_per_episode=3,
    first_episodes=1,
    held_out=1,
)
TOLD = Training("nobody", 0, 0, 0.0, 0, 0, "0" * 64, {})


def small_network(seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return Network(SMALL.network)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint of six steps; tests copy it or leave it as it is."""
    out = tmp_path_factory.mktemp("trained")
    train(SMALL, MinimumPolicy(), out)
    return out


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint of random weights."""
    checkpoint.save(tmp_path / "saved", small_network(), TOLD)
    return tmp_path / "saved"


# -- labels --------------------------------------------------------------------------------------------------------


@given(states())
@settings(max_examples=60, deadline=None)
def test_every_placement_of_the_teacher_becomes_a_label(given: ClusterState) -> None:
    for teacher in (MinimumPolicy(), PricePolicy()):
        decisions = teacher.decide(given)
        example = label(given, decisions)
        made = [each.placement for each in decisions if each.placement is not None]
        if example is None:
            assert made == []
            continue
        tasks = example.heads["task"]
        jobs = tasks.options.pointed[tasks.labels[tasks.labels != WAIT]].tolist()
        placed = [
            given.pending.index(next(j for j in given.pending if j.key == d.key)) for d in decisions if d.placement
        ]
        assert sorted(jobs) == sorted(placed)
        if made:
            nodes = example.heads["node"]
            chosen = nodes.options.pointed[nodes.labels].tolist()
            assert sorted(given.nodes[node].name for node in chosen) == sorted(place.node for place in made)


def test_the_last_round_of_a_decision_teaches_to_wait() -> None:
    given = state(job("1"), job("2"))
    example = label(given, PricePolicy().decide(replace(given, pending=given.pending[:1])))
    assert example is not None
    assert example.heads["task"].labels.tolist()[-1] == WAIT


def test_two_agents_take_a_task_each_in_the_same_round() -> None:
    both = (Partition("pa", ("n1",)), Partition("pb", ("n2",)))
    given = state(job("1"), job("2", partitions=("pb",)), partitions=both)
    example = label(given, MinimumPolicy().decide(given))
    assert example is not None
    assert WAIT not in example.heads["task"].labels.tolist()[:2]


def test_a_state_with_nothing_to_choose_makes_no_example() -> None:
    assert label(state(), ()) is None


# -- learning ------------------------------------------------------------------------------------------------------


def test_a_few_steps_on_the_same_states_lower_the_loss_and_raise_agreement() -> None:
    teacher = MinimumPolicy()
    examples = record(random_scenario(TRAINING, 3), Recorder(teacher, teacher, "x"))[:24]
    net, batch = small_network(), collate(examples)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    before, agreed = loss_of(net, batch).item(), agreement(net, examples)["cpus"]
    for _ in range(25):
        optimizer.zero_grad()
        loss = loss_of(net, batch)
        loss.backward()
        optimizer.step()
    assert loss_of(net, batch).item() < 0.6 * before
    assert agreement(net, examples)["cpus"] > agreed


@pytest.mark.slow
def test_the_same_seed_and_steps_give_the_same_weights(trained: Path, tmp_path: Path) -> None:
    again = train(SMALL, MinimumPolicy(), tmp_path)
    first = checkpoint.describe(trained)
    assert again.weights_sha256 == first.weights_sha256
    assert again.training.data_sha256 == first.training.data_sha256
    other = train(replace(SMALL, seed=6), MinimumPolicy(), tmp_path / "other")
    assert other.weights_sha256 != first.weights_sha256


def test_a_checkpoint_tells_where_it_comes_from(trained: Path) -> None:
    told = checkpoint.describe(trained).training
    assert (told.imitates, told.seed, told.steps) == ("min", 5, 6)
    assert told.episodes >= 1
    assert told.decisions > 0
    assert set(told.versions) == {"python", "torch", "torch-geometric", "numpy"}
    assert 0 <= told.agreement["task"] <= 1


@pytest.mark.slow
def test_resuming_goes_on_where_training_ended(trained: Path, tmp_path: Path) -> None:
    out = copied(trained, tmp_path)
    before = checkpoint.describe(out)
    after = train(SMALL, MinimumPolicy(), out, resume=True)
    assert after.training.steps == 12
    assert after.training.episodes > before.training.episodes
    assert after.training.decisions > before.training.decisions
    assert after.weights_sha256 != before.weights_sha256


def test_resuming_with_another_teacher_or_seed_is_refused(trained: Path, tmp_path: Path) -> None:
    out = copied(trained, tmp_path)
    with pytest.raises(CheckpointError, match="imitates min with seed 5"):
        train(SMALL, FifoPolicy(), out, resume=True)
    with pytest.raises(CheckpointError, match="not min with seed 6"):
        train(replace(SMALL, seed=6), MinimumPolicy(), out, resume=True)


def test_resuming_from_nothing_or_from_a_torn_file_is_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        train(SMALL, MinimumPolicy(), tmp_path, resume=True)
    out = copied(trained, tmp_path)
    torn = out / imitation.RESUME
    torn.write_bytes(torn.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot be resumed"):
        train(SMALL, MinimumPolicy(), out, resume=True)


def test_a_loss_that_is_not_a_number_stops_and_keeps_the_last_good_checkpoint(trained: Path, tmp_path: Path) -> None:
    out = copied(trained, tmp_path)
    before = checkpoint.describe(out)
    with pytest.raises(TrainingError, match="step"):
        train(replace(SMALL, learning_rate=1e38, clip=1e38), MinimumPolicy(), out, resume=True)
    assert checkpoint.describe(out) == before
    checkpoint.load(out)


@pytest.mark.slow
def test_an_interruption_keeps_what_has_been_learned(tmp_path: Path) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(SMALL, MinimumPolicy(), tmp_path, report=interrupt)
    assert checkpoint.load(tmp_path)[1].training.steps == 2
    assert train(SMALL, MinimumPolicy(), tmp_path, resume=True).training.steps == 8


@pytest.mark.slow
def test_progress_runs_from_nothing_to_the_end(tmp_path: Path) -> None:
    seen: list[Progress] = []
    train(SMALL, MinimumPolicy(), tmp_path, report=seen.append)
    assert [each.step for each in seen] == sorted(each.step for each in seen)
    assert seen[-1].share == 1.0
    assert not math.isnan(seen[-1].loss)


def test_states_that_the_network_leads_to_are_labelled_by_the_teacher() -> None:
    teacher, actor = PricePolicy(), LearnedPolicy.of(small_network())
    demo = demo_scenario(1)
    scenario = replace(demo, trace=replace(demo.trace, jobs=demo.trace.jobs[:16]))
    led = record(scenario, Recorder(teacher, actor, "x"))
    taught = record(scenario, Recorder(teacher, teacher, "x"))
    assert [each.state for each in led] != [each.state for each in taught]
    again = label(led[-1].state, teacher.decide(led[-1].state))
    assert again is not None
    assert again.heads["task"].labels.tolist() == led[-1].heads["task"].labels.tolist()


def test_held_out_scenarios_are_no_training_scenarios() -> None:
    assert random_scenario(HELD_OUT, 0) == random_scenario(HELD_OUT, 0)
    assert random_scenario(HELD_OUT, 0).trace != random_scenario(TRAINING, 0).trace


# -- validation ----------------------------------------------------------------------------------------------------


def test_a_policy_compared_with_itself_is_as_good_and_with_stock_slurm_is_named_so() -> None:
    itself, stock = compare(FifoPolicy(), [FifoPolicy(), None], [demo_scenario(1), demo_scenario(2)], "the demo")
    assert (itself.ratio, itself.low, itself.high, itself.seeds) == (1.0, 1.0, 1.0, 2)
    assert (stock.against, stock.workloads) == (STOCK, "the demo")
    assert stock.low <= stock.ratio <= stock.high


# -- checkpoints ---------------------------------------------------------------------------------------------------


def copied(source: Path, target: Path) -> Path:
    out = target / "copy"
    out.mkdir()
    for file in source.iterdir():
        (out / file.name).write_bytes(file.read_bytes())
    return out


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
    network, info = checkpoint.load(folder)
    served, told = checkpoint.load_served(folder)
    assert (served.config, told) == (network.config, info)
    for name, tensor in small_network().state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor)
    assert info == checkpoint.describe(folder)
    assert info.training == TOLD
    assert info.fingerprint == hashlib.sha256(weights_of(folder).read_bytes()).hexdigest()[:12]


def test_saving_again_leaves_one_checkpoint(folder: Path) -> None:
    first = checkpoint.describe(folder)
    second = checkpoint.save(folder, small_network(seed=1), TOLD)
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
    network = small_network()
    with torch.no_grad():
        network.wait[0].weight[0, 0] = math.nan
    checkpoint.save(tmp_path, network, TOLD)
    with pytest.raises(CheckpointError, match="not numbers"):
        checkpoint.load(tmp_path)


def test_a_folder_without_a_checkpoint_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="tapfinger train"):
        checkpoint.load(tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="cannot be written"):
        checkpoint.save(tmp_path / "file", small_network(), TOLD)


# -- the command ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--imitate", "price", "--out", "x", "--minuts", "3"], "--minutes"),
        (["--imitate", "prise", "--out", "x"], "price"),
        (["--imitate", "price", "--out", "x", "--minutes", "0"], "--minutes"),
        (["--imitate", "price"], "--out"),
        (["--imitate", "tapfinger", "--out", "x"], "tapfinger"),
    ],
)
def test_an_argument_that_cannot_be_used_is_refused_with_what_can(arguments: list[str], words: str) -> None:
    done = CliRunner().invoke(train_command, arguments)
    assert done.exit_code == 2
    assert words in done.output


def test_a_checkpoint_that_is_there_is_not_overwritten_unasked(folder: Path) -> None:
    before = checkpoint.describe(folder)
    done = CliRunner().invoke(train_command, ["--imitate", "min", "--steps", "1", "--out", str(folder)])
    assert done.exit_code == 2
    assert "--resume" in done.output
    assert checkpoint.describe(folder) == before


@pytest.mark.slow
def test_the_command_trains_validates_and_shows_what_came_of_it(tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["--imitate", "price", "--steps", "2", "--seed", "3", "--workloads", "2", "--out", str(out)]
    done = CliRunner().invoke(train_command, arguments)
    assert done.exit_code == 0, done.output
    info: CheckpointInfo = checkpoint.load(out)[1]
    assert {each.against for each in info.training.validation} == {"price", "fifo", STOCK}
    assert info.fingerprint in done.output
    assert "95 % interval" in done.output
