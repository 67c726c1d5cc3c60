"""Answers of an OpenAI-compatible endpoint: one HTTP request a sample, retried a bounded number of times.

What such a server cannot promise: equal responses to equal requests. A `seed` goes with every request, which servers
take as a hint; token ids come back from none.
"""

from __future__ import annotations

import dataclasses
import http.client
import json
import math
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from prime_megatron.errors import InputError, RunError
from prime_megatron.generate.questions import Question, stream_of
from prime_megatron.generate.sample import GeneratedSample
from prime_megatron.generate.tolerance import Tolerance
from prime_megatron.rollout.generate import Scorer
from prime_megatron.rollout.stops import first_stop
from prime_megatron.verify import Answer, Verdict

RETRIED = (408, 409, 425, 429, 500, 502, 503, 504)
"""Statuses that may be other ones a moment later."""
REFUSED_ALONE = (400, 413, 422)
"""Statuses that speak of one request (too long a prompt, say), not of all."""
MAX_BYTES = 64 * 2**20
_PART_BYTES = 2**16
MAX_WAIT_S = 60.0


@dataclass(frozen=True)
class Endpoint:
    """A server."""

    url: str
    """Up to /v1."""
    model: str
    key: str
    """Sent as a bearer token; empty: none."""
    concurrency: int
    retries: int
    timeout_s: float
    first_wait_s: float = 0.5
    """Before the first retry; twice as long before every further one, at most MAX_WAIT_S."""


@dataclass(frozen=True)
class Asking:
    """How a server is asked."""

    num_samples: int
    temperature: float
    top_p: float
    max_tokens: int
    stop_texts: tuple[str, ...]
    logprobs: bool
    seed: int


class EndpointAnswerer:
    """See `Answerer`.

    Args:
        endpoint: the server.
        asking: sampling.
        scorer: takes the answers; None: samples are not graded.
        answer_of: what the scorer is asked about a question's response.
        tolerance: bears requests that fail or are refused: their samples are empty and say why; None: the first ends
            the request.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        asking: Asking,
        scorer: Scorer | None,
        answer_of: Callable[[Question, str], Answer],
        tolerance: Tolerance | None = None,
    ) -> None:
        self._endpoint, self._asking, self._scorer, self._answer_of = endpoint, asking, scorer, answer_of
        self._tolerance = tolerance

    def answer(self, questions: Sequence[Question]) -> list[GeneratedSample]:
        """See `Answerer.answer`.

        Raises:
            InputError: the server refuses a request as it is (a status that no retry mends).
            RunError: a request failed more often than the endpoint's retries, and nothing or no more is borne.
        """
        wanted = [(question, sample) for question in questions for sample in range(self._asking.num_samples)]
        with ThreadPoolExecutor(self._endpoint.concurrency) as threads:
            replies = [threads.submit(self._ask, question, sample) for question, sample in wanted]
            try:
                made = [reply.result() for reply in replies]
            except BaseException:
                for reply in replies:
                    reply.cancel()
                raise
        verdicts = [self._score(question, reply.text) for (question, _), reply in zip(wanted, made, strict=True)]
        return [
            self._sample(question, sample, reply, verdict)
            for (question, sample), reply, verdict in zip(wanted, made, verdicts, strict=True)
        ]

    def _ask(self, question: Question, sample: int) -> _Reply:
        how = self._asking
        body: dict[str, Any] = {
            "model": self._endpoint.model,
            "n": 1,
            "temperature": how.temperature,
            "top_p": how.top_p,
            "max_tokens": how.max_tokens,
            "seed": (stream_of(f"{question.id}\n{sample}") + how.seed) % 2**31,
        }
        if how.stop_texts:
            body["stop"] = list(how.stop_texts)
        chat = not isinstance(question.prompt, str)
        if isinstance(question.prompt, str):
            body["prompt"] = question.prompt
        else:
            body["messages"] = [{"role": one.role, "content": one.content} for one in question.prompt]
        if how.logprobs:
            body["logprobs"] = True if chat else 0
        path = "/chat/completions" if chat else "/completions"
        if self._tolerance is None:
            return ask(self._endpoint, path, body, lambda reply: _read(reply, chat, how))
        return self._bear(self._tolerance, path, body, lambda reply: _read(reply, chat, how))

    def _bear(self, tolerance: Tolerance, path: str, body: dict[str, Any], read: Callable[[Any], _Reply]) -> _Reply:
        """One completion, or why there is none."""
        tolerance.check()
        try:
            reply = ask(self._endpoint, path, body, read, lambda: tolerance.exhausted)
            tolerance.answered()
            return reply
        except Refused as refused:
            if refused.status not in REFUSED_ALONE:
                raise
            tolerance.answered()
            return _Reply("", False, None, 0, str(refused))
        except RunError as error:
            tolerance.failed(str(error))
            tolerance.check()
            return _Reply("", False, None, self._endpoint.retries, str(error))

    def _score(self, question: Question, text: str) -> Future[Verdict] | None:
        return None if self._scorer is None else self._scorer.submit(self._answer_of(question, text))

    def _sample(
        self, question: Question, sample: int, reply: _Reply, verdict: Future[Verdict] | None
    ) -> GeneratedSample:
        graded = None if verdict is None else verdict.result()
        return GeneratedSample(
            id=question.id,
            sample=sample,
            prompt=question.prompt,
            response=reply.text,
            truncated=reply.truncated,
            logprobs=reply.logprobs,
            data_source=question.data_source or None,
            ability=question.ability or None,
            ground_truth=question.ground_truth or None,
            outcome=None if graded is None else graded.score,
            verdict=None if graded is None else graded.verdict,
            reason=None if graded is None else graded.reason,
            retries=reply.retries or None,
            failure=reply.failure,
        )


@dataclass(frozen=True)
class _Reply:
    text: str
    truncated: bool
    logprobs: tuple[float, ...] | None
    retries: int = 0
    failure: str | None = None


class Refused(InputError):
    """The server will not answer a request, however often it is asked."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A server that sends us elsewhere would get the key there, too."""

    def redirect_request(self, *arguments: Any) -> None:
        """None: the redirect is an error."""
        return


