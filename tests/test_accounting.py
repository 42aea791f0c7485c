"""What sacct prints, in every form that sites keep it in, becomes jobs; what does not has a named reason."""

import bz2
import contextlib
import gzip
import json
import lzma
from pathlib import Path

import pyarrow as pa
import pytest
from click.testing import CliRunner
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tapfinger_hpc import trace as traces
from tapfinger_hpc.errors import TraceError
from tapfinger_hpc.state import Resources
from trace_tools import reasons
from trace_tools.cli import trace as command
from trace_tools.convert import Wanted, convert, look
from trace_tools.formats import How
from trace_tools.records import ENDED, of_trace_job
from trace_tools.synth_sacct import write_sacct

SHARED = Path(__file__).parents[2] / "shared" / "data" / "sacct"
HEADER = (
    "JobID|User|Account|Partition|State|Submit|Start|End|Elapsed|Timelimit|NNodes|NCPUS|ReqMem|AllocTRES|MaxRSS|NodeList|"
    "JobName"
)
JOB = (
    "123|anna|lab|gpu|COMPLETED|2024-03-01T10:00:00|2024-03-01T10:00:30|2024-03-01T11:00:30|01:00:00|02:00:00|1|8|16G|"
    "billing=8,cpu=8,gres/gpu:a100=2,gres/gpu=2,mem=16G,node=1||n1|train"
)
STEP = "||lab||COMPLETED|2024-03-01T10:00:30|2024-03-01T10:00:30|2024-03-01T11:00:30|01:00:00||1|8||cpu=8|"
BATCH, EXTERN = f"123.batch{STEP}2097153K|n1|batch", f"123.extern{STEP}512K|n1|extern"
MARCH_1 = 1_709_287_200
"""2024-03-01T10:00:00 UTC."""


def jobs_of(tmp_path: Path, text: str | bytes, **wanted) -> list[traces.TraceJob]:
    """The jobs that these rows become."""
    source, made = tmp_path / "sacct.txt", tmp_path / "t.jsonl"
    source.write_bytes(text.encode() if isinstance(text, str) else text)
    convert([str(source)], made, Wanted(**wanted))
    return list(traces.read_jobs(made))


def counts_of(tmp_path: Path, text: str | bytes, **wanted) -> dict[str, int]:
    source = tmp_path / "sacct.txt"
    source.write_bytes(text.encode() if isinstance(text, str) else text)
    return look([str(source)], Wanted(**wanted)).as_counts()


def with_(row: str = JOB, **fields: str) -> str:
    """The row with other text in these fields."""
    cells = dict(zip(HEADER.split("|"), row.split("|"), strict=True))
    assert fields.keys() <= cells.keys()
    return "|".join({**cells, **fields}.values())


def lines(*rows: str) -> str:
    return "\n".join([HEADER, *rows, ""])


# One job.


def test_a_job_and_its_steps_become_one_job(tmp_path):
    (item,) = jobs_of(tmp_path, lines(JOB, BATCH, EXTERN))
    assert item.job.requested == item.ran.amounts == Resources(8, 2, 16384)
    assert (item.job.job_id, item.job.user, item.job.partitions, item.job.gpu_type) == ("123", "anna", ("gpu",), "a100")
    assert (item.job.submit_time_s, item.ran.start_time_s) == (MARCH_1, MARCH_1 + 30)
    assert (item.ran.elapsed_s, item.job.time_limit_s, item.ran.max_rss_mb) == (3600, 7200, 2049)
    assert (item.ran.state, item.ran.account, item.ran.name) == ("COMPLETED", "lab", "train")
    record = of_trace_job(item)
    assert (record.finished, record.granted, record.max_rss_mb) == (True, Resources(8, 2, 16384), 2049)


def test_a_mark_in_the_comment_gives_class_and_range(tmp_path):
    marked = "tapfinger gpus=1-4 cpus=2-16 class=resnet"
    text = lines(JOB).replace("MaxRSS", "Comment").replace("||n1|train", f"|{marked}|n1|train")
    (item,) = jobs_of(tmp_path, text)
    assert item.job.managed
    assert (item.job.job_class, item.job.minimum.gpus, item.job.maximum.gpus) == ("resnet", 1, 4)
    assert of_trace_job(item).mark.job_class == "resnet"


# Forms.


def delimited(by: str, text: str, *, trailing: bool = False) -> str:
    return "".join(f"{line.replace('|', by)}{by if trailing else ''}\n" for line in text.splitlines())


@pytest.mark.parametrize("by", ["|", "^", "^|^", ";", "\t", "\x1f", "\N{SNOWMAN}", "@@", "~", "%"])
@pytest.mark.parametrize("trailing", [False, True], ids=["P", "p"])
def test_any_delimiter_with_and_without_one_at_the_end(tmp_path, by, trailing):
    plain = jobs_of(tmp_path, lines(JOB, BATCH, EXTERN))
    assert jobs_of(tmp_path, delimited(by, lines(JOB, BATCH, EXTERN), trailing=trailing)) == plain


