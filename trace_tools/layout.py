"""How the rows of a text are cut into fields, and which field is which: from a header, or from what stands in them.

Pure. sacct prints with any delimiter, with and without a header, or in columns of fixed width; tools that keep its
output have layouts of their own.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trace_tools.guessing import ID, guessed, is_clock, is_date, is_state

USED = (
    "JobID", "JobName", "User", "Account", "Cluster", "Partition", "State", "Submit", "Eligible", "Start", "End",
    "Elapsed", "ElapsedRaw", "Timelimit", "TimelimitRaw", "LimitS", "NNodes", "NCPUS", "ReqCPUS", "ReqMem", "ReqTRES",
    "AllocTRES", "ReqGRES", "AllocGRES", "GPUs", "MaxRSS", "NodeList", "SubmitLine", "Comment", "Priority",
)  # fmt: skip
"""The fields that a job is made of, by sacct's names; LimitS and GPUs are those of other lists."""
_ALIASES = {
    "alloccpus": "NCPUS",
    "allocnodes": "NNodes",
    "username": "User",
    "jobstate": "State",
    "timelimit_raw": "TimelimitRaw",
    # As data frames and accounting tools name them.
    "job_id": "JobID",
    "id": "JobID",
    "name": "JobName",
    "job_name": "JobName",
    "submit_time": "Submit",
    "eligible_time": "Eligible",
    "start_time": "Start",
    "end_time": "End",
    "run_time": "ElapsedRaw",
    "runtime": "ElapsedRaw",
    "wallclock_req": "LimitS",
    "nodes_req": "NNodes",
    "nodes_alloc": "NNodes",
    "nodes_used": "NNodes",
    "processors_req": "ReqCPUS",
    "processors_alloc": "NCPUS",
    "cpus_req": "ReqCPUS",
    "cpus_alloc": "NCPUS",
    "gpus_req": "GPUs",
    "gpus_alloc": "GPUs",
    "gpus": "GPUs",
    "submit_line": "SubmitLine",
    "max_rss": "MaxRSS",
}
_SACCT_FIELDS = frozenset(
    [
        "account", "admincomment", "allocnodes", "alloctres", "allocgres", "alloccpus", "associd", "avecpu",
        "avecpufreq", "avediskread", "avediskwrite", "averss", "avevmsize", "avepages", "blockid", "cluster",
        "comment", "constraints", "consumedenergy", "consumedenergyraw", "container", "cputime", "cputimeraw",
        "dbindex", "derivedexitcode", "elapsed", "elapsedraw", "eligible", "end", "exclusive", "exitcode",
        "extra", "failednode", "flags", "gid", "group", "jobid", "jobidraw", "jobname", "layout", "licenses",
        "maxdiskread", "maxdiskreadnode", "maxdiskreadtask", "maxdiskwrite", "maxdiskwritenode",
        "maxdiskwritetask", "maxpages", "maxpagesnode", "maxpagestask", "maxrss", "maxrssnode", "maxrsstask",
        "maxvmsize", "maxvmsizenode", "maxvmsizetask", "mcslabel", "mincpu", "mincpunode", "mincputask",
        "ncpus", "nnodes", "nodelist", "ntasks", "originalsluid", "oversubscribe", "partition", "planned",
        "plannedcpu", "plannedcpuraw", "priority", "qos", "qosraw", "qosreq", "reason", "reqcpufreq",
        "reqcpufreqgov", "reqcpufreqmax", "reqcpufreqmin", "reqcpus", "reqgres", "reqmem", "reqnodes",
        "reqreservation", "reqtres", "reservation", "reservationid", "reserved", "restarts", "resvcpu",
        "resvcpuraw", "segmentsize", "sluid", "start", "state", "stderr", "stdin", "stdout", "submit",
        "submitline", "suspended", "systemcomment", "systemcpu", "timelimit", "timelimitraw", "totalcpu",
        "tresusageinave", "tresusageinmax", "tresusageinmaxnode", "tresusageinmaxtask", "tresusageinmin",
        "tresusageinminnode", "tresusageinmintask", "tresusageintot", "tresusageoutave", "tresusageoutmax",
        "tresusageoutmaxnode", "tresusageoutmaxtask", "tresusageoutmin", "tresusageoutminnode",
        "tresusageoutmintask", "tresusageouttot", "uid", "user", "usercpu", "wckey", "wckeyid", "workdir",
    ]
)  # fmt: skip
_CANONICAL = {name.lower(): name for name in USED} | _ALIASES
_DELIMITERS = ("^|^", "\x1f", "\x1e", "\x01", "|", "\t", ";", ",", "^", "~", "!", "@", "%", "#")
_FREE = ("JobName", "SubmitLine", "Comment", "WorkDir", "AdminComment", "Extra", "Reason", "Constraints")
"""Fields in which a user may write anything, the delimiter too."""
_KNOWN_LAYOUTS = (
    # XDMoD's shredder, now and before it knew qualities of service.
    "JobID JobIDRaw Cluster Partition QOS Account Group GID User UID Submit Eligible Start End Elapsed ExitCode State "
    "NNodes NCPUS ReqCPUS ReqMem ReqTRES AllocTRES Timelimit NodeList JobName",
    "JobID JobIDRaw Cluster Partition Account Group GID User UID Submit Eligible Start End Elapsed ExitCode State "
    "NNodes NCPUS ReqCPUS ReqMem ReqTRES AllocTRES Timelimit NodeList JobName",
    # Sonar.
    "JobID JobIDRaw User Account State Start End AveCPU AveDiskRead AveDiskWrite AveRSS AveVMSize ElapsedRaw ExitCode "
    "Layout MaxRSS MaxVMSize MinCPU ReqCPUS ReqMem ReqNodes Reservation Submit Suspended SystemCPU TimelimitRaw "
    "UserCPU NodeList Partition AllocTRES Priority JobName",
    # slurm-jobinfo.
    "JobID JobName User Partition NodeList NNodes NCPUS NTasks State Submit Start End Timelimit Elapsed TotalCPU "
    "UserCPU SystemCPU ReqMem MaxRSS TRESUsageInTot TRESUsageOutTot MaxDiskWrite MaxDiskRead MaxRSSNode "
    "MaxDiskWriteNode MaxDiskReadNode Comment Reason",
    "JobID JobName User Partition NodeList NNodes NCPUS NTasks State Submit Start End Timelimit Elapsed TotalCPU "
    "UserCPU SystemCPU ReqMem MaxRSS TRESUsageInTot TRESUsageOutTot MaxDiskWrite MaxDiskRead MaxRSSNode "
    "MaxDiskWriteNode MaxDiskReadNode Comment",
    # goslmailer.
    "JobName User Account Partition NodeList NCPUS State Submit Start End Timelimit Elapsed CPUTime TotalCPU UserCPU "
    "SystemCPU ReqMem MaxRSS MaxDiskWrite MaxDiskRead MaxRSSNode MaxDiskWriteNode MaxDiskReadNode Comment",
)
_WITH_GRES = tuple(known.replace("ReqTRES", "ReqGRES") for known in _KNOWN_LAYOUTS if "ReqTRES" in known)
"""The same of releases before 20.11, which had this field instead."""
_ALIGNED = 5
"""Lines that are not blank in the same places by chance."""
_FEWEST_COLUMNS = 3
_DASHES = re.compile(r"\s*-{2,}(\s+-{2,})*\s*")