class _Garbage(Exception):
    """An answer with status 200 that is no completion."""


def ask(
    endpoint: Endpoint,
    path: str,
    body: dict[str, Any],
    read: Callable[[Any], _Reply],
    given_up: Callable[[], bool] = lambda: False,
) -> _Reply:
    """One completion, with retries until they are ``given_up``; see `EndpointAnswerer.answer` for what it raises."""
    url, problem, waited = endpoint.url + path, "", 0.0
    for attempt in range(endpoint.retries + 1):
        if attempt:
            time.sleep(waited)
            if given_up():
                break
        waited = min(MAX_WAIT_S, endpoint.first_wait_s * 2**attempt)
        try:
            return dataclasses.replace(read(_post(endpoint, url, body)), retries=attempt)
        except urllib.error.HTTPError as error:
            problem = f"status {error.code}: {_excerpt(error)}"
            if error.code not in RETRIED:
                raise Refused(f"{url}: the server refuses the request, {problem}", error.code) from None
            waited = max(waited, _retry_after(error))
        except _Garbage as error:
            problem = f"no completion in its answer ({error})"
        except (OSError, http.client.HTTPException) as error:  # refused, reset, timed out, cut short
            problem = f"{type(error).__name__}: {error}"
    raise RunError(
        f"{url}: failed {endpoint.retries + 1} times, the last time with {problem}; what was answered is kept: start "
        "the same command again"
    )


def _post(endpoint: Endpoint, url: str, body: dict[str, Any]) -> Any:
    headers = {"Content-Type": "application/json"}
    if endpoint.key:
        headers["Authorization"] = f"Bearer {endpoint.key}"
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    until_s = time.monotonic() + endpoint.timeout_s
    data = bytearray()
    with urllib.request.build_opener(_NoRedirect).open(request, timeout=endpoint.timeout_s) as response:
        # A server that sends a byte now and then is in time for every read, and never for the request.
        while len(data) <= MAX_BYTES and (part := response.read1(_PART_BYTES)):
            data += part
            if time.monotonic() > until_s:
                raise TimeoutError(f"no whole answer within {endpoint.timeout_s:g} s")
    if len(data) > MAX_BYTES:
        raise _Garbage(f"more than {MAX_BYTES} bytes")
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise _Garbage("not JSON") from None


def _read(reply: Any, chat: bool, how: Asking) -> _Reply:
    try:
        choice = reply["choices"][0]
        text = choice["message"]["content"] if chat else choice["text"]
        finish = choice["finish_reason"]
    except (KeyError, IndexError, TypeError):
        raise _Garbage("no choices with text and finish_reason") from None
    if text is None:
        text = ""  # a refusal, or reasoning alone: an answer, and an empty one
    if not isinstance(text, str):
        raise _Garbage("its text is no text")
    place = first_stop(text, how.stop_texts)
    logprobs = _logprobs(choice, chat) if how.logprobs else None
    return _Reply(text if place is None else text[:place], finish == "length" and place is None, logprobs)


def _logprobs(choice: dict[str, Any], chat: bool) -> tuple[float, ...]:
    try:
        found = choice["logprobs"]
        values = [item["logprob"] for item in found["content"]] if chat else found["token_logprobs"]
        numbers = tuple(float(value) for value in values)
    except (KeyError, TypeError, ValueError):
        raise _Garbage("no log-probs, which were asked for") from None
    if not all(math.isfinite(number) for number in numbers):
        raise _Garbage("log-probs that are not finite")
    return numbers


def _excerpt(error: urllib.error.HTTPError) -> str:
    try:
        text = error.read(2000).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        return "no body"
    return " ".join(text.split())[:200] or "no body"


def _retry_after(error: urllib.error.HTTPError) -> float:
    """Seconds that the server asks to wait, as far as it says so in seconds."""
    value = error.headers.get("Retry-After") or ""
    return min(MAX_WAIT_S, float(value)) if value.isascii() and value.isdecimal() else 0.0