def test_a_comma_stands_between_fields_where_lists_with_commas_are_quoted(tmp_path):
    quoted = lines(JOB).replace('"', "").split("\n")
    rows = [",".join(f'"{cell}"' if "," in cell else cell for cell in row.split("|")) for row in quoted if row]
    assert jobs_of(tmp_path, "\n".join(rows)) == jobs_of(tmp_path, lines(JOB))
    spaced = rows[0].replace(",", ", ")
    assert jobs_of(tmp_path, "\n".join([spaced, *rows[1:]])) == jobs_of(tmp_path, lines(JOB))


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_line_ends_of_any_machine(tmp_path, end):
    assert jobs_of(tmp_path, lines(JOB, BATCH).replace("\n", end)) == jobs_of(tmp_path, lines(JOB, BATCH))


def test_a_byte_order_mark_and_a_warning_before_the_header_do_no_harm(tmp_path):
    text = "sacct: warning: slow\n" + lines(JOB, BATCH)
    assert jobs_of(tmp_path, b"\xef\xbb\xbf" + text.encode()) == jobs_of(tmp_path, lines(JOB, BATCH))


def test_a_header_that_comes_again_is_no_job(tmp_path):
    other = with_(JobID="124")
    assert len(jobs_of(tmp_path, lines(JOB) + lines(other))) == 2


def test_the_case_of_field_names_and_widths_given_to_sacct_do_not_matter(tmp_path):
    header = HEADER.lower().replace("jobname", "jobname%30")
    assert jobs_of(tmp_path, lines(JOB, BATCH).replace(HEADER, header)) == jobs_of(tmp_path, lines(JOB, BATCH))


def test_named_fields_stand_in_for_a_header(tmp_path):
    how = How(fields=tuple(HEADER.split("|")))
    assert jobs_of(tmp_path, f"{JOB}\n{BATCH}\n", how=how) == jobs_of(tmp_path, lines(JOB, BATCH))


def test_without_a_header_the_fields_are_told_by_what_stands_in_them(tmp_path):
    rows = []
    for number in range(20):
        begun, ended = "2024-03-01T10:10:00", f"2024-03-01T11:10:0{number % 10}"
        rows += [
            f"{5000 + number}|{5000 + number}|u{number % 3}|COMPLETED|2024-03-01T10:00:00|{begun}|{ended}"
            f"|01:00:0{number % 10}|02:00:00|4|cpu=4,mem=8G,node=1|8G|",
            f"{5000 + number}.batch|{5000 + number}.batch||COMPLETED|{begun}|{begun}|2024-03-01T11:10:00"
            f"|01:00:00||4|cpu=4,mem=8G,node=1||{1024 * (number + 1)}K",
        ]
    found = jobs_of(tmp_path, "\n".join(rows))
    assert len(found) == 20
    assert {item.ran.amounts for item in found} == {Resources(4, 0, 8192)}
    assert [item.ran.elapsed_s for item in found[:3]] == [3600, 3601, 3602]
    assert {item.job.time_limit_s for item in found} == {7200}
    assert found[4].ran.max_rss_mb == 5
    assert {item.ran.start_time_s - item.job.submit_time_s for item in found} == {600}


def test_columns_of_fixed_width_are_cut_where_the_dashes_say(tmp_path):
    text = (
        "JobID           JobName  Partition      State    Elapsed        NCPUS      MaxRSS \n"
        "------------ ---------- ---------- ---------- ---------- ------------ ---------- \n"
        "123          a long na+        gpu  COMPLETED   01:00:00            8            \n"
        "123.batch         batch             COMPLETED   01:00:00            8   2097153K \n"
        "124               other        gpu OUT_OF_ME+   00:10:00            4            \n"
        "125               gone         gpu CANCELLED+ 1-00:10:00            4            \n"
    )
    found = jobs_of(tmp_path, text)
    assert [(item.job.job_id, item.ran.state, item.ran.elapsed_s) for item in found] == [
        ("123", "COMPLETED", 3600),
        ("124", "OUT_OF_MEMORY", 600),
        ("125", "CANCELLED", 87000),
    ]
    assert (found[0].ran.max_rss_mb, found[0].ran.amounts.cpus, found[0].ran.name) == (2049, 8, "a long na+")


NAMES = ("train it", "resnet", "a long na+", "tuning of+")


def as_people_read(number: int) -> list[str]:
    """A job and its step as ``sacct -n`` prints them, columns as wide as sacct has them."""
    job, name = f"{98 + number}", NAMES[number % 4]
    clock, begun, over = f"01:00:{number % 60:02d}", "2024-03-01T10:10:00", f"2024-03-01T11:10:{number % 60:02d}"
    state = "COMPLETED" if number % 4 else "CANCELLED+"
    cpus, rss = str(2 ** (number % 5)), f"{1024 * (number + 1)}K"
    widths = (-12, 10, 10, 10, 10, 19, 19, 10, 10)
    rows = [
        (job, name, "gpu", state, clock, begun, over, cpus, ""),
        (f"{job}.batch", "batch", "", "COMPLETED", clock, begun, over, cpus, rss),
    ]
    return [
        " ".join(
            cell.rjust(width) if width > 0 else cell.ljust(-width) for cell, width in zip(row, widths, strict=True)
        )
        for row in rows
    ]


