"""Ray's Jobs API with petavoxel's errors: submit, follow, list and stop jobs over HTTP.

A connection that breaks while a job is followed is made again; only a cluster that stays away ends that, never the job.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobErrorType, JobStatus, JobSubmissionClient

from models.errors import AccessDenied, InvalidInput, NotFound, PetavoxelError, RuntimeUnavailable
from services.jobs.command import JobCommand

logger = logging.getLogger(__name__)

CONNECT_S, ANSWER_S, SILENCE_S, AWAY_S, STOP_S, PAUSE_S = 10.0, 30.0, 120.0, 60.0, 60.0, 1.0
"""Seconds: to connect; until an answer; without a line of the log until it is asked for anew; without an answer until
following ends; for a job to end that was told to; between two questions."""
STOPPED = 143
"""Exit code of a job that was stopped, as a shell gives it for SIGTERM."""


@dataclass(frozen=True)
class Job:
    """A job as the cluster knows it; times are seconds since 1970, None before they come."""

    id: str
    status: str
    command: str
    began: float | None
    ended: float | None
    exit_code: int | None
    message: str

    @property
    def over(self) -> bool:
        """Whether it has ended, however."""
        return self.exit_code is not None


class Jobs:
    """The jobs of the cluster whose dashboard answers at `address`, such as http://HOST:8265.

    Raises `InvalidInput` for what is no such address, `RuntimeUnavailable` where no Ray answers, `AccessDenied` where
    its token is missing or wrong (RAY_AUTH_MODE=token, RAY_AUTH_TOKEN).
    """

    def __init__(self, address: str) -> None:
        self.address = _checked(address)
        with _explained(self.address):
            self._client = _connect(self.address)

    def submit(self, command: JobCommand, env: Mapping[str, str]) -> str:
        """Start the command as a job, with a local model where it needs one, and return the job's id."""
        job = f"{command.name[-1]}-{uuid.uuid4().hex[:8]}"
        with command.packed() as (there, folder), _explained(self.address):
            environment = {"env_vars": dict(env)} | ({"working_dir": str(folder)} if folder else {})
            self._client.submit_job(entrypoint=there.entrypoint, submission_id=job, runtime_env=environment)
        return job

    def all(self) -> list[Job]:
        """Jobs that were submitted, the latest first."""
        with _explained(self.address):
            found = [_job(details) for details in self._client.list_jobs() if details.submission_id]
        return sorted(found, key=lambda job: job.began or time.time(), reverse=True)

    def find(self, job: str) -> Job:
        """One job; raises `NotFound`."""
        with _explained(self.address, job):
            return _job(self._client.get_job_info(job))

    def logs(self, job: str) -> str:
        """What a job has written so far; raises `NotFound`."""
        with _explained(self.address, job):
            return str(self._client.get_job_logs(job))

    def stop(self, job: str) -> Job:
        """Ask a job to end and return it once it has; raises `NotFound`, and `RuntimeUnavailable` after a minute."""
        with _explained(self.address, job):
            self._client.stop_job(job)
        give_up = time.monotonic() + STOP_S
        while not (found := self.find(job)).over:
            if time.monotonic() > give_up:
                raise RuntimeUnavailable(f"{self.address}: {job} was told to stop and has not within {STOP_S:g} s")
            time.sleep(PAUSE_S)
        return found

    def follow(self, job: str, write: Callable[[str], None]) -> Job:
        """Hand everything that the job writes to `write`, until it has ended; raises `NotFound`.

        Raises `RuntimeUnavailable` where the cluster stays away for a minute; the job may be running nevertheless.
        """
        written, answered = 0, time.monotonic()
        while True:
            try:
                over = self.find(job).over
                answered = time.monotonic()
                written, complete = asyncio.run(self._tail(job, written, write))
                found = self.find(job)
            except RuntimeUnavailable as error:
                if time.monotonic() - answered > AWAY_S:
                    raise RuntimeUnavailable(f"{error}; {job} may be running nevertheless") from error
            else:
                if over and not complete:
                    logger.warning("%s: the end of its log cannot be read", job)
                if found.over and (over or complete):
                    return found
            time.sleep(PAUSE_S)

    async def _tail(self, job: str, written: int, write: Callable[[str], None]) -> tuple[int, bool]:
        """Write the log from character `written` on; returns how far it came and whether it came to the end."""
        seen = 0
        try:
            # An asynchronous generator, whatever its annotation says.
            async with aclosing(cast(AsyncGenerator[str, None], self._client.tail_job_logs(job))) as lines:
                while True:
                    async with asyncio.timeout(SILENCE_S):
                        text = await anext(lines)
                    seen += len(text)
                    if seen > written:
                        write(text[written - seen :])
                        written = seen
        except StopAsyncIteration:
            return written, True
        except (aiohttp.ClientError, OSError, RuntimeError):  # a timeout is an OSError
            return written, False


