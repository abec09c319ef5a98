"""What can go wrong, as types: each error says what, where, and what to do next.

The command line turns them into one line and an exit code; nothing below it prints.
"""


class DataEngineError(Exception):
    """An error a user can act on. `str(error)` is complete: subject, cause and remedy in one line."""


class UsageError(DataEngineError):
    """The request itself is wrong (unknown setting, bad combination). Exit code 2."""


class ConfigError(UsageError):
    """A configuration file, preset or override that cannot be used."""


class CheckpointError(DataEngineError):
    """A model checkpoint that is missing, damaged, of another kind, or not what its name promises."""


class StorageError(DataEngineError):
    """A file or object store that refused, failed or answered something impossible."""


class SourceError(DataEngineError):
    """An input that cannot be listed or read as a whole (one bad image is a failed row instead)."""


class DatasetError(DataEngineError):
    """A dataset that is absent, incomplete, damaged or of an unsupported version."""


class PlanMismatch(DataEngineError):
    """The output already belongs to a job with other settings, another model or another input."""


class ModelFailure(DataEngineError):
    """The model fails on every image: the set-up is wrong, and going on would only burn hours."""


class ClusterError(DataEngineError):
    """A cluster that cannot be reached, or on which no worker can do the job."""


class DeviceLost(DataEngineError):
    """The accelerator's context is dead: nothing that this process computes from here on can be trusted."""