@pytest.mark.parametrize("fields", ["", "JobID,JobName,Partition,State,Elapsed,Start,End,NCPUS,MaxRSS"])
@pytest.mark.parametrize("padded", [True, False])
def test_columns_of_fixed_width_are_found_without_a_header_too(tmp_path, fields, padded):
    rows = [row if padded else row.rstrip() for number in range(40) for row in as_people_read(number)]
    # Words of other lengths than in the lines that the layout is found from.
    rows += [row for number in (902, 99_900) for row in as_people_read(number)] * (not padded)
    found = jobs_of(tmp_path, "\n".join(rows), how=How(fields=tuple(filter(None, fields.split(",")))))
    numbers = [*range(40)] + [902, 99_900] * (not padded)
    assert [item.job.job_id for item in found] == [str(98 + number) for number in numbers]
    for number, item in zip(numbers, found, strict=True):
        assert item.ran.elapsed_s == 3600 + number % 60
        assert item.ran.amounts.cpus == 2 ** (number % 5)
        assert item.ran.state == ("COMPLETED" if number % 4 else "CANCELLED")
        assert item.ran.max_rss_mb == number + 1
    if fields:
        assert {item.ran.name for item in found} == set(NAMES)
        assert {item.job.partitions for item in found} == {("gpu",)}


def zst(data: bytes) -> bytes:
    return pa.compress(data, codec="zstd", asbytes=True)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, zst])
def test_packed_files_are_known_by_their_first_bytes(tmp_path, pack):
    assert jobs_of(tmp_path, pack(lines(JOB, BATCH).encode())) == jobs_of(tmp_path, lines(JOB, BATCH))


def test_a_packed_file_that_ends_early_gives_what_it_holds_and_says_so(tmp_path):
    rows = lines(*(with_(JobID=str(number), User=f"u{number * 7919 % 10007}") for number in range(5000)))
    counts = counts_of(tmp_path, gzip.compress(rows.encode())[:-4000])
    assert counts["cut-short"] == 1
    assert 0 < counts["jobs"] < 5000


def test_standard_input_is_read(tmp_path):
    made = tmp_path / "t.jsonl"
    done = CliRunner().invoke(command, ["convert", "-", "-o", str(made)], input=lines(JOB, BATCH))
    assert done.exit_code == 0, done.output
    assert traces.read_header(made).source == "standard input"


@pytest.mark.parametrize("name", ["t.jsonl", "t.parquet"])
def test_both_kinds_of_file_hold_the_same_jobs_and_have_the_same_hash(tmp_path, name):
    source = tmp_path / "sacct.txt"
    source.write_text(lines(JOB, BATCH, with_(JobID="77", State="TIMEOUT", NNodes="2", AllocTRES="cpu=64,node=2")))
    header = convert([str(source)], tmp_path / name, Wanted())
    plain = convert([str(source)], tmp_path / "other.jsonl", Wanted())
    assert header == plain == traces.read_header(tmp_path / name)
    assert list(traces.read_jobs(tmp_path / name)) == list(traces.read_jobs(tmp_path / "other.jsonl"))
    assert traces.read(tmp_path / name) == traces.read(tmp_path / "other.jsonl")


# Values.


def one(tmp_path: Path, *steps: str, **fields: str) -> traces.TraceJob:
    (item,) = jobs_of(tmp_path, lines(with_(**fields), *steps))
    return item


@pytest.mark.parametrize(
    ("allocated", "gpus", "gpu_type"),
    [
        ("cpu=8,gres/gpu:a100=1,gres/gpu=1,node=1", 1, "a100"),
        ("cpu=8,gres/gpu=1,gres/gpu:a100_80=1,node=1", 1, "a100_80"),
        ("cpu=8,gres/gpu=3,node=1", 3, ""),
        ("cpu=8,gres/gpu:a100=2,gres/gpu:h100=2,gres/gpu=4,node=1", 4, ""),
        ("cpu=8,gres/gpumem=40G,gres/gpuutil=50,node=1", 0, ""),
        ("cpu=8,node=1", 0, ""),
    ],
)
def test_gpus_are_counted_once_typed_or_not(tmp_path, allocated, gpus, gpu_type):
    item = one(tmp_path, AllocTRES=allocated)
    assert (item.ran.amounts.gpus, item.job.gpu_type) == (gpus, gpu_type)


@pytest.mark.parametrize(
    ("line", "gpus"),
    [
        ("sbatch --gres=gpu:2 run.sh", 2),
        ("sbatch -G4 run.sh", 4),
        ("srun --gpus-per-node a100:2 x", 2),
        ("sbatch --gpus-per-task=2 -n 3 run.sh", 6),
        ("sbatch --gpus=h100:1,a100:1 run.sh", 2),
        ("python -G run.sh", 0),
        ("sbatch run.sh", 0),
    ],
)
def test_where_accounting_tracks_no_gpus_the_command_line_tells(tmp_path, line, gpus):
    text = lines(with_(AllocTRES="cpu=8,node=1")).replace("MaxRSS", "SubmitLine").replace("||n1", f"|{line}|n1")
    (item,) = jobs_of(tmp_path, text)
    assert item.ran.amounts.gpus == item.job.requested.gpus == gpus