def _job(details: JobDetails) -> Job:
    name = str(details.submission_id or details.job_id)
    began, ended = (moment / 1000 if moment else None for moment in (details.start_time, details.end_time))
    code = _exit_code(JobStatus(details.status), details.driver_exit_code)
    # Of a command that failed the message repeats its log.
    own = details.error_type == JobErrorType.JOB_ENTRYPOINT_COMMAND_ERROR.value
    message = "" if own else details.message or ""
    return Job(name, details.status.value, details.entrypoint, began, ended, code, message)


def _exit_code(status: JobStatus, code: int | None) -> int | None:
    """The command's own exit code, as a shell gives it; 1 for a job that failed before it began, None while it runs."""
    if not status.is_terminal():
        return None
    if status is JobStatus.STOPPED:
        return STOPPED
    if status is JobStatus.SUCCEEDED:
        return 0
    return 1 if not code else 128 - code if code < 0 else code


def _checked(address: str) -> str:
    """The address as URL; Ray would read others as those of a cluster to join, and wait for it for minutes."""
    url = address if "://" in address else f"http://{address}"
    parts = urlsplit(url)
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        port = 0
    if parts.scheme not in ("http", "https") or not parts.hostname or not port or address == "auto":
        raise InvalidInput(f"--address: expected that of a Ray dashboard, http://HOST:8265, got {address!r}")
    try:
        with socket.create_connection((parts.hostname, port), timeout=CONNECT_S):
            pass
    except OSError as error:
        raise RuntimeUnavailable(f"{url}: expected a Ray dashboard, nothing answers ({error})") from error
    return url.rstrip("/")


class _Client(JobSubmissionClient):
    def _do_request(self, method: str, endpoint: str, **options: Any) -> requests.Response:
        """Ray's own, which would wait for ever."""
        return super()._do_request(method, endpoint, **{"timeout": ANSWER_S, **options})


def _connect(address: str) -> JobSubmissionClient:
    """A client of this address; Ray would let RAY_ADDRESS override it, and its own variable overrides that."""
    for module in ("dashboard.modules.job.sdk", "dashboard.modules.dashboard_sdk", "_private.runtime_env.packaging"):
        logging.getLogger(f"ray.{module}").setLevel(logging.WARNING)  # they tell of every package and connection
    name = "RAY_API_SERVER_ADDRESS"
    before = os.environ.get(name)
    os.environ[name] = address
    try:
        return _Client(address)
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


@contextmanager
def _explained(address: str, job: str = "") -> Iterator[None]:
    """Errors of Ray's client as petavoxel's, in one line."""
    try:
        yield
    except PetavoxelError:
        raise
    except AuthenticationError as error:
        wanted = (
            "expected a token that this Ray takes, from RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH with RAY_AUTH_MODE=token"
        )
        given = str(error).split("\n", 1)[0]
        raise AccessDenied(f"{address}: {wanted}, got: {given}") from error
    except (requests.RequestException, OSError) as error:
        raise RuntimeUnavailable(f"{address}: expected a Ray dashboard, got: {error}") from error
    except RuntimeError as error:
        if job and "status code 404" in str(error):
            raise NotFound(f"{address}: no job {job!r}; petavoxel jobs lists those that there are") from error
        raise RuntimeUnavailable(f"{address}: the cluster refuses: {str(error)[:500]}") from error
