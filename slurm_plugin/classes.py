"""The job classes and what is known of their speed, from a JSON file that may change while the agent runs."""

import logging
from pathlib import Path

import msgspec

from tapfinger_hpc import log
from tapfinger_hpc.errors import ConfigError
from tapfinger_hpc.speed import JobClass, read_classes
from tapfinger_hpc.state import ClusterState

logger = logging.getLogger(__name__)


class ClassesFile:
    """Reads the file again when it changes; a file that cannot be used leaves the last good classes in force."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._complaint = ""
        self._classes: dict[str, JobClass] = {}

    def attach(self, state: ClusterState) -> ClusterState:
        """The state with the classes that its jobs name, as far as they are known."""
        known = self.known()
        named = {job.job_class for job in state.pending} | {job.job_class for job in state.running}
        return msgspec.structs.replace(state, classes=tuple(known[name] for name in named if name in known))

    def known(self) -> dict[str, JobClass]:
        """All classes, as the file has them now."""
        if self._path is None:
            return self._classes
        try:
            status = self._path.stat()
            seen = (status.st_mtime_ns, status.st_size, status.st_ino)
            if seen != self._seen:
                read = read_classes(self._path)
                self._seen, self._complaint = seen, ""
                self._classes = {one.name: one for one in read}
                log.event(logger, logging.INFO, "classes-read", file=self._path, classes=len(read))
        except (OSError, ConfigError) as error:
            # Told once, though it is tried again at every look.
            if self._complaint != str(error):
                self._complaint = str(error)
                kept = len(self._classes)
                log.event(logger, logging.ERROR, "classes-unusable", file=self._path, why=error, kept=kept)
        return self._classes