def test_generic_resources_of_old_releases_are_counted_for_each_node(tmp_path):
    text = lines(with_(AllocTRES="cpu=8,node=2")).replace("MaxRSS", "ReqGRES").replace("||n1", "|gpu:tesla:2|n1")
    (item,) = jobs_of(tmp_path, text)
    assert (item.ran.amounts.gpus, item.job.gpu_type, item.ran.nodes) == (4, "tesla", 2)


@pytest.mark.parametrize(
    ("asked", "mem_mb"),
    [
        ("2147486648Mn", 8 * 3000),
        ("3000Mc", 8 * 3000),
        ("100Gn", 2 * 102400),
        ("128G", 131072),
        ("62.50G", 64000),
        ("1.5T", 1572864),
        ("2048", 2048),
        ("0n", 0),
        ("0", 0),
        ("", 0),
    ],
)
def test_memory_that_was_asked_for_is_that_of_the_whole_job(tmp_path, asked, mem_mb):
    item = one(tmp_path, ReqMem=asked, AllocTRES="cpu=8,node=2", NNodes="2")
    assert item.job.requested.mem_mb == mem_mb


@pytest.mark.parametrize(
    ("measured", "mem_mb"), [("2048K", 2), ("1.40G", 1434), ("438.50M", 439), ("2097152", 2), ("0", None), ("", None)]
)
def test_measured_memory_in_any_unit(tmp_path, measured, mem_mb):
    assert one(tmp_path, with_(BATCH, MaxRSS=measured)).ran.max_rss_mb == mem_mb


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [
        ("02:00:00", 7200),
        ("1-00:00:00", 86400),
        ("Partition_Limit", None),
        ("UNLIMITED", None),
        ("", None),
        ("90", 5400),
    ],
)
def test_time_limits(tmp_path, limit, seconds):
    assert one(tmp_path, Timelimit=limit).job.time_limit_s == seconds


@pytest.mark.parametrize(
    ("spelled", "state"),
    [
        ("CANCELLED by 1300204", "CANCELLED"),
        ("CANCELLED+", "CANCELLED"),
        ("OUT_OF_ME+", "OUT_OF_MEMORY"),
        ("TO", "TIMEOUT"),
        ("NODE_FAIL", "NODE_FAIL"),
    ],
)
def test_spellings_of_states(tmp_path, spelled, state):
    assert one(tmp_path, State=spelled).ran.state == state


def test_epochs_are_times_too(tmp_path):
    item = one(tmp_path, Submit="1709287200", Start="1709287230", End="1709290830")
    assert (item.job.submit_time_s, item.ran.start_time_s) == (MARCH_1, MARCH_1 + 30)


def test_local_times_are_those_of_the_zone_and_summer_time_is_known(tmp_path):
    winter = jobs_of(tmp_path, lines(JOB), zone="Europe/Helsinki")[0]
    assert winter.job.submit_time_s == MARCH_1 - 2 * 3600
    summer = one(tmp_path, Submit="2024-07-01T10:00:00")
    helsinki = jobs_of(tmp_path, lines(with_(Submit="2024-07-01T10:00:00")), zone="Europe/Helsinki")[0]
    assert summer.job.submit_time_s - helsinki.job.submit_time_s == 3 * 3600


def test_a_night_when_clocks_went_back_does_not_change_how_long_a_job_ran(tmp_path):
    night = with_(
        Start="2024-10-27T02:30:00", End="2024-10-27T02:40:00", Elapsed="01:10:00", Submit="2024-10-27T02:00:00"
    )
    (item,) = jobs_of(tmp_path, lines(night), zone="Europe/Berlin")
    assert item.ran.elapsed_s == 4200


@pytest.mark.parametrize("name", ["t.jsonl", "t.parquet"])
def test_amounts_that_cannot_be_meant_are_not_believed(tmp_path, name):
    absurd = "9" * 15
    rows = [
        with_(JobID="1", ReqMem=f"{absurd}T", AllocTRES=f"cpu={absurd},mem={absurd}G,gres/gpu={absurd},node={absurd}"),
        with_(JobID="2", ReqMem="900000Tc", AllocTRES="", NCPUS=absurd, NNodes=absurd),
        with_(JobID="3", Timelimit="9999999999-00:00:00", Submit=absurd[:12], Start=absurd[:12]),
        with_(JobID="4", Elapsed="99999999999999-00:00:00"),
    ]
    source = tmp_path / "sacct.txt"
    source.write_text(lines(JOB, *rows))
    convert([str(source)], tmp_path / name, Wanted())
    read = {item.job.job_id: item for item in traces.read(tmp_path / name).jobs}
    assert {"1", "2", "3", "123"} <= read.keys()
    assert read["1"].ran.amounts.gpus == 0
    assert read["3"].job.time_limit_s is None


