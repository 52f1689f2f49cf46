"""Clients that ask and ask, and compare every reply with what it must be."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

import httpx

Outcome = Literal["right", "wrong", "problem", "error", "lost"]
"""right, wrong: a reply that was promised to be good, compared; problem: problem details; error: an error reply of
another form; lost: the connection ended without a reply."""


@dataclass(frozen=True)
class Question:
    """A request; `check` says whether a reply with a status below 400 is right. It is asked `weight` times as often."""

    kind: str
    send: Callable[[httpx.Client], httpx.Response]
    check: Callable[[httpx.Response], bool]
    weight: float = 1.0


@dataclass(frozen=True)
class Asked:
    """One request: when it began (`time.monotonic`), how long it took, and what came."""

    began: float
    seconds: float
    kind: str
    status: int
    outcome: Outcome
    text: str = ""


class ComparedLoad:
    """`clients` threads, each with a connection of its own, which ask at random with pauses; a context manager."""

    def __init__(self, url: str, questions: Sequence[Question], clients: int, pause_s: float = 0.0) -> None:
        self.asked: list[Asked] = []
        self._url, self._questions, self._pause_s = url, questions, pause_s
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(seed,), daemon=True) for seed in range(clients)]
        self._broken: list[BaseException] = []

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(150)
            assert not thread.is_alive(), "a request is still open"
        if self._broken and error is None:
            raise self._broken[0]

    def count(self, begin: float = 0.0, end: float = float("inf")) -> Counter[Outcome]:
        """Outcomes of what ended between `begin` and `end`."""
        return Counter(one.outcome for one in list(self.asked) if begin <= one.began + one.seconds < end)

    def _ask(self, seed: int) -> None:
        rng = random.Random(seed)
        weights = [question.weight for question in self._questions]
        client = httpx.Client(base_url=self._url, timeout=120)
        try:
            while not self._stop.wait(self._pause_s * rng.uniform(0.5, 1.5)):
                [question] = rng.choices(self._questions, weights)
                began = time.monotonic()
                try:
                    reply = question.send(client)
                    seconds = time.monotonic() - began
                    outcome, text = self._judge(question, reply)
                    self.asked.append(Asked(began, seconds, question.kind, reply.status_code, outcome, text))
                except httpx.TransportError as error:
                    self.asked.append(Asked(began, time.monotonic() - began, question.kind, 0, "lost", repr(error)))
                    client.close()
                    client = httpx.Client(base_url=self._url, timeout=120)
        except BaseException as error:
            self._broken.append(error)
        finally:
            client.close()

    @staticmethod
    def _judge(question: Question, reply: httpx.Response) -> tuple[Outcome, str]:
        if reply.status_code < 400:
            return ("right", "") if question.check(reply) else ("wrong", repr(dict(reply.headers))[:500])
        named = reply.headers.get("content-type") == "application/problem+json"
        return ("problem" if named else "error"), reply.text[:300]
