"""Accounting of a made-up cluster, as ``tapfinger trace collect`` would have written it: to measure and to try with.

Drawn are, with the shares below: Poisson arrivals, users whose activity falls as a power of their rank, log-normal
durations, requests of CPUs, GPUs and memory, limits that over-estimate, states, and the peak memory of two steps a job.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tapfinger_hpc.errors import TraceError
from tapfinger_hpc.files import whole_or_not_at_all
from trace_tools.fields import DELIMITER, FIELDS

FIRST_SUBMIT_S = 1_735_689_600
"""The first of January 2025, UTC."""
JOBS_PER_DAY = 20_000
USERS = 200
GPU_SHARES = ((0, 0.45), (1, 0.40), (2, 0.03), (4, 0.09), (8, 0.03))
"""Requests of all jobs; those with GPUs in about the shares of Philly and Muri's lists."""
STATE_SHARES = (
    ("COMPLETED", 0.78), ("FAILED", 0.10), ("CANCELLED by 1000", 0.05), ("TIMEOUT", 0.04), ("OUT_OF_MEMORY", 0.015),
    ("NODE_FAIL", 0.005), ("RUNNING", 0.01),
)  # fmt: skip
MEAN_LOG_S, SPREAD_LOG_S = 6.5, 1.8
"""Of the logarithm of a job's seconds: half last less than eleven minutes, one in twenty more than three hours."""
_TYPES = ("a100", "h100", "l40s")
_KINDS = ("train", "eval", "finetune", "preprocess", "sweep", "render", "infer", "tokenize", "simulate", "notebook")
_BATCH = 100_000


def write_sacct(path: Path, jobs: int, seed: int, *, delimiter: str = DELIMITER) -> None:
    """Writes so many jobs of three rows each; the same seed gives the same bytes. Whole or not at all."""
    with whole_or_not_at_all(path, TraceError) as partial, partial.open("wb") as file:
        _write(file, jobs, seed, delimiter)


def _write(file: IO[bytes], jobs: int, seed: int, delimiter: str) -> None:
    file.write(delimiter.join(FIELDS).encode() + b"\n")
    for lines in _blocks(jobs, seed, delimiter):
        file.write(lines)


def _blocks(jobs: int, seed: int, delimiter: str) -> Iterator[bytes]:
    clock_s = float(FIRST_SUBMIT_S)
    for first in range(0, jobs, _BATCH):
        count = min(_BATCH, jobs - first)
        draw = np.random.default_rng((seed, first))
        submits = clock_s + np.cumsum(draw.exponential(86_400 / JOBS_PER_DAY, count))
        clock_s = float(submits[-1])
        lines = _rows(draw, np.arange(first, first + count) + 1_000_001, submits.astype(np.int64), delimiter)
        yield "\n".join([*lines.to_pylist(), ""]).encode()


