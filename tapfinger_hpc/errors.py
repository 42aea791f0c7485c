"""One small tree of errors. A message says what was being done, the value seen, and the next step."""


class TapfingerError(Exception):
    """Base of all errors that a user may see; the command line prints it without a traceback."""


class ConfigError(TapfingerError):
    """The configuration file or a command-line value cannot be used."""


class StateError(TapfingerError):
    """A cluster state or a decision that contradicts itself."""


class UnitError(TapfingerError, ValueError):
    """A memory, time, TRES or range spelling that Slurm or TapFinger does not know."""


class SlurmError(TapfingerError):
    """A Slurm command failed, or said something that could not be read."""


class TraceError(TapfingerError):
    """A trace file that cannot be read."""


class CheckpointError(TapfingerError):
    """A checkpoint that is truncated, changed, or of another schema."""


class ServerError(TapfingerError):
    """The policy server did not answer, or its answer cannot be used."""


class SandboxError(TapfingerError):
    """The throw-away Slurm cluster could not be started or stopped."""


class ScenarioError(TapfingerError):
    """A scenario that is not known, or whose data cannot be read."""


class InstallError(TapfingerError):
    """TapFinger could not be installed on this machine, or not be taken off it."""
