"""Slurm's spellings of memory, time and TRES, and TapFinger's mark in the job comment. Pure.

Host lists are folded by Slurm itself (``scontrol show hostnames``) or by the caller; no node name is guessed here.
"""

import re
from collections.abc import Mapping

import msgspec

from tapfinger_hpc.errors import UnitError
from tapfinger_hpc.state import MAX_AMOUNT, Resources

_MEMORY_UNITS_MB = {"K": 1 / 1024, "M": 1, "G": 1024, "T": 1024**2, "P": 1024**3}
_MEMORY = re.compile(r"(\d+(?:\.\d+)?)([KMGTP]?)B?", re.IGNORECASE)
_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")
_GPU = re.compile(r"(?:gres[:/])?gpu(?::(?P<type>[\w.-]*[A-Za-z][\w.-]*))?(?:[:=](?P<count>\d+))?(?:\(.*\))?")
_NAME = re.compile(r"[A-Za-z0-9_.+-]{1,64}")
_WORD = re.compile(r"\S+", re.ASCII)
"""Spaces, digits and letters of the mark are those of ASCII: the Lua hook knows no others."""


def memory_mb(text: str) -> int:
    """MiB of a Slurm memory amount such as ``4G``, ``512M``, ``1.5T`` or ``2048`` (MiB); rounded up."""
    match = _MEMORY.fullmatch(text.strip())
    if not match:
        raise UnitError(f"memory {text!r}: expected a number with K, M, G or T, such as 4G")
    exact = float(match[1]) * _MEMORY_UNITS_MB[match[2].upper() or "M"]
    return int(-(-exact // 1))


def duration_s(text: str) -> int | None:
    """Seconds of a Slurm time limit (``minutes``, ``m:s``, ``h:m:s``, ``d-h[:m[:s]]``); None for UNLIMITED."""
    spelling = text.strip()
    if spelling.upper() in {"UNLIMITED", "INFINITE", "PARTITION_LIMIT", "NONE", "N/A"}:
        return None
    match = _TIME.fullmatch(spelling)
    if not match:
        raise UnitError(f"time {text!r}: expected minutes, h:m:s or days-h:m:s")
    days, first, second, third = (int(part) if part else 0 for part in match.groups())
    if match[1] is not None or match[4] is not None:
        hours, minutes, seconds = first, second, third
    else:
        hours, minutes, seconds = 0, first, second
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def gpus(text: str) -> tuple[int, str]:
    """Number and type ("" if untyped) of the GPUs in a GRES or TRES list: ``gpu:a100:2``, ``gres/gpu=1``, ``gres:gpu``.

    A typed entry is counted and its untyped twin (``gres/gpu:a100=1,gres/gpu=1`` is one GPU) is not. Several types
    are summed and reported as untyped. Other GRES are passed over.
    """
    typed: dict[str, int] = {}
    untyped = 0
    for entry in re.split(r",(?![^(]*\))", text.strip()):
        match = _GPU.fullmatch(entry.strip())
        if not match:
            continue
        count = int(match["count"]) if match["count"] else 1
        if match["type"]:
            typed[match["type"]] = typed.get(match["type"], 0) + count
        else:
            untyped += count
    if not typed:
        return untyped, ""
    total = max(sum(typed.values()), untyped)
    return total, next(iter(typed)) if len(typed) == 1 else ""


def tres(text: str) -> dict[str, str]:
    """A TRES list ``cpu=16,mem=64000M,gres/gpu=4`` as a dictionary; entries without ``=`` are passed over."""
    return dict(entry.split("=", 1) for entry in text.split(",") if "=" in entry)


class Range(msgspec.Struct, frozen=True, order=True):
    """Least and greatest amount of one resource, both inclusive."""

    least: int
    greatest: int


class Mark(msgspec.Struct, frozen=True):
    """What a user declares with ``--comment "tapfinger gpus=1-4 cpus=2-16 mem=4G-32G class=NAME lease=300"``."""

    gpus: Range | None = None
    cpus: Range | None = None
    mem_mb: Range | None = None
    job_class: str = ""
    lease_s: int | None = None

    def bounds(self, requested: Resources) -> tuple[Resources, Resources]:
        """Least and greatest amounts; a resource without a declared range keeps the requested amount."""
        gpus = self.gpus or Range(requested.gpus, requested.gpus)
        cpus = self.cpus or Range(requested.cpus, requested.cpus)
        mem = self.mem_mb or Range(requested.mem_mb, requested.mem_mb)
        return (
            Resources(cpus.least, gpus.least, mem.least),
            Resources(cpus.greatest, gpus.greatest, mem.greatest),
        )


def parse_mark(comment: str | None) -> Mark | None:
    """The mark in a job comment; None where the comment's first word is not ``tapfinger``.

    The Lua hook (slurm_plugin/lua/tapfinger.lua) reads the same grammar; one test holds both against one table.

    Raises:
        UnitError: the comment begins with ``tapfinger`` but a part of it cannot be read.
    """
    words = _WORD.findall(comment or "")
    if not words or words[0] != "tapfinger":
        return None
    parts: dict[str, str] = {}
    for word in words[1:]:
        key, separator, value = word.partition("=")
        if not separator or not value:
            raise UnitError(f"comment part {word!r}: expected key=value with gpus, cpus, mem, class or lease")
        if key in parts:
            raise UnitError(f"comment part {word!r}: {key} is given twice")
        parts[key] = value
    return mark_of(parts)


def mark_of(parts: Mapping[str, str]) -> Mark:
    """The mark of parts that are already apart. Raises UnitError as ``parse_mark`` does."""
    unknown = sorted(set(parts) - {"gpus", "cpus", "mem", "class", "lease"})
    if unknown:
        raise UnitError(f"comment key {unknown[0]!r}: expected gpus, cpus, mem, class or lease")
    name = parts.get("class", "")
    if name and not _NAME.fullmatch(name):
        raise UnitError(f"class={name}: expected 1-64 letters, digits, '_', '.', '+' or '-'")
    lease = parts.get("lease")
    if lease is not None and not (re.fullmatch(r"[0-9]{1,9}", lease) and 1 <= int(lease) <= 86400):
        raise UnitError(f"lease={lease}: expected 1 to 86400 seconds")
    return Mark(
        gpus=_count_range("gpus", parts.get("gpus"), lowest=0),
        cpus=_count_range("cpus", parts.get("cpus"), lowest=1),
        mem_mb=_memory_range(parts.get("mem")),
        job_class=name,
        lease_s=None if lease is None else int(lease),
    )


def _count_range(key: str, text: str | None, *, lowest: int) -> Range | None:
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]{1,6})(?:-([0-9]{1,6}))?", text)
    if not match:
        raise UnitError(f"{key}={text}: expected a number or a range such as 1-4")
    return _ordered(key, text, int(match[1]), int(match[2] or match[1]), lowest)


def _memory_range(text: str | None) -> Range | None:
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]{1,9}[KMGTkmgt]?)(?:-([0-9]{1,9}[KMGTkmgt]?))?", text)
    if not match:
        raise UnitError(f"mem={text}: expected an amount or a range such as 4G-32G")
    return _ordered("mem", text, memory_mb(match[1]), memory_mb(match[2] or match[1]), 1)


def _ordered(key: str, text: str, least: int, greatest: int, lowest: int) -> Range:
    if not lowest <= least <= greatest <= MAX_AMOUNT:
        raise UnitError(f"{key}={text}: expected {lowest} <= least <= greatest")
    return Range(least, greatest)
