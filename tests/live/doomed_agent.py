"""A process that places one job on node n1 as the agent does, and is killed (-9) before it can look again.

Usage: doomed_agent.py SANDBOX FOLDER. Writes the job's number to FOLDER/job. The node is drained meanwhile, so that
the job cannot start.
"""

import os
import signal
import sys
import time
from pathlib import Path

from agents import PRIMED, LiveAgent

from slurm_plugin.placed import Placements
from slurm_plugin.sandbox import Sandbox
from tapfinger_hpc.decision import Decision, Placement
from tapfinger_hpc.state import Resources


def main(sandbox: Path, folder: Path) -> None:
    cluster = Sandbox.attach(sandbox)
    agent = LiveAgent(cluster, folder)
    job_id = cluster.submit("sleep 1", f"--comment={PRIMED}", "--gpus=2", "-c3", "--mem=5G", "--time=5")
    (folder / "job").write_text(str(job_id))
    cluster.set_node("n1", "drain")
    state = agent.cluster.observe()
    job = next(job for job in state.pending if job.job_id == str(job_id))
    place = Placement("pa", "n1", Resources(1, 1, 1000))
    # The agent's guard would refuse a draining node: here it drains in the moment between guard and update.
    placements = Placements(agent.cluster, agent.clock, agent.journal, agent.config.agent)
    placements.make([Decision(*job.key, place, "scripted")], state, "answer-1", time.time())
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
