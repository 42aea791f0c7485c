"""One submission and one decision, followed through hook, agent, server, journal and `tapfinger explain`."""

import json
import re
from pathlib import Path

import pytest
from agents import PRIMED, command, in_charge, process, soon, toml_for

from slurm_plugin.journal import Journal
from slurm_plugin.sandbox import Sandbox

pytestmark = pytest.mark.slurm


def events(path: Path) -> list[dict]:
    """The log's lines; what the command prints besides is no event."""
    return [json.loads(line) for line in path.read_text().splitlines() if line.startswith("{")]


def test_one_decision_is_found_in_every_log_under_the_same_names(cluster: Sandbox, tmp_path: Path) -> None:
    toml = toml_for(cluster, tmp_path)
    text = toml.read_text().replace("[server]", '[server]\nfallback = "min"') + '[log]\nformat = "json"\n'
    toml.write_text(text)
    serve_log, agent_log = tmp_path / "serve.log", tmp_path / "agent.log"
    slurm_log = cluster.layout.log / "slurmctld.log"
    before = len(slurm_log.read_text())
    with (
        process(cluster, "serve", "--config", str(toml), "--policy", "fifo", log=serve_log) as serve,
        process(cluster, "agent", "--config", str(toml), log=agent_log) as agent,
    ):
        in_charge(cluster, serve, agent)
        job_id = str(cluster.submit("sleep 3", f"--comment={PRIMED}", "--gpus=1", "-c2", "--mem=2G"))
        record = cluster.wait_state(job_id, "RUNNING", "COMPLETED")
        soon(lambda: "started" in agent_log.read_text(), "the agent to see it run")
        explained = command(cluster, "explain", job_id, "--config", str(toml)).stdout

    # The hook knows no job id yet: its name for the submission is the ticket.
    found = re.search(r"lease=\d+ ticket=(\S+)", record["AdminComment"])
    assert found is not None
    ticket = found[1]
    assert re.search(rf"tapfinger: event=leased ticket={re.escape(ticket)} lease_s=", slurm_log.read_text()[before:])

    mine = [event for event in events(agent_log) if event.get("job") == job_id]
    assert [event["event"] for event in mine] == ["decided", "placed", "started"]
    assert {event["ticket"] for event in mine} == {ticket}
    (decision,) = {event["decision"] for event in mine}

    (placement,) = [event for event in events(serve_log) if event["event"] == "placement" and event["job"] == job_id]
    assert (placement["decision"], placement["ticket"]) == (decision, ticket)
    (answered,) = [
        event for event in events(serve_log) if event["event"] == "answered" and event["decision"] == decision
    ]
    assert (answered["policy"], answered["placed"]) == ("fifo", 1)

    with Journal.reading(tmp_path / "journal.sqlite") as journal:
        history = journal.history(job_id)
    assert [told.decision_id for told in history.told] == [decision]
    assert [(intent.decision_id, intent.ticket) for intent in history.intents] == [(decision, ticket)]

    assert f"[decision {decision}]" in explained
    assert f"ticket {ticket}" in explained


def test_a_question_without_an_answer_is_found_in_both_logs(cluster: Sandbox, tmp_path: Path) -> None:
    toml = toml_for(cluster, tmp_path)
    log = tmp_path / "agent.log"
    with process(cluster, "agent", "--config", str(toml), log=log):
        soon(lambda: "state=silent" in log.read_text(), "the agent to miss its server", timeout_s=60)
    assert re.search(
        r'level=info event=server state=silent why="asking .* \(decision [0-9a-f]{16}\): ', log.read_text()
    )