@pytest.mark.parametrize(
    ("asked", "allocated"), [("gpu:tesla:2", ""), ("cpu=8,gres/gpu=4,node=2", "cpu=8,gres/gpu=4,node=2")]
)
def test_what_xdmod_keeps_has_no_header_and_either_of_two_fields_for_gpus(tmp_path, asked, allocated):
    row = (
        "12|12|hpc|gpu|normal|lab|lab|100|anna|500|2016-06-26T13:57:00|2016-06-26T13:57:00|2016-06-28T02:55:50|"
        f"2016-06-28T03:55:50|01:00:00|0:0|COMPLETED|2|8|8|3000Mc|{asked}|{allocated}|3-00:00:00|n[01-02]|train"
    )
    (item,) = jobs_of(tmp_path, row + "\n")
    assert (item.ran.amounts, item.ran.nodes, item.job.user) == (Resources(8, 4, 24000), 2, "anna")
    assert (item.ran.elapsed_s, item.job.time_limit_s, item.ran.name) == (3600, 259200, "train")


# Rows that stand for no job of their own.


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"State": "RUNNING", "End": "Unknown"}, "not-ended"),
        ({"State": "PENDING", "Start": "Unknown", "NodeList": "None assigned"}, "not-ended"),
        ({"State": "REQUEUED"}, "requeued"),
        ({"State": "FOO"}, "unknown-state"),
        ({"State": ""}, "no-state"),
        ({"State": "CANCELLED by 5", "Elapsed": "00:00:00", "NodeList": "None assigned"}, "never-ran"),
        ({"Elapsed": "", "Start": "Unknown"}, "no-duration"),
        ({"Elapsed": "", "End": "2024-03-01T09:00:00"}, "end-before-start"),
        ({"JobID": ""}, "no-job-id"),
    ],
)
def test_a_row_that_makes_no_job_has_a_reason(tmp_path, fields, reason):
    counts = counts_of(tmp_path, lines(JOB.replace("123", "99"), with_(**fields)))
    assert (counts["jobs"], counts["rows"], counts[reason]) == (1, 2, 1)


def test_a_job_of_less_than_a_second_that_had_a_node_did_run(tmp_path):
    item = one(tmp_path, State="FAILED", Elapsed="00:00:00")
    assert item.ran.elapsed_s == 0.5


def test_every_reason_is_one_that_is_explained(tmp_path):
    with pytest.raises(AssertionError):
        reasons.Tally().add("some-reason")
    for name in (*reasons.WRONG, *reasons.LEFT_OUT, *reasons.NOTES):
        assert reasons.meaning(name)


# Steps, arrays, heterogeneous jobs, requeues.


def test_tasks_of_an_array_are_jobs_and_their_steps_are_their_own(tmp_path):
    rows = [text.replace("123", f"123_{task}", 1) for task in (1, 2) for text in (JOB, BATCH)]
    rows[3] = rows[3].replace("2097153K", "10240K")
    found = jobs_of(tmp_path, lines(*rows))
    assert [(item.job.job_id, item.ran.max_rss_mb) for item in found] == [("123_1", 2049), ("123_2", 10)]


def test_steps_far_from_their_job_still_find_it(tmp_path):
    found = jobs_of(
        tmp_path, lines(JOB, with_(JobID="124"), BATCH, BATCH.replace("123", "124").replace("2097153K", "1M"))
    )
    assert [(item.job.job_id, item.ran.max_rss_mb) for item in found] == [("123", 2049), ("124", 1)]


def test_a_step_without_its_job_is_counted(tmp_path):
    counts = counts_of(tmp_path, lines(BATCH, JOB.replace("123", "99")))
    assert (counts["jobs"], counts["step-without-job"], counts["rows"]) == (1, 1, 2)


def test_the_parts_of_a_heterogeneous_job_are_one_job(tmp_path):
    parts = [JOB.replace("123", "1853+0", 1), BATCH.replace("123", "1853+0"), JOB.replace("123", "1853+1", 1)]
    (item,) = jobs_of(tmp_path, lines(*parts))
    assert (item.job.job_id, item.ran.amounts, item.ran.nodes) == ("1853+0", Resources(16, 4, 32768), 2)


def test_of_a_requeued_job_the_last_run_counts(tmp_path):
    first = with_(State="PREEMPTED")
    second = with_(
        Submit="2024-03-01T11:00:31", Start="2024-03-01T11:05:00", End="2024-03-01T11:35:00", Elapsed="00:30:00"
    )
    for rows in ((first, second), (second, first)):
        (item,) = jobs_of(tmp_path, lines(*rows))
        assert item.ran.elapsed_s == 1800
    assert counts_of(tmp_path, lines(first, second))["earlier-run"] == 1


def test_a_job_that_is_going_on_again_has_not_ended(tmp_path):
    again = with_(State="RUNNING", Submit="2024-03-01T11:00:31", Start="2024-03-01T11:05:00", End="Unknown")
    counts = counts_of(tmp_path, lines(with_(State="NODE_FAIL"), again))
    assert (counts["jobs"], counts["earlier-run"], counts["not-ended"]) == (0, 1, 1)


def test_a_job_in_two_files_is_one_job(tmp_path):
    (tmp_path / "a.txt").write_text(lines(JOB))
    (tmp_path / "b.txt").write_text(lines(with_(JobID="124"), JOB))
    tally = look([str(tmp_path / "a.txt"), str(tmp_path / "b.txt")], Wanted())
    assert (tally.jobs, tally.counts["duplicate"]) == (2, 1)


