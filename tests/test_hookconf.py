"""The hook's site file: whatever the strings hold, every Lua reads back the same values."""

import importlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slurm_plugin.hookconf import HookPartition, render
from tapfinger_hpc.config import PartitionConfig

LUAS = ("lua51", "lua52", "lua53", "lua54")
RUNTIMES = {name: importlib.import_module(f"lupa.{name}").LuaRuntime(encoding=None) for name in LUAS}
"""Strings cross as bytes, as Lua has them."""


def load(lua: str, text: str):
    return RUNTIMES[lua].execute(text.encode("utf-8"))


def site(partitions=(), **settings_):
    known = {"hook_file": "/run/tapfinger/hook", "wake_socket": "", "agent_uid": 0, "gres_separator": ":"}
    return render(partitions, **(known | settings_))


@pytest.mark.parametrize("lua", LUAS)
def test_every_value_arrives(lua):
    text = site(
        [
            HookPartition("pa", 16, 4, 64000),
            HookPartition("pb", 128, 8, 1_031_000, PartitionConfig(gpus="1-4", mem="4G-32G")),
        ],
        wake_socket="/run/tapfinger/wake.sock",
        agent_uid=997,
        gres_separator="/",
    )
    table = load(lua, text)
    assert table[b"hook_file"] == b"/run/tapfinger/hook"
    assert table[b"wake_socket"] == b"/run/tapfinger/wake.sock"
    assert table[b"agent_uid"] == 997
    assert table[b"gres_separator"] == b"/"
    plain, managed = table[b"partitions"][b"pa"], table[b"partitions"][b"pb"]
    assert (plain[b"cpus"], plain[b"gpus"], plain[b"mem_mb"], plain[b"managed"]) == (16, 4, 64000, False)
    assert (managed[b"cpus"], managed[b"gpus"], managed[b"mem_mb"], managed[b"managed"]) == (128, 8, 1_031_000, True)
    assert (managed[b"gpus_range"], managed[b"cpus_range"], managed[b"mem_range"]) == (b"1-4", b"", b"4G-32G")


@given(name=st.text(min_size=1), path=st.text())
@settings(max_examples=200, deadline=None)
def test_any_string_is_quoted_so_that_lua_reads_the_same_bytes(name, path):
    try:
        expected = {text: text.encode("utf-8", "surrogateescape") for text in (name, path)}
    except UnicodeEncodeError:
        return  # not the name of any file or partition
    for lua in LUAS:
        table = load(lua, site([HookPartition(name, 1, 2, 3)], hook_file=path))
        assert table[b"hook_file"] == expected[path]
        assert table[b"partitions"][expected[name]][b"gpus"] == 2


def test_a_path_that_is_no_utf8_keeps_its_bytes():
    table = load("lua51", site(hook_file=b"/run/\xff\xfe".decode("utf-8", "surrogateescape")))
    assert table[b"hook_file"] == b"/run/\xff\xfe"


def test_the_same_site_gives_the_same_text_in_any_order():
    partitions = [HookPartition("pb", 1, 1, 1), HookPartition("pa", 2, 2, 2)]
    assert site(partitions) == site(reversed(partitions))
