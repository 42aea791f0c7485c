"""Slurm's spellings, and the mark in the job comment."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapfinger_hpc import units
from tapfinger_hpc.errors import UnitError
from tapfinger_hpc.state import Resources
from tapfinger_hpc.units import Mark, Range, parse_mark


@pytest.mark.parametrize(
    ("text", "expected_mb"),
    [("4G", 4096), ("512M", 512), ("1.5T", 1572864), ("2048", 2048), ("1K", 1), ("64000M", 64000), ("4g", 4096)],
)
def test_memory_is_read_in_mib_and_rounded_up(text, expected_mb):
    assert units.memory_mb(text) == expected_mb


@pytest.mark.parametrize("text", ["", "G", "4X", "-1G", "4 G", "1e3", "NaN"])
def test_memory_that_slurm_would_not_read_is_refused_with_the_text(text):
    with pytest.raises(UnitError, match="memory"):
        units.memory_mb(text)


@pytest.mark.parametrize(
    ("text", "expected_s"),
    [
        ("10", 600),
        ("10:30", 630),
        ("1:00:00", 3600),
        ("2-0", 172800),
        ("1-02:03:04", 93784),
        ("1-02:03", 93780),
        ("UNLIMITED", None),
        ("Partition_Limit", None),
    ],
)
def test_time_limits_are_read_as_slurm_means_them(text, expected_s):
    assert units.duration_s(text) == expected_s


@pytest.mark.parametrize("text", ["", "1:2:3:4", "1-2-3", "soon", "-5"])
def test_a_time_that_slurm_would_not_read_is_refused(text):
    with pytest.raises(UnitError, match="time"):
        units.duration_s(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gres:gpu:4", (4, "")),
        ("gres/gpu:2", (2, "")),
        ("gpu", (1, "")),
        ("gpu:a100:2", (2, "a100")),
        ("gres/gpu=3", (3, "")),
        ("gres/gpu:a100=1,gres/gpu=1", (1, "a100")),
        ("gpu:a100_80:1,gpu:v100:2", (3, "")),
        ("gpu:4(S:0-1)", (4, "")),
        ("cpu=16,mem=64000M,gres/gpu=4", (4, "")),
        ("shard:2", (0, "")),
        ("", (0, "")),
    ],
)
def test_gpus_are_counted_once_in_every_spelling(text, expected):
    assert units.gpus(text) == expected


def test_a_tres_list_becomes_a_dictionary():
    assert units.tres("cpu=16,mem=64000M,gres/gpu=4,billing") == {"cpu": "16", "mem": "64000M", "gres/gpu": "4"}


@pytest.mark.parametrize("comment", [None, "", "hello", "tapfingers gpus=1", "gpus=1-4 tapfinger", "Tapfinger"])
def test_a_comment_that_does_not_begin_with_the_word_is_no_mark(comment):
    assert parse_mark(comment) is None


def test_every_part_of_a_mark_is_read():
    mark = parse_mark("tapfinger gpus=1-4 cpus=2-16 mem=4G-32G class=resnet50 lease=300")
    assert mark == Mark(Range(1, 4), Range(2, 16), Range(4096, 32768), "resnet50", 300)


def test_a_single_amount_is_a_range_of_one():
    assert parse_mark("tapfinger gpus=2 cpus=8 mem=16G") == Mark(Range(2, 2), Range(8, 8), Range(16384, 16384))


@pytest.mark.parametrize(
    ("comment", "named"),
    [
        ("tapfinger gpus", "gpus"),
        ("tapfinger gpus=4-1", "gpus=4-1"),
        ("tapfinger gpus=two", "gpus=two"),
        ("tapfinger gpus=1 gpus=2", "twice"),
        ("tapfinger cpus=0-4", "cpus=0-4"),
        ("tapfinger mem=4X", "mem=4X"),
        ("tapfinger speed=9", "speed"),
        ("tapfinger class=a/b", "class"),
        ("tapfinger lease=0", "lease"),
        ("tapfinger lease=-1", "lease"),
        ("tapfinger lease=99999999", "lease"),
        ("tapfinger gpus=٤", "gpus"),
    ],
)
def test_a_malformed_mark_is_refused_and_names_the_part(comment, named):
    with pytest.raises(UnitError, match=named):
        parse_mark(comment)


@given(st.text(max_size=60))
def test_any_comment_is_read_or_refused_but_never_breaks(text):
    for comment in (text, f"tapfinger {text}"):
        try:
            mark = parse_mark(comment)
        except UnitError:
            continue
        assert mark is None or isinstance(mark, Mark)


@given(st.integers(0, 8), st.integers(0, 8), st.integers(1, 64), st.integers(0, 64))
def test_ranges_written_as_a_comment_are_read_back(low, more, cpus, more_cpus):
    mark = parse_mark(f"tapfinger gpus={low}-{low + more} cpus={cpus}-{cpus + more_cpus}")
    assert mark is not None
    asked = Resources(cpus, low, 1000)
    assert mark.bounds(asked) == (asked, Resources(cpus + more_cpus, low + more, 1000))


def test_what_is_not_declared_keeps_the_requested_amount():
    mark = parse_mark("tapfinger gpus=1-4")
    assert mark is not None
    assert mark.bounds(Resources(8, 2, 16000)) == (Resources(8, 1, 16000), Resources(8, 4, 16000))