@dataclass(frozen=True)
class Layout:
    """How one line becomes fields."""

    names: tuple[str, ...]
    """Canonical name of each field, or "" where it is of no use."""
    delimiter: str = ""
    widths: tuple[tuple[int, int], ...] = ()
    """Begin and end of each field where they are of fixed width."""
    quoted: bool = False
    header_line: str = ""
    """As it stands in the file; it may come again."""

    @property
    def free_fields(self) -> tuple[int, ...]:
        """Fields that may hold the delimiter."""
        return tuple(index for index, name in enumerate(self.names) if name in _FREE)

    def believable(self, fields: Sequence[str]) -> bool:
        """Whether these fields of one row say what they should."""
        if len(fields) != len(self.names):
            return False
        row = dict(zip(self.names, fields, strict=True))
        return all(row.get(name, "-").strip() for name in ("JobID", "State")) and _believable(row)


def canonical(name: str) -> str:
    """The field of this name in any spelling, "" if it is of no use."""
    return _CANONICAL.get(name.strip().strip('"').split("%")[0].lower(), "")


def of_header(line: str, following: str = "") -> Layout | None:
    """The layout that a header line declares; None if the line is none."""
    if following and _DASHES.fullmatch(following):
        widths = tuple((found.start(), found.end()) for found in re.finditer(r"-+", following))
        names = tuple(canonical(name) for name in line.split())
        return Layout(names, widths=widths, header_line=line) if any(names) and len(names) == len(widths) else None
    words = re.findall(r'[A-Za-z][A-Za-z_]*(?:%-?\d+)?|""', line)
    known = [word for word in words if _is_field(word)]
    if len(known) < 2 or len(known) < 0.6 * len(words):
        return None
    first, second = words[0], words[1]
    between = line[line.index(first) + len(first) :]
    delimiter = between[: between.index(second)].strip('" ')
    if not delimiter or re.search(r"[\w\s.]", delimiter.replace("\t", "").replace("\x1f", "").replace("\x1e", "")):
        return None
    names = tuple(canonical(name) for name in line.split(delimiter))
    return Layout(names, delimiter, quoted=delimiter == ",", header_line=line) if any(names) else None


