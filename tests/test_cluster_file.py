"""A cluster to replay jobs on, from slurm.conf, from what scontrol printed, from TOML, or from Slurm itself."""

import pytest
from test_slurm_parse import VERSIONS, Recorded

from slurm_plugin import cluster_file
from tapfinger_hpc.errors import ConfigError
from tapfinger_hpc.state import Resources

TOML = """
[[node]]
names = "n[01-02]"
cpus = 32
gpus = 4
mem = "256G"
gpu_type = "a100"
threads_per_core = 2

[[partition]]
name = "gpu"
nodes = "n01"
max_time = "2-00:00:00"

[[partition]]
name = "any"
"""


@pytest.mark.parametrize("version", VERSIONS)
def test_a_running_slurm_is_read_with_every_node_up_and_empty(version):
    shape = cluster_file.of_live(Recorded(version))
    assert {node.free for node in shape.spec.nodes} == {node.capacity for node in shape.spec.nodes}
    assert all(node.available for node in shape.spec.nodes)
    assert shape.spec.nodes[0].capacity.mem_mb == 64000
    assert shape.spec.partitions[0].max_time_s == 86400


def test_what_scontrol_printed_is_read_from_a_file_in_either_of_its_forms(tmp_path):
    said = Recorded("22.05").said
    line = said["nodes"].splitlines()[0]
    # Without --oneliner a record is several lines, and an empty one.
    spread = line.replace(" CPUAlloc", "\n   CPUAlloc").replace(" RealMemory", "\n   RealMemory") + "\n\n"
    for text in (said["nodes"] + said["partitions"], spread):
        file = tmp_path / "nodes.txt"
        file.write_text(text)
        shape = cluster_file.read(str(file))
        assert shape.spec.nodes[0].name == "n1"
        assert shape.spec.nodes[0].capacity == Resources(16, 4, 64000)
        assert shape.spec.partitions[0].nodes[0] == "n1"
    assert any("no partitions were shown" in note for note in shape.notes)


def test_slurm_conf_is_known_by_what_stands_in_it(tmp_path):
    (tmp_path / "nodes.conf").write_text("NodeName=n[1-3] CPUs=8 RealMemory=16000\n")
    file = tmp_path / "slurm.conf"
    file.write_text("Include nodes.conf\nPartitionName=p Nodes=ALL\n")
    assert len(cluster_file.read(str(file)).spec.nodes) == 3


def test_a_toml_file_is_the_shortest_description(tmp_path):
    file = tmp_path / "site.toml"
    file.write_text(TOML)
    shape = cluster_file.read(str(file))
    assert shape.spec.capacity == Resources(64, 8, 2 * 256 * 1024)
    assert [partition.nodes for partition in shape.spec.partitions] == [("n01",), ("n01", "n02")]
    assert shape.spec.nodes[0].gpu_type == "a100"
    assert str(shape).endswith("2 nodes in 2 partitions, 64 CPUs, 8 GPUs")


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.toml", "[[node]]\nname = 'n1'", "site"),
        ("a.toml", TOML.replace('"n01"', '"n09"'), "n09"),
        ("a.toml", TOML.replace("[[node]]", '[[node]]\nnames="n01"\ncpus=1\n[[node]]'), "n01 is listed twice"),
        ("a.txt", "hello", "neither slurm.conf"),
        ("a.conf", "NodeName=n1 CPUs=x\nPartitionName=p Nodes=n1", "NodeName=n1"),
    ],
)
def test_what_describes_no_cluster_is_refused_with_its_name(tmp_path, name, text, told):
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(ConfigError) as refused:
        cluster_file.read(str(file))
    assert str(file) in str(refused.value)
    assert told == "site" or told in str(refused.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        cluster_file.read(str(tmp_path / "slurm.conf"))