def test_an_id_that_is_used_again_by_another_user_is_another_job(tmp_path):
    assert len(jobs_of(tmp_path, lines(JOB, with_(User="bert", Submit="2024-06-01T10:00:00")))) == 2


# Broken lines.


def test_a_broken_line_costs_its_record_alone(tmp_path):
    rows = [with_(JobID=str(number)) for number in range(1, 100)]
    rows[30] = rows[30][:40]
    rows[60] = "|" * 40
    counts = counts_of(tmp_path, lines(*rows))
    assert (counts["jobs"], counts["broken-line"], counts["rows"]) == (97, 2, 99)


@pytest.mark.parametrize("name", ["with | the delimiter", "two\nlines", "a|b\nlines", "a|b\nc|d", "a\rb"])
def test_a_name_with_delimiters_or_line_breaks_in_it_is_put_together_again(tmp_path, name):
    odd = JOB.replace("123", "124").replace("train", name)
    found = jobs_of(tmp_path, lines(JOB, odd, with_(JobID="125")))
    assert [item.job.job_id for item in found] == ["123", "124", "125"]
    assert found[2].ran.name == "train"


def test_text_that_is_not_utf8_costs_nothing_but_its_letters(tmp_path):
    found = jobs_of(tmp_path, lines(JOB, with_(JobID="124")).encode().replace(b"train", b"tr\xe4in", 1))
    assert [item.ran.name for item in found] == ["tr\N{REPLACEMENT CHARACTER}in", "train"]


def test_a_line_of_many_megabytes_is_passed_over(tmp_path):
    counts = counts_of(tmp_path, lines(JOB) + "x" * (40 << 20) + "\n" + with_(JobID="124") + "\n")
    assert (counts["jobs"], counts["line-too-long"]) == (2, 1)


@pytest.mark.parametrize("letters", [900_000, 1_500_000, 5_000_000])
def test_a_row_with_an_endless_name_costs_at_most_itself(tmp_path, letters):
    counts = counts_of(tmp_path, lines(JOB, with_(JobID="124", JobName="x" * letters), with_(JobID="125")))
    assert counts["jobs"] + counts.get("line-too-long", 0) == 3
    assert counts["jobs"] >= 2


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"sacct: fatal: Bad job/step specified: -n\n", "fatal: Bad job"),
        (bytes(range(256)) * 50, "neither a header"),
        (b"Dear admin,\nplease find attached nothing.\n", "neither a header"),
        (b'{"jobs": []}', "no job that ended"),
        (b"{", "no job that ended"),
        (b"\x1f\x8b garbage", "cannot be unpacked"),
        (lines(with_(State="RUNNING")).encode(), "not-ended 1"),
        (b"x" * (3 << 20), "begins with 'xxx"),
        (b'{"jobs": [{"job_id": 5, "name": "' + b"x" * (40 << 20), "more than 16 MiB"),
    ],
)
def test_what_holds_no_job_is_refused_and_nothing_is_written(tmp_path, data, said):
    source, made = tmp_path / "sacct.txt", tmp_path / "t.jsonl"
    source.write_bytes(data)
    made.write_text("as it was")
    done = CliRunner().invoke(command, ["convert", str(source), "-o", str(made)])
    assert isinstance(done.exception, TraceError)
    assert said in str(done.exception)
    assert made.read_text() == "as it was"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["sacct.txt", "t.jsonl"]


def test_a_source_is_not_written_over(tmp_path):
    source = tmp_path / "sacct.txt"
    source.write_text(lines(JOB))
    with pytest.raises(TraceError, match="another name"):
        convert([str(source)], source, Wanted())
    assert source.read_text() == lines(JOB)


def test_where_nothing_can_be_written_it_is_said(tmp_path):
    source = tmp_path / "sacct.txt"
    source.write_text(lines(JOB))
    for name in ("t.jsonl", "t.parquet"):
        with pytest.raises(TraceError, match=r"cannot be written: .*No such file"):
            convert([str(source)], tmp_path / "nowhere" / name, Wanted())


@pytest.mark.parametrize("name", ["t.jsonl", "t.parquet"])
def test_a_trace_is_not_converted_again(tmp_path, name):
    source = tmp_path / "sacct.txt"
    source.write_text(lines(JOB))
    convert([str(source)], tmp_path / name, Wanted())
    with pytest.raises(TraceError, match="a trace already"):
        convert([str(tmp_path / name)], tmp_path / "other.jsonl", Wanted())


