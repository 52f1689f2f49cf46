"""The error tree. Every error that a user can cause derives from `PetavoxelError` and the matching builtin.

PetavoxelError
├── InvalidInput (ValueError)            what was given cannot be used: dtype, shape, range, option
│   ├── InvalidVolume                    a volume or array breaks its format or the caller's expectation
│   ├── InvalidModel                     a card, a digest or an exported network is broken or does not fit the volume
│   └── InvalidConfig                    a configuration file has unknown keys or impossible values
├── NotFound (FileNotFoundError)         a volume, model, dataset or file is not there
├── AccessDenied (PermissionError)       the store refuses: credentials, read-only, bucket policy
├── StorageFailed (OSError)              the store failed: full disk, broken connection, damaged bytes
├── RunConflict (RuntimeError)           an output prefix belongs to another run
├── ChunkFailed (RuntimeError)           chunks that failed repeatedly; carries their boxes and causes
└── RuntimeUnavailable (RuntimeError)    an inference engine or an optional package is missing on this machine

A message names what was expected, what came, and where. The command line prints it as one line and exits with
`exit_code`; HTTP endpoints answer with `status`.
"""

from __future__ import annotations


class PetavoxelError(Exception):
    """Base of all errors that petavoxel raises on purpose."""

    exit_code = 1
    status = 500


class InvalidInput(PetavoxelError, ValueError):
    """What was given cannot be used."""

    exit_code = 2
    status = 422


class InvalidVolume(InvalidInput):
    """A volume or array breaks its format, or does not have the expected shape, dtype or metadata."""


class InvalidModel(InvalidInput):
    """A model card, digest or exported network is broken, or does not fit the volume."""


class InvalidConfig(InvalidInput):
    """A configuration has unknown keys or impossible values."""


class NotFound(PetavoxelError, FileNotFoundError):
    """A volume, model, dataset or file does not exist."""

    exit_code = 3
    status = 404


class AccessDenied(PetavoxelError, PermissionError):
    """The store refuses the request."""

    exit_code = 4
    status = 403


class StorageFailed(PetavoxelError, OSError):
    """The store failed: a full disk, a broken connection, damaged bytes."""

    exit_code = 5
    status = 502


class RunConflict(PetavoxelError, RuntimeError):
    """The output prefix belongs to another run."""

    exit_code = 6
    status = 409


class ChunkFailed(PetavoxelError, RuntimeError):
    """Chunks failed repeatedly and were given up; the message names their boxes and causes."""

    exit_code = 7


class RuntimeUnavailable(PetavoxelError, RuntimeError):
    """An inference engine or an optional package is missing on this machine."""

    exit_code = 8
    status = 503