def of_fields(names: Sequence[str], lines: Sequence[str], delimiter: str = "") -> Layout | None:
    """The layout of lines without a header whose fields the user has named."""
    widths = () if delimiter else _widths(lines)
    if len(widths) == len(names):
        return Layout(tuple(canonical(name) for name in names), widths=widths)
    delimiter = delimiter or likely_delimiter(lines)
    if not delimiter:
        return None
    spare = max(0, min(line.count(delimiter) for line in lines) + 1 - len(names)) if lines else 0
    used = tuple(canonical(name) for name in names)
    return Layout(used + ("",) * spare, delimiter, quoted=delimiter == ",") if any(used) else None


def of_content(lines: Sequence[str], delimiter: str = "") -> Layout | None:
    """The layout of lines without a header: one of a known tool, else what the fields look like."""
    if not delimiter and (widths := _widths(lines)):
        names = guessed([cut(line, widths) for line in lines])
        if {"JobID", "State"} <= set(names):
            return Layout(names, widths=widths)
    delimiter = delimiter or likely_delimiter(lines)
    if not delimiter:
        return None
    counts = Counter(line.count(delimiter) + 1 for line in lines)
    width = max(counts, key=lambda count: (counts[count], count))
    rows = [line.split(delimiter) for line in lines if line.count(delimiter) + 1 == width]
    for known in (*_KNOWN_LAYOUTS, *_WITH_GRES):
        names = tuple(name if name in USED else "" for name in known.split())
        if width in (len(names), len(names) + 1) and _holds(names + ("",) * (width - len(names)), rows):
            return Layout(names + ("",) * (width - len(names)), delimiter, quoted=delimiter == ",")
    names = guessed(rows)
    return Layout(names, delimiter, quoted=delimiter == ",") if names else None


def cut(line: str, widths: Sequence[tuple[int, int]]) -> list[str]:
    """The fields of a line in columns of fixed width; the last one goes to the line's end."""
    cells = [line[begin:end].strip() for begin, end in widths]
    return [*cells[:-1], line[widths[-1][0] :].strip()]


def _widths(lines: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Begin and end of each field of lines that are blank in the same places; () where these are not of fixed width."""
    if len(lines) < _ALIGNED and len({len(line) for line in lines}) > 1:
        return ()
    width = max(map(len, lines), default=0)
    inked = [any(line[at : at + 1].strip() for line in lines) for at in range(width)]
    begins = [at for at in range(width) if inked[at] and not (at and inked[at - 1])]
    ends = [at + 1 for at in range(width) if inked[at] and not (at + 1 < width and inked[at + 1])]
    if len(begins) < _FEWEST_COLUMNS:
        return ()
    # Longer words than these may follow: sacct writes numbers to the right end of their column, and ids to the left.
    left = [
        all(line[begin : begin + 1].strip() for line in lines if line[begin:end].strip())
        for begin, end in zip(begins, ends, strict=True)
    ]
    cuts = [0]
    for at in range(1, len(begins)):
        before, after = ends[at - 1], begins[at]
        cuts.append(after if left[at] else (before + after + 1) // 2 if left[at - 1] else before + 1)
    return tuple(zip(cuts, [*cuts[1:], width], strict=True))


def likely_delimiter(lines: Sequence[str]) -> str:
    """What stands between fields: the candidate that cuts most lines into as many fields."""
    strange = Counter(letter for line in lines for letter in set(line) if ord(letter) > 127)
    candidates = [*_DELIMITERS, *(letter for letter, seen in strange.items() if seen >= 0.9 * len(lines))]
    best, best_score = "", 0.0
    for candidate in candidates:
        counts = Counter(line.count(candidate) for line in lines)
        count, seen = max(counts.items(), key=lambda item: (item[0] > 0, item[1]))
        score = min(count, 6) * seen / len(lines) + 0.5 * (len(candidate) > 1 and count > 0)
        if count and seen >= 0.3 * len(lines) and score > best_score * 1.01:
            best, best_score = candidate, score
    return best


def _is_field(word: str) -> bool:
    plain = word.split("%")[0].lower()
    return plain in _SACCT_FIELDS or plain in _CANONICAL


def _believable(row: dict[str, str]) -> bool:
    for name, test in _TESTS.items():
        text = row.get(name, "").strip()
        if text and not test(text):
            return False
    return True


_TESTS: dict[str, Callable[[str], object]] = {
    "JobID": lambda text: ID.fullmatch(text) or re.fullmatch(r"[\w.+\[\],%-]+", text),
    "State": is_state,
    "Submit": is_date,
    "Start": is_date,
    "End": is_date,
    "Elapsed": lambda text: is_clock(text) or text.isdecimal(),
    "ElapsedRaw": lambda text: re.fullmatch(r"-?\d+(\.\d+)?", text),
    "AllocTRES": lambda text: "=" in text or text in ("Unknown", "None"),
    "ReqTRES": lambda text: "=" in text or text in ("Unknown", "None"),
}


def _holds(names: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    believed = sum(_believable(dict(zip(names, row, strict=True))) for row in rows)
    return believed >= 0.8 * len(rows)
