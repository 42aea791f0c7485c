"""What is asked of sacct: only what it knows, in pieces, and nothing is kept of an answer that is not whole."""

import gzip
from pathlib import Path

import pytest

from slurm_plugin.accounting import save
from slurm_plugin.commands import Answer, CommandError
from tapfinger_hpc.errors import SlurmError
from trace_tools.convert import Wanted, look
from trace_tools.fields import DELIMITER, FIELDS, fields_to_ask, known_fields

HELP_22 = (
    "Account             AdminComment        AllocCPUS           AllocNodes\nAllocTRES           Cluster  Comment\n"
    + "  ".join(FIELDS)
)
DAY = 86_400
MARCH_1 = 1_709_251_200
"""2024-03-01, midnight."""


class Sacct:
    """Answers as sacct does, and remembers what it was asked."""

    def __init__(
        self, *answers: bytes, helpformat: str = HELP_22, version: str = "slurm-wlm 22.05.8", rc: int = 0
    ) -> None:
        self.asked: list[list[str]] = []
        self._answers = list(answers)
        self._help, self._version, self._rc = helpformat, version, rc

    def __call__(self, argv: list[str]) -> Answer:
        if "--helpformat" in argv:
            return Answer(tuple(argv), 0, self._help.encode(), "")
        if "--version" in argv:
            return Answer(tuple(argv), 0, self._version.encode(), "")
        self.asked.append(list(argv))
        if self._rc:
            return Answer(tuple(argv), self._rc, b"", "sacct: error: Slurm accounting storage is disabled")
        return Answer(tuple(argv), 0, self._answers.pop(0) if self._answers else b"", "")

    def option(self, name: str) -> list[str]:
        return [word.partition("=")[2] for argv in self.asked for word in argv if word.startswith(f"--{name}=")]


def row(**told: str) -> bytes:
    return DELIMITER.join(told.get(name, "") for name in FIELDS).encode() + b"\n"


ENDED = row(
    JobID="7", State="COMPLETED", Submit="1709251300", Start="1709251310", ElapsedRaw="60", NNodes="1", NCPUS="2"
)


def test_time_is_asked_for_in_days_and_what_comes_back_can_be_read(tmp_path: Path):
    sacct = Sacct(ENDED, b"", ENDED.replace(b"7", b"8", 1))
    output = tmp_path / "sacct.txt"
    assert save(sacct, output, MARCH_1 + 3600, MARCH_1 + 2 * DAY + 5, ["--allusers"]) == 2
    assert sacct.option("starttime") == ["2024-03-01T01:00:00", "2024-03-02T00:00:00", "2024-03-03T00:00:00"]
    assert sacct.option("endtime") == ["2024-03-02T00:00:00", "2024-03-03T00:00:00", "2024-03-03T00:00:05"]
    assert look([str(output)], Wanted()).jobs == 2


def test_a_job_that_ends_at_midnight_is_told_twice_and_is_one_job(tmp_path: Path):
    save(Sacct(ENDED, ENDED), tmp_path / "sacct.txt.gz", MARCH_1, MARCH_1 + 2 * DAY, [])
    assert gzip.decompress((tmp_path / "sacct.txt.gz").read_bytes()).count(b"COMPLETED") == 2
    tally = look([str(tmp_path / "sacct.txt.gz")], Wanted())
    assert (tally.jobs, tally.counts["duplicate"]) == (1, 1)


def test_a_field_that_the_installed_sacct_does_not_know_is_not_asked_for():
    old = known_fields("JobID Elapsed Timelimit ReqGRES AllocGRES State JobName AllocCPUS NCPUS")
    assert fields_to_ask(old) == ("JobID", "State", "Elapsed", "Timelimit", "NCPUS", "ReqGRES", "AllocGRES", "JobName")
    assert "ReqGRES" not in fields_to_ask(known_fields(HELP_22))


@pytest.mark.parametrize(("version", "asked"), [("slurm 17.02.11", False), ("slurm 26.05.5", True), ("?", True)])
def test_a_state_that_the_installed_sacct_does_not_know_is_not_asked_for(tmp_path: Path, version, asked):
    sacct = Sacct(version=version)
    save(sacct, tmp_path / "sacct.txt", MARCH_1, MARCH_1 + 5, [])
    assert ("OOM" in sacct.option("state")[0].split(",")) is asked


def test_where_accounting_is_off_nothing_is_written_and_it_is_said(tmp_path: Path):
    with pytest.raises(SlurmError, match="needs slurmdbd"):
        save(Sacct(rc=1), tmp_path / "sacct.txt", MARCH_1, MARCH_1 + 5, [])
    assert list(tmp_path.iterdir()) == []


def test_another_refusal_is_told_as_it_is(tmp_path: Path):
    class Refusing(Sacct):
        def __call__(self, argv: list[str]) -> Answer:
            answer = super().__call__(argv)
            return answer if not self.asked else Answer(tuple(argv), 1, b"", "sacct: fatal: Bad job/step specified")

    with pytest.raises(CommandError, match="Bad job/step"):
        save(Refusing(), tmp_path / "sacct.txt", MARCH_1, MARCH_1 + 5, [])
