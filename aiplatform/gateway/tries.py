"""The tries of one call: which step and credential comes next, what is repeated, and each made durable before it is sent."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from django.conf import settings

from aiplatform.gateway import prompt_cache
from aiplatform.gateway.catalogue import Credential
from aiplatform.gateway.chain import LIMIT_FIELD, Job, ProviderUnreachable, Step
from aiplatform.gateway.prompt_cache import Marker
from aiplatform.gateway.traffic import Traffic
from aiplatform.gateway.translate import Translation, between
from aiplatform.gateway.wires import with_fields
from aiplatform.lib import failpoints
from aiplatform.lib.errors import ApiError
from aiplatform.lib.ids import call_name
from aiplatform.providers import backoff
from aiplatform.providers.base import Reader, Reply, Unsent
from aiplatform.providers.breaker import Breaker
from aiplatform.providers.headroom import Lane, Limits, Pass
from aiplatform.providers.registry import ADAPTERS, Clients
from tenants import secrets
from usage.ledger import Retry

LONGEST_WAIT_SECONDS = 20.0
MOST_TRIES = 8
# Kept of a call's time for the answer itself, so that nothing waits for headroom until it is too late to be answered.
ANSWER_SECONDS = 30.0
UNAUTHENTICATED, RATE_LIMITED, SERVER_ERROR = 401, 429, 500
# A 429 that no waiting cures: the account is out of money, or over its monthly limit.
_SPENT = (b"insufficient_quota", b"billing_hard_limit_reached")
SPENT_SECONDS = 60.0


class ProviderUnavailable(ApiError):
    """The provider has failed again and again, and is left alone for a moment; nothing was sent and nothing was charged."""

    status = 503
    code = "provider_unavailable"


class ProviderLimited(ApiError):
    """The provider's rate limit leaves no room for this call in time; nothing was sent and nothing was charged."""

    status = 429
    code = "provider_rate_limited"


@dataclass(frozen=True, slots=True)
class Means:
    """What tries share in one worker. `retried` makes the next attempt durable, and says whether the call is still this
    worker's.
    """

    clients: Clients
    traffic: Traffic
    marker: Marker
    retried: Callable[[Retry], Awaitable[bool]]


@dataclass(slots=True)
class Picked:
    """A step and a credential that this try may go by."""

    at: int
    step: Step
    credential: Credential
    secret: str
    entered: Pass
    breaker: Breaker


@dataclass(frozen=True, slots=True)
class Speech:
    """How a step is asked, and how its answers are put into the caller's wire, where it speaks another."""

    endpoint: str
    target: str
    body: bytes
    headers: dict[str, str]
    translation: Translation | None = None
    asked: Any = None
    told: str = ""
    """Of the provider's prompt cache."""


