"""Jobs as pyslurm tells them, recorded beside what squeue said of them at the same moment (22.05 and 24.11)."""

import gzip
import importlib.metadata
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

from slurm_plugin import parse, pyslurm_jobs, versions
from slurm_plugin.parse import JobRecord
from tapfinger_hpc.errors import SlurmError

Said = dict[str, Any]


def recorded(release: str) -> Said:
    return json.loads(gzip.decompress((Path(__file__).parent / "data" / f"pyslurm-{release}.json.gz").read_bytes()))


@pytest.fixture(params=["22.05", "24.11"])
def said(request: pytest.FixtureRequest) -> Said:
    return recorded(request.param)


def by_name(records: list[JobRecord]) -> dict[str, JobRecord]:
    # squeue counts tasks with records of their own among those that are still together.
    return {
        record.job_id: replace(record, array_tasks="", tasks_together=()) if record.together else record
        for record in records
    }


def told(said: Said) -> dict[str, JobRecord]:
    return by_name(pyslurm_jobs.records(said["pyslurm"], {0: "root"}.__getitem__))


def test_every_job_is_what_squeue_says_it_is(said: Said) -> None:
    squeue = by_name(list(parse.jobs(said["squeue"].encode("latin1")).values()))
    assert len(squeue) >= 8
    assert {name: record for name, record in told(said).items() if name in squeue} == squeue


def test_a_task_that_squeue_hides_among_the_others_is_there_and_not_among_them(said: Said) -> None:
    records = {r.job_id: r for r in pyslurm_jobs.records(said["pyslurm"], str)}
    (together,) = [
        r for r in records.values() if r.together and len(r.tasks_together) == 9 and "%" not in r.array_tasks
    ]
    assert together.tasks_together == (1, 7, 10, 13, 16, 19, 22, 25, 28)
    assert records[f"{together.array_id}_4"].cpus_asked == 5


def test_jobs_that_have_ended_are_left_out(said: Said) -> None:
    states = {job["job_state"] for job in said["pyslurm"]}
    assert "COMPLETED" in states
    assert {record.state for record in told(said).values()} == {"PD", "R"}


@pytest.mark.parametrize(
    ("installed", "running", "why"),
    [
        ("22.5.3", (22, 5), ""),
        ("24.11.0", (24, 11), ""),
        ("25.11.2", (22, 5), "pyslurm 25.11.2 does not fit Slurm 22.05"),
        ("25.11.2", (25, 11), "up to 24.11"),
        (None, (22, 5), "pyslurm is not installed"),
    ],
)
def test_pyslurm_serves_the_slurm_that_it_was_built_for(
    installed: str | None, running: versions.Version, why: str
) -> None:
    def version(name: str) -> str:
        if installed is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed

    said = pyslurm_jobs.why_not(running, version)
    assert why in said
    assert bool(said) == bool(why)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pyslurm of 22.05 with the recorded jobs."""
    jobs = recorded("22.05")["pyslurm"]
    library = SimpleNamespace(job=lambda: SimpleNamespace(get=lambda: dict(enumerate(jobs))))
    monkeypatch.setattr(pyslurm_jobs, "_conf_in_use", None)
    monkeypatch.setenv("SLURM_BITSTR_LEN", "")
    monkeypatch.setattr(pyslurm_jobs, "why_not", lambda running: "" if running == (22, 5) else "it does not fit")
    monkeypatch.setattr(pyslurm_jobs.importlib, "import_module", lambda name: library)


def test_it_is_taken_where_it_fits_and_left_where_not(installed: None) -> None:
    found = pyslurm_jobs.chosen("auto", "/one/slurm.conf", (22, 5))
    assert found is not None
    assert len(found()) == len(told(recorded("22.05")))
    assert pyslurm_jobs.chosen("auto", "/one/slurm.conf", (24, 11)) is None
    assert pyslurm_jobs.chosen("scontrol", "/one/slurm.conf", (22, 5)) is None
    with pytest.raises(SlurmError, match=r"slurm\.backend is pyslurm, but it does not fit; set it to auto or scontrol"):
        pyslurm_jobs.chosen("pyslurm", "/one/slurm.conf", (24, 11))


def test_one_process_sees_one_cluster_through_it(installed: None) -> None:
    assert pyslurm_jobs.chosen("pyslurm", "/one/slurm.conf", (22, 5))
    assert pyslurm_jobs.chosen("pyslurm", "/one/slurm.conf", (22, 5))
    assert pyslurm_jobs.chosen("auto", "/another/slurm.conf", (22, 5)) is None
    with pytest.raises(SlurmError, match=r"serves /one/slurm\.conf in this process already"):
        pyslurm_jobs.chosen("pyslurm", "/another/slurm.conf", (22, 5))