def _rows(draw: np.random.Generator, ids: np.ndarray, submit: np.ndarray, delimiter: str) -> pa.Array:
    """The rows of these jobs, the three of each in one text."""
    count = len(ids)
    state = _drawn(draw, STATE_SHARES, count)
    gpus = np.array([amount for amount, _ in GPU_SHARES])[_codes(draw, GPU_SHARES, count)]
    cpus = np.where(gpus > 0, gpus * draw.choice((4, 8, 16), count), draw.choice((1, 2, 4, 8, 16, 32), count))
    mem_mb = cpus * draw.choice((2048, 4000, 8192), count)
    lasts = np.maximum(1, np.exp(draw.normal(MEAN_LOG_S, SPREAD_LOG_S, count))).astype(np.int64)
    waits = draw.exponential(600, count).astype(np.int64)
    start = submit + waits
    limit_min = np.minimum(20_160, np.ceil(lasts / 60 * draw.uniform(1.2, 6, count))).astype(np.int64) + 1
    running = pc.equal(state, "RUNNING")
    user = _text("user", np.minimum(USERS, draw.zipf(1.4, count)))
    kind = pa.array(_KINDS).take(pa.array(draw.integers(0, len(_KINDS), count)))
    name = pc.binary_join_element_wise(kind, _text("lr", draw.integers(1, 9, count)), _text("", ids % 40), "_")
    gpu_type = pa.array(_TYPES).take(pa.array(draw.integers(0, len(_TYPES), count)))
    tres = pc.binary_join_element_wise(
        _text("billing=", cpus), _text(",cpu=", cpus), _gres(gpus, gpu_type), _text(",mem=", mem_mb), "M,node=1", ""
    )
    node = _text("node", draw.integers(1, 65, count))
    rss_kib = (mem_mb * 1024 * draw.beta(2, 5, count)).astype(np.int64)
    shared = {
        "Cluster": "made",
        "Account": _text("group", draw.integers(1, 30, count)),
        "State": state,
        "Start": _text("", start),
        "End": pc.if_else(running, "Unknown", _text("", start + lasts)),
        "ElapsedRaw": _text("", lasts),
        "NNodes": "1",
        "NCPUS": _text("", cpus),
        "ReqCPUS": _text("", cpus),
        "NodeList": node,
    }
    job = {
        **shared,
        "JobID": _text("", ids),
        "User": user,
        "Partition": pc.if_else(pa.array(gpus > 0), "gpu", "cpu"),
        "QOS": "normal",
        "Submit": _text("", submit),
        "Eligible": _text("", submit),
        "TimelimitRaw": _text("", limit_min),
        "ReqMem": pc.binary_join_element_wise(_text("", mem_mb), "M", ""),
        "ReqTRES": tres,
        "AllocTRES": tres,
        "Priority": _text("", draw.integers(1, 100_000, count)),
        "SubmitLine": pc.binary_join_element_wise(_text("sbatch -c ", cpus), _text(" -t ", limit_min), " run.sh", ""),
        "JobName": name,
    }
    step_tres = pc.binary_join_element_wise(
        _text("cpu=", cpus), _gres(gpus, gpu_type), _text(",mem=", mem_mb), "M,node=1", ""
    )
    steps = [
        {
            **shared,
            "JobID": pc.binary_join_element_wise(_text("", ids), step, "."),
            "Submit": _text("", start),
            "Eligible": _text("", start),
            "AllocTRES": step_tres,
            "MaxRSS": rss,
            "NTasks": "1",
            "JobName": step,
        }
        for step, rss in (("batch", pc.binary_join_element_wise(_text("", rss_kib), "K", "")), ("extern", "0"))
    ]
    return pc.binary_join_element_wise(*(_line(row, delimiter) for row in (job, *steps)), "\n")


def _line(row: dict[str, pa.Array | str], delimiter: str) -> pa.Array:
    return pc.binary_join_element_wise(*(row.get(name, "") for name in FIELDS), delimiter)


def _text(before: str, values: np.ndarray) -> pa.Array:
    return pc.binary_join_element_wise(before, pa.array(values).cast(pa.string()), "")


def _gres(gpus: np.ndarray, gpu_type: pa.Array) -> pa.Array:
    """The typed entry and its untyped twin, as Slurm lists one GPU twice."""
    count = _text("", gpus)
    both = pc.binary_join_element_wise(",gres/gpu:", gpu_type, "=", count, ",gres/gpu=", count, "")
    return pc.if_else(pa.array(gpus > 0), both, "")


def _codes(draw: np.random.Generator, shares: Sequence[tuple[object, float]], count: int) -> np.ndarray:
    return draw.choice(len(shares), count, p=[share for _, share in shares])


def _drawn(draw: np.random.Generator, shares: Sequence[tuple[str, float]], count: int) -> pa.Array:
    return pa.array([name for name, _ in shares]).take(pa.array(_codes(draw, shares, count)))