ROWS = st.lists(
    st.sampled_from(
        [JOB, BATCH, EXTERN, JOB.replace("123", "124_7"), JOB.replace("123", "9+0"), HEADER, "", "|||", "x"]
    ),
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=400), ROWS, st.booleans(), st.integers(0, 2000))
@example(b"\x00", [JOB], True, 0)
@example(b'"', [JOB, BATCH], True, 300)
def test_no_bytes_whatever_make_it_crash_and_every_row_is_accounted_for(
    tmp_path_factory, junk, rows, has_header, where
):
    text = ("\n".join([HEADER, *rows] if has_header else rows)).encode()
    source = tmp_path_factory.mktemp("junk") / "sacct.txt"
    source.write_bytes(text[:where] + junk + text[where:])
    try:
        tally = look([str(source)], Wanted())
    except TraceError:
        return
    used = tally.jobs + tally.steps + tally.counts.get("het-job", 0)
    gone = sum(
        count for name, count in tally.counts.items() if name in {*reasons.WRONG, *reasons.LEFT_OUT} - {"cut-short"}
    )
    assert tally.rows == used + gone


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=200))
def test_any_text_in_any_field_is_read_or_counted(tmp_path_factory, text):
    cell = text.replace("|", "").replace("\n", "").replace("\r", "")
    source = tmp_path_factory.mktemp("cells") / "sacct.txt"
    rows = [with_(JobID=str(index + 1), **{name: cell}) for index, name in enumerate(HEADER.split("|")[1:])]
    source.write_bytes(lines(JOB.replace("123", "99"), *rows).encode("utf-8", "surrogatepass"))
    tally = look([str(source)], Wanted())
    assert tally.rows == len(rows) + 1
    assert tally.jobs >= 1


# JSON.


def document(*jobs: dict) -> str:
    return json.dumps({"meta": {"x": {"jobs": 1}}, "jobs": list(jobs), "errors": []})


def number(value: int | None) -> dict:
    return {"set": value is not None, "infinite": False, "number": value or 0}


def json_job(**fields) -> dict:
    """A job as Slurm 23.11 and later print it."""
    step = {
        "step": {"id": "123.batch", "name": "batch"},
        "tres": {"requested": {"max": [{"type": "mem", "name": "", "count": 2147484672, "task": 0}]}},
    }
    tres = [
        {"type": "cpu", "name": "", "count": 8},
        {"type": "mem", "name": "", "count": 16384},
        {"type": "energy", "name": "", "count": -2},
        {"type": "node", "name": "", "count": 1},
        {"type": "gres", "name": "gpu", "count": 2},
        {"type": "gres", "name": "gpu:a100", "count": 2},
    ]
    return {
        "job_id": 123, "user": "anna", "account": "lab", "partition": "gpu", "name": "train", "nodes": "n1",
        "allocation_nodes": 1, "cluster": "hpc", "priority": number(7),
        "comment": {"job": "tapfinger class=resnet"},
        "array": {"job_id": 0, "task_id": number(None), "task": ""}, "het": {"job_id": 0, "job_offset": number(None)},
        "state": {"current": ["COMPLETED"], "reason": "None"},
        "required": {"CPUs": 8, "memory_per_node": number(16384)},
        "time": {"elapsed": 3600, "submission": MARCH_1, "eligible": MARCH_1, "start": MARCH_1 + 30,
                 "end": MARCH_1 + 3630, "limit": number(120)},
        "tres": {"allocated": tres, "requested": tres}, "steps": [step], **fields,
    }  # fmt: skip


def test_json_says_the_same_as_text(tmp_path):
    (item,) = jobs_of(tmp_path, document(json_job()))
    assert item.job.requested == item.ran.amounts == Resources(8, 2, 16384)
    assert (item.job.job_id, item.job.gpu_type, item.job.time_limit_s, item.ran.max_rss_mb) == (
        "123",
        "a100",
        7200,
        2049,
    )
    assert (item.job.submit_time_s, item.ran.elapsed_s, item.job.job_class) == (MARCH_1, 3600, "resnet")


@pytest.mark.parametrize(
    "older",
    [
        {"state": {"current": "COMPLETED"}},
        {
            "priority": 7,
            "array": {"job_id": 0, "task_id": None, "task": None},
            "het": {"job_id": 0, "job_offset": None},
        },
        {"required": {"CPUs": 8, "memory": -(2**63) + 2048}},
        {"required": {"CPUs": 8, "memory": 16384}},
        {"time": {**json_job()["time"], "limit": 120}},
        {"comment": "tapfinger class=resnet"},
        {"user": "", "association": {"user": "anna"}},
        {"user": None, "association": {"user": "anna"}},
    ],
)
def test_json_of_every_release_says_the_same(tmp_path, older):
    assert jobs_of(tmp_path, document(json_job(**older))) == jobs_of(tmp_path, document(json_job()))


def test_json_ids_of_arrays_and_heterogeneous_jobs(tmp_path):
    task = json_job(array={"job_id": 123, "task_id": number(0), "task": ""}, job_id=130)
    parts = [json_job(het={"job_id": 200, "job_offset": number(offset)}, job_id=200 + offset) for offset in (0, 1)]
    found = jobs_of(tmp_path, document(task, *parts))
    assert [(item.job.job_id, item.ran.amounts.gpus) for item in found] == [("123_0", 2), ("200+0", 4)]


def test_json_without_a_limit_has_none(tmp_path):
    unlimited = {**json_job()["time"], "limit": {"set": False, "infinite": True, "number": 0}}
    assert jobs_of(tmp_path, document(json_job(time=unlimited)))[0].job.time_limit_s is None


@pytest.mark.parametrize(
    "text", ["[{}]", "{}", '{{"jobs": [{}]}}', '{{"errors": [{{"jobs": [1]}}], "jobs": [{}], "meta": {{}}}}']
)
def test_jobs_are_found_in_a_list_a_document_or_alone(tmp_path, text):
    assert len(jobs_of(tmp_path, text.format(json.dumps(json_job())))) == 1


