"""Nodes and partitions of slurm.conf, as slurmctld reads them."""

import pytest

from slurm_plugin import slurm_conf
from tapfinger_hpc.errors import SlurmError
from tapfinger_hpc.state import Resources

SITE = r"""
# A site's file, with what people do to it.
ClusterName=edge
SelectType=select/cons_tres
selecttypeparameters = CR_Core_Memory   # any case, spaces around =
NodeName=DEFAULT Sockets=2 CoresPerSocket=8 ThreadsPerCore=2 \
    RealMemory=128000 Gres=gpu:a100:4(S:0-1) State=UNKNOWN
NodeName=gpu[01-03,07]
NodeName=fat CPUs=64 RealMemory=512G MemSpecLimit=2048 CoreSpecCount=2 Gres=gpu:2,nvme:1 Feature=big,ssd
NodeName=DEFAULT Gres="" RealMemory=64000
NodeName=cpu[1-2] Procs=16 CpuSpecList=0-1 Feature=ssd
NodeName=soon[1-9] State=FUTURE
NodeSet=fast Feature=ssd
PartitionName=DEFAULT MaxTime=1-00:00:00 State=UP
PartitionName=gpu Nodes=gpu[01-03,07],fat Default=YES MaxTime=7-0
PartitionName=cpu Nodes=fast
PartitionName=any Nodes=ALL MaxTime=UNLIMITED
"""


def read(text: str, **files: str) -> slurm_conf.Found:
    return slurm_conf.read(text, lambda name: files[name])


def test_lines_of_defaults_hold_for_the_lines_after_them():
    nodes = {node.name: node for node in read(SITE).spec.nodes}
    assert list(nodes) == ["gpu01", "gpu02", "gpu03", "gpu07", "fat", "cpu1", "cpu2"]
    assert nodes["gpu07"].capacity == Resources(32, 4, 128000)
    assert (nodes["gpu07"].gpu_type, nodes["gpu07"].cpu_step) == ("a100", 2)


def test_what_is_kept_for_the_system_is_not_handed_out():
    nodes = {node.name: node for node in read(SITE).spec.nodes}
    assert nodes["fat"].capacity == Resources(64 - 2 * 2, 2, 512 * 1024 - 2048)
    assert nodes["cpu1"].capacity == Resources(16 - 2, 0, 64000)
    assert nodes["cpu1"].cpu_step == 1, "CPUs that are as many as cores are handed out one by one"


def test_partitions_name_host_lists_node_sets_and_all():
    partitions = {partition.name: partition for partition in read(SITE).spec.partitions}
    assert partitions["gpu"].nodes == ("gpu01", "gpu02", "gpu03", "gpu07", "fat")
    assert partitions["cpu"].nodes == ("fat", "cpu1", "cpu2")
    assert len(partitions["any"].nodes) == 7
    assert [partitions[name].max_time_s for name in ("gpu", "cpu", "any")] == [7 * 86400, 86400, None]


def test_nodes_that_are_yet_to_come_are_left_out_and_told():
    assert any("soon[1-9]" in note for note in read(SITE).notes)


def test_memory_does_not_count_where_slurm_does_not_hand_it_out():
    found = read("SelectTypeParameters=CR_Core\nNodeName=n[1-2] CPUs=8 RealMemory=9000\nPartitionName=p Nodes=ALL")
    assert {node.capacity for node in found.spec.nodes} == {Resources(8, 0, 0)}
    assert found.notes


def test_each_setting_is_the_last_one_and_says_where_it_stands():
    files = {"a": "JobSubmitPlugins=lua\nInclude b", "b": "MinJobAge=9"}
    text = "minjobage=1\nInclude a\nSchedulerParameters=x,y=1 # z\nNodeName=n1 State=UP\nJobSubmitPlugins=all"
    assert slurm_conf.settings(text, files.__getitem__) == {
        "minjobage": ("9", "b"),
        "jobsubmitplugins": ("all", ""),
        "schedulerparameters": ("x,y=1", ""),
    }


def test_included_files_stand_in_their_place():
    text = "ClusterName=edge\nInclude nodes.%c\nPartitionName=p Nodes=ALL"
    found = read(text, **{"nodes.edge": "NodeName=n1 CPUs=4 RealMemory=1000"})
    assert [node.name for node in found.spec.nodes] == ["n1"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("PartitionName=p Nodes=n1", "no NodeName"),
        ("NodeName=n1 CPUs=4", "no PartitionName"),
        ("NodeName=n1 CPUs=four\nPartitionName=p Nodes=n1", "NodeName=n1"),
        ("NodeName=n[1-3] CPUs=4\nNodeName=n2 CPUs=8\nPartitionName=p Nodes=ALL", "n2 is defined twice"),
        ("NodeName=n1 CPUs=4\nPartitionName=p Nodes=n1 MaxTime=soon", "PartitionName=p"),
        ("Include again", "circle"),
    ],
)
def test_a_file_that_describes_no_cluster_is_refused(text, told):
    with pytest.raises(SlurmError, match=told.replace("[", r"\[")):
        read(text, again="Include again")
