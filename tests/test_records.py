"""The record of a job that has ended."""

from tapfinger_hpc.state import Resources
from trace_tools.records import ENDED, EndedJob


def test_only_a_completed_job_has_done_all_of_its_work():
    amounts = Resources(4, 1, 1000)
    jobs = [EndedJob(job_id="1", state=state, elapsed_s=5.0, granted=amounts, requested=amounts) for state in ENDED]
    assert [job.state for job in jobs if job.finished] == ["COMPLETED"]