def test_truncated_json_gives_the_jobs_that_are_whole(tmp_path):
    text = document(*(json_job(job_id=number) for number in range(1, 60)))
    counts = counts_of(tmp_path, text[: len(text) // 2])
    assert 25 <= counts["jobs"] <= 31
    assert counts["cut-short"] == 1


def test_a_job_of_json_that_makes_no_sense_costs_itself_alone(tmp_path):
    counts = counts_of(
        tmp_path, document(json_job(), {"job_id": [], "state": 5, "time": "?"}, {"x": 1}, json_job(job_id=9))
    )
    assert counts["jobs"] == 2
    assert counts["bad-json"] == 1


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 1800))
def test_no_change_to_json_makes_it_crash(tmp_path_factory, junk, where):
    text = document(json_job(), json_job(job_id=9)).encode()
    source = tmp_path_factory.mktemp("json") / "sacct.json"
    source.write_bytes(text[:where] + junk + text[where:])
    with contextlib.suppress(TraceError):
        assert look([str(source)], Wanted()).jobs <= 2


# Identities, filters, counts.


def test_identities_become_hashes_that_depend_on_the_salt_alone(tmp_path):
    rows = lines(JOB, with_(JobID="124", JobName="train_2"), with_(JobID="125", JobName="train_3"))
    found = jobs_of(tmp_path, rows, salt=b"one")
    text = (tmp_path / "t.jsonl").read_text()
    assert not any(word in text for word in ("anna", "lab", "train"))
    assert found[1].ran.name == found[2].ran.name != found[0].ran.name
    assert jobs_of(tmp_path, rows, salt=b"one") == found
    assert jobs_of(tmp_path, rows, salt=b"two")[0].job.user != found[0].job.user


def test_only_the_jobs_that_were_asked_for(tmp_path):
    rows = lines(JOB, with_(JobID="124", Partition="cpu"), with_(JobID="125", Submit="2024-03-02T00:00:00"))
    assert [item.job.job_id for item in jobs_of(tmp_path, rows, partitions=("gpu",), until_s=MARCH_1 + 9)] == ["123"]
    header = traces.read_header(tmp_path / "t.jsonl")
    assert (header.filters["partition"], header.counts["filtered"], header.jobs) == ("gpu", 2, 1)


def test_the_command_shows_counts_and_examples_and_fails_where_rows_are_unusable(tmp_path):
    source = tmp_path / "sacct.txt"
    source.write_text(lines(JOB, with_(JobID="124", State="FOO"), with_(JobID="125", State="RUNNING")))
    shown = CliRunner().invoke(command, ["check", str(source)])
    assert shown.exit_code == 1
    assert "unusable: 1 unknown-state" in shown.output
    assert "JobID=124" in shown.output
    as_json = json.loads(CliRunner().invoke(command, ["check", str(source), "--json"]).output)
    assert as_json["counts"]["not-ended"] == 1
    source.write_text(lines(JOB))
    assert CliRunner().invoke(command, ["check", str(source)]).exit_code == 0


def test_a_zone_or_a_moment_that_nobody_knows_is_refused(tmp_path):
    source = tmp_path / "sacct.txt"
    source.write_text(lines(JOB))
    arguments = ["convert", str(source), "-o", str(tmp_path / "t.jsonl")]
    for option, value in (("--timezone", "Mars/Olympus"), ("--since", "yesterday-ish")):
        done = CliRunner().invoke(command, [*arguments, option, value])
        assert isinstance(done.exception, TraceError)
        assert value in str(done.exception)


# Large files.


def test_made_up_accounting_is_the_same_for_the_same_seed_and_is_read_whole_over_many_blocks(tmp_path, monkeypatch):
    write_sacct(tmp_path / "a.txt", 3000, 5)
    write_sacct(tmp_path / "b.txt", 3000, 5)
    assert (tmp_path / "a.txt").read_bytes() == (tmp_path / "b.txt").read_bytes()
    whole = convert([str(tmp_path / "a.txt")], tmp_path / "whole.jsonl", Wanted())
    monkeypatch.setattr("trace_tools.blocks.Source.line_blocks.__defaults__", (50_000,))
    in_blocks = convert([str(tmp_path / "a.txt")], tmp_path / "blocks.jsonl", Wanted())
    assert (whole.counts["rows"], whole.counts["steps"]) == (9000, 6000)
    assert whole.jobs == 3000 - whole.counts["not-ended"]
    assert in_blocks.sha256 == whole.sha256


# Real files.

REAL_FILES = [path for path in sorted(SHARED.rglob("*.*")) if path.suffix != ".md" and path.parent != SHARED]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real files are not here")
@pytest.mark.parametrize("path", REAL_FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_of_every_real_file_nearly_all_jobs_that_ended_are_used_and_the_rest_is_named(path):
    try:
        tally = look([str(path)], Wanted())
    except TraceError as error:
        assert "fatal" in str(error)
        return
    pieces = path.name == "rows.txt" or "unknown-job-state" in path.name or "data3" in path.name
    assert tally.share_used >= 0.99 or not tally.jobs + tally.wrong or pieces, tally.as_counts()
    assert ENDED