class Tries:
    """One call's; `close` tells breaker and headroom how the last one ended."""

    def __init__(self, job: Job, means: Means, deadline: float) -> None:
        """`deadline` is the loop's time."""
        self._job, self._means, self._traffic, self._deadline = job, means, means.traffic, deadline
        self._n, self._at = 1, 0
        self._spent: set[tuple[int, int]] = set()
        self._repeated: dict[int, int] = {}
        self._providers: set[str] = set()
        self._refusals: list[ApiError] = []
        self._picked: Picked | None = None
        self.is_sent = False
        """Whether the running try may have reached the provider."""
        self.model = self.credential = self._secret_ref = ""
        self.speech: Speech
        """How the running try is asked."""
        self.client: Any = None

    @property
    def served(self) -> Job:
        """The job as the step serves it that was tried last."""
        return self._job.served_by(self._at, self._secret_ref)

    @property
    def reader(self) -> Reader:
        """What reads the answer of the running try."""
        return ADAPTERS[self._job.steps[self._at].place.wire].reader(self.speech.endpoint)

    async def reply(self) -> Reply:
        """The first answer that is not to be tried again.

        Raises Unsent, Broken, TimeoutError, or the ApiError that says why nothing was left to be tried.
        """
        picked = await self._pick(0)
        await self._go(picked, Retry(self._job.call.id, 0, "unsent", self._why()), is_new=True)
        while True:
            try:
                reply = await self._send(picked)
            except Unsent as error:
                self.is_sent = False
                picked.breaker.failed()
                self._spent |= {(picked.at, one.id) for one in picked.step.credentials}
                ended = Retry(self._job.call.id, 0, "unsent", str(error))
                following = await self._next(picked, ended, 0.0)
                if following is None:
                    self._picked = None
                    self._left(picked)
                    raise
            else:
                ended = Retry(self._job.call.id, 0, "refused", f"status {reply.status}", reply.status, reply.request_id)
                following = await self._after(picked, reply, ended)
                if following is None:
                    return reply
                await reply.aclose()
                self.is_sent = False
            picked = following

    def close(self, *, failed: bool, status: int = 0) -> None:
        """The try is over: `failed` where it broke off, or nobody knows."""
        picked, self._picked = self._picked, None
        if picked is None:
            return
        if failed or status >= SERVER_ERROR or status == UNAUTHENTICATED:
            picked.breaker.failed()
        elif status == RATE_LIMITED or not status:
            picked.breaker.neither()
        else:
            picked.breaker.succeeded()
        self._left(picked)

    async def _send(self, picked: Picked) -> Reply:
        call, step, place = self._job.call, picked.step, picked.step.place
        self.client = self._means.clients.get(
            place.wire, place.base_url, picked.secret, credential=picked.credential.id, door=place.door
        )
        self.speech = speech = await self._marked(outgoing(call, step), step)
        silence = settings.PROVIDER_SILENCE_SECONDS if call.streamed else settings.CALL_DEADLINE_SECONDS
        failpoints.reached("send.before")
        self.is_sent = True
        async with asyncio.timeout_at(self._deadline):
            reply = await ADAPTERS[place.wire].send(
                self.client, speech.endpoint, speech.target, speech.body,
                speech.headers | {"x-client-request-id": f"{call_name(call.id)}-{self._n}"}, silence=silence,
            )  # fmt: skip
        failpoints.reached("send.after")
        if speech.told:
            reply.headers[prompt_cache.HEADER] = speech.told
        return reply

    async def _marked(self, speech: Speech, step: Step) -> Speech:
        """With its beginning marked for the provider's cache, where the environment wants that and it pays."""
        call = self._job.call
        if not call.headers.get("prompt_cache") or (step.place.wire, speech.endpoint) != ("anthropic", "messages"):
            return speech
        body, told = await self._means.marker.mark(call.environment_id, speech.body, step.rates)
        return replace(speech, body=body, told=told)

    async def _after(self, picked: Picked, reply: Reply, ended: Retry) -> Picked | None:
        """What comes after this reply; None where it is the answer."""
        headers = reply.response.headers
        limited = reply.status == RATE_LIMITED
        asked = backoff.asked(headers)
        if limited and _is_spent(reply):
            asked = max(asked, SPENT_SECONDS)
        closed = max(asked, backoff.SHORTEST_AFTER_RATE_LIMIT_SECONDS) if limited else asked
        self._traffic.headroom.told(picked.entered, headers, limited=limited, asked_seconds=closed)
        if reply.status == UNAUTHENTICATED:  # surely not carried out; another credential may be right
            self._spent.add((picked.at, picked.credential.id))
            return await self._elsewhere(picked, ended, reply.status)
        if not backoff.may_repeat(reply.status, headers):
            return None
        self._spent.add((picked.at, picked.credential.id))
        return await self._next(picked, ended, asked, reply.status)

    async def _next(self, picked: Picked, ended: Retry, asked: float, status: int | None = None) -> Picked | None:
        """The next try, durable: elsewhere at once, else here again after a while; None where the call ends as it is."""
        return await self._elsewhere(picked, ended, status) or await self._again(picked, ended, asked, status)

    async def _elsewhere(self, picked: Picked, ended: Retry, status: int | None) -> Picked | None:
        if self._n >= MOST_TRIES:
            return None
        try:
            found = await self._pick(picked.at)
        except ApiError:
            return None
        provider = found.step.place.name
        if provider in self._providers and not await self._traffic.may_repeat(provider):
            self._left(found)
            found.breaker.neither()
            return None
        self._tell(picked, status)
        await self._go(found, ended)
        return found

    async def _again(self, picked: Picked, ended: Retry, asked: float, status: int | None) -> Picked | None:
        repeats = self._repeated.get(picked.at, 0) + 1
        wait = backoff.delay(repeats, asked, status=status)
        too_late = asyncio.get_running_loop().time() + wait > self._deadline - 1
        if self._n >= MOST_TRIES or repeats >= settings.PROVIDER_TRIES or wait > LONGEST_WAIT_SECONDS or too_late:
            return None
        if not await self._traffic.may_repeat(picked.step.place.name):
            return None
        self._repeated[picked.at] = repeats
        self._tell(picked, status)
        ended.wait_ms = int(wait * 1000)
        await self._go(picked, ended)
        self._picked = None  # nothing is entered while it waits
        await asyncio.sleep(wait)
        self._spent = {one for one in self._spent if one[0] != picked.at}
        self._refusals = []
        entered = await self._entered(picked.step, picked.credential, self._latest())
        if entered is None or not picked.breaker.begin():
            if entered is not None:
                self._left_lane(entered)
            raise self._nothing_left()
        picked.entered = entered
        self._picked = picked
        return picked

    async def _go(self, picked: Picked, ended: Retry, *, is_new: bool = False) -> None:
        """Makes the next attempt durable; before the very first try only where that is not the step the call is held for."""
        self._picked = picked
        provider = picked.step.place.name
        if provider not in self._providers:
            self._providers.add(provider)
            self._traffic.budget.count(provider)
        if not is_new or picked.at != self._at:
            ended.n, ended.model, ended.credential = self._n, self.model, self.credential
            ended.next_model, ended.next_credential = picked.step.model, picked.credential.name
            ended.step = picked.step.frozen if picked.at != self._at else None
            if not await self._means.retried(ended):
                self.is_sent = False
                raise ProviderUnreachable("The call is not this worker's any more.")
            self._n, self._at = self._n + 1, picked.at
        self.model, self.credential = picked.step.model, picked.credential.name
        self._secret_ref = picked.credential.secret_ref

    async def _pick(self, start: int) -> Picked:
        """The first step from there on, and a credential of it, that lets the call through; waits for headroom if need be.

        Raises the ApiError that says why there is none.
        """
        self._refusals = []
        for at in range(start, len(self._job.steps)):
            step = self._job.steps[at]
            latest = self._latest(is_last=at == len(self._job.steps) - 1)
            for credential, secret, breaker in self._healthy(at, step):
                entered = await self._entered(step, credential, latest)
                if entered is None:
                    continue
                if breaker.begin():
                    return Picked(at, step, credential, secret, entered, breaker)
                self._left_lane(entered)
        raise self._nothing_left()

    def _healthy(self, at: int, step: Step) -> Iterator[tuple[Credential, str, Breaker]]:
        """Those not tried yet whose secret is there and whose breaker is closed; first those with headroom."""
        found = []
        now = time.monotonic()
        for credential in step.credentials:
            if (at, credential.id) in self._spent:
                continue
            breaker = self._traffic.breakers.get(step.lane(credential))
            if (seconds := breaker.reopens_in()) > 0:
                self._refusals.append(_after(ProviderUnavailable(), seconds))
                continue
            try:
                secret = secrets.read(credential.secret_ref)
            except ApiError as error:
                self._refusals.append(error)
                continue
            wait = self._lane(step, credential).wait(str(self._job.call.tenant_id), now)
            found.append((wait > 0, credential, secret, breaker))
        yield from (each[1:] for each in sorted(found, key=lambda each: each[0]))

    async def _entered(self, step: Step, credential: Credential, latest: float) -> Pass | None:
        call, lane = self._job.call, self._lane(step, credential)
        tenant, name = str(call.tenant_id), f"{call.id.hex}-{self._n}"
        tokens = len(call.body) // 4 + call.max_output_tokens
        entered = await self._traffic.headroom.enter(lane, tenant, name, tokens, latest)
        if entered is None:
            wait = lane.wait(tenant, time.monotonic())
            self._refusals.append(_after(ProviderLimited(), wait))
        return entered

    def _lane(self, step: Step, credential: Credential) -> Lane:
        limits = Limits(credential.rpm, credential.tpm, credential.concurrency)
        return self._traffic.headroom.lane(step.lane(credential), limits)

    def _latest(self, *, is_last: bool = True) -> float:
        """Until when a call waits for headroom: some seconds; where nobody waits for it, on its last step to its deadline."""
        now = asyncio.get_running_loop().time()
        latest = self._deadline - min(ANSWER_SECONDS, (self._deadline - now) / 2)
        if self._job.call.detached and is_last:
            return latest
        return min(latest, now + (settings.PROVIDER_WAIT_SECONDS if is_last else LONGEST_WAIT_SECONDS))

    def _nothing_left(self) -> ApiError:
        """The refusal that ends soonest, of those by which a call might be served later."""
        timed = [one for one in self._refusals if "retry-after" in one.headers]
        if timed:
            return min(timed, key=lambda one: int(one.headers["retry-after"]))
        return self._refusals[0] if self._refusals else ProviderUnreachable()

    def _why(self) -> str:
        return "; ".join(dict.fromkeys(one.code for one in self._refusals)) or "not tried"

    def _tell(self, picked: Picked, status: int | None) -> None:
        """The try that ended, to breaker and headroom; one that was never sent has told its breaker already."""
        if status is not None:
            if status >= SERVER_ERROR or status == UNAUTHENTICATED:
                picked.breaker.failed()
            else:
                picked.breaker.neither()
        self._left(picked)

    def _left(self, picked: Picked) -> None:
        self._left_lane(picked.entered)
        self._traffic.note(picked.step.lane(picked.credential), picked.breaker)

    def _left_lane(self, entered: Pass) -> None:
        self._traffic.headroom.leave(entered)


def outgoing(call: Any, step: Step) -> Speech:
    """The body as it came, but for the fields that admission said to set and the step's model; or, for a step on another wire,
    translated.
    """
    if (translation := between(call.wire, call.endpoint, step.place.wire)) and step.place.wire != call.wire:
        made = translation.request(
            bytes(call.body), model=step.model, max_tokens=call.max_output_tokens, limit_field=LIMIT_FIELD,
            created=int(time.time()),
        )  # fmt: skip
        return Speech(translation.provider_endpoint, "", made.body, dict(made.headers), translation, made.asked)
    fields = dict(call.headers["set"])
    name, asked = call.headers["limit"]
    if asked != call.max_output_tokens:
        fields[name] = call.max_output_tokens
    if step.model != call.model:
        fields["model"] = step.model
    body = with_fields(bytes(call.body), fields)
    return Speech(call.endpoint, call.headers.get("target", ""), body, dict(call.headers["forward"]))


def _is_spent(reply: Reply) -> bool:
    return reply.response.is_stream_consumed and any(word in reply.response.content for word in _SPENT)


def _after(error: ApiError, seconds: float) -> ApiError:
    error.headers = error.headers | {"retry-after": str(max(1, min(round(seconds + 0.5), 120)))}
    return error
