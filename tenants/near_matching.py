"""Near matches of an environment's names as people set them, and the scores by which they switch themselves off."""

import uuid
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from django.db import transaction
from django.db.models import QuerySet
from django.utils import timezone

from aiplatform.lib import postgres
from aiplatform.lib.errors import ApiError
from aiplatform.lib.ids import call_name
from aiplatform.lib.logs import log
from tenants.lookup import NotFound
from tenants.models import EmbeddingUse, Environment, NearMatching, NearScore, Tenant

Mode = NearMatching.Mode
THRESHOLDS = (0.8, 1.0)
LEAST_SCORES = 20  # before anything is concluded from them
JUDGED_SCORES = 100  # the latest, so that a route that drifts is noticed however good it was
KEPT_SCORES = 300
LONGEST_MODEL = 200


class NearRefused(ApiError):
    """Near matches cannot be set like this."""


class NearNotProven(ApiError):
    """Near matches are given once shadow has shown that they agree with the real answers."""

    status = 409
    code = "near_not_proven"

    def __init__(self, matching: NearMatching, scores: int, mean: float | None) -> None:
        so_far = f"{scores} so far" if mean is None else f"{scores} so far, whose mean is {mean:.3f}"
        super().__init__(
            f"{matching.model!r} needs {LEAST_SCORES} scores in shadow mode whose mean is at least {matching.agreement:g}; "
            f"there are {so_far}. Leave it in shadow, or force it."
        )


def set_matching(
    *,
    environment: Environment,
    model: str,
    mode: str | None = None,
    threshold: float | None = None,
    agreement: float | None = None,
    force: bool = False,
) -> tuple[NearMatching, bool]:
    """Sets near matches of one name, and whether that is new; what is not given stays, and what is new begins in shadow.

    Scores begin anew with another threshold, and when it is switched on again after it was off. Without scores it is not `on`:
    raises NearNotProven unless forced, or goes back to shadow where only the threshold was changed. Raises NearRefused.
    """
    _check(model, mode, threshold, agreement)
    with transaction.atomic():
        found = NearMatching.objects.select_for_update().filter(environment=environment, model=model).first()
        matching = found or NearMatching(environment=environment, model=model)
        wanted = mode or matching.mode
        is_other = threshold not in {None, matching.threshold}
        matching.threshold = matching.threshold if threshold is None else threshold
        matching.agreement = matching.agreement if agreement is None else agreement
        if is_anew := is_other or (matching.mode == Mode.OFF and wanted != Mode.OFF):
            _begin_anew(matching)
        is_turned_on = wanted == Mode.ON and (is_anew or matching.mode != Mode.ON)
        if is_turned_on and not force and not _is_proven(matching):
            if mode is not None:
                raise NearNotProven(matching, *_judged(matching))
            wanted = Mode.SHADOW
        matching.mode = wanted
        matching.save()
    log.info("near.set", near=matching.pk, environment=str(environment.pk), model=model, mode=matching.mode,
             threshold=matching.threshold, agreement=matching.agreement, forced=force)  # fmt: skip
    return matching, found is None


def remove(*, environment: Environment, model: str) -> None:
    """Ends near matches of a name with their scores; raises NotFound."""
    found = NearMatching.objects.filter(environment=environment, model=model).first()
    if found is None:
        raise NotFound(f"There are no near matches of {model[:60]!a} in {environment.name!r}.")
    log.info("near.removed", near=found.pk, environment=str(environment.pk), model=model)
    found.delete()


def listed(*, tenant: Any, environment: Any = None) -> list[NearMatching]:
    """A tenant's, or those of one environment (or their ids), by environment and name."""
    found = NearMatching.objects.filter(environment__tenant=tenant).select_related("environment")
    if environment is not None:
        found = found.filter(environment=environment)
    return list(found.order_by("environment__created_at", "environment", "model"))


def latest(matching: NearMatching, number: int) -> list[NearScore]:
    """Its latest scores, the newest first."""
    return list(matching.scores.order_by("-pk")[:number])


# Each call is scored once, however often this runs; what is off, or asks for more likeness by now, is not scored any more.
_SCORE = f"""
WITH added AS (
    INSERT INTO tenants_nearscore (near_id, at, likeness, agreement, call_id, source_call_id)
    SELECT n.id, now(), g.likeness, g.agreement, g.call_id, g.source_call_id
    FROM (SELECT %s::bigint, %s::float8, %s::float8, %s::uuid, %s::uuid)
            AS g(near_id, likeness, agreement, call_id, source_call_id)
        JOIN tenants_nearmatching n ON n.id = g.near_id AND n.mode <> 'off' AND n.threshold <= g.likeness
    ON CONFLICT DO NOTHING
    RETURNING near_id, agreement
), judged AS (
    SELECT a.near_id, a.agreement, count(s.agreement) + 1 AS scores,
        (coalesce(sum(s.agreement), 0) + a.agreement) / (count(s.agreement) + 1) AS mean
    FROM added a LEFT JOIN LATERAL (
        SELECT agreement FROM tenants_nearscore WHERE near_id = a.near_id ORDER BY id DESC LIMIT {JUDGED_SCORES - 1}
    ) s ON true
    GROUP BY a.near_id, a.agreement
), dropped AS (
    DELETE FROM tenants_nearscore s USING added a
    WHERE s.near_id = a.near_id AND s.id <= (
        SELECT id FROM tenants_nearscore WHERE near_id = a.near_id ORDER BY id DESC OFFSET {KEPT_SCORES - 1} LIMIT 1)
)
UPDATE tenants_nearmatching n
SET scored = n.scored + 1, agreed = n.agreed + j.agreement,
    mode = CASE WHEN v.is_bad THEN 'off' ELSE n.mode END,
    switched_off_at = CASE WHEN v.is_bad THEN now() ELSE n.switched_off_at END,
    switched_off_why = CASE WHEN v.is_bad
        THEN 'The latest ' || j.scores || ' answers agreed with the real ones to ' || round(j.mean::numeric, 3)
            || ' on average, which is less than ' || n.agreement || '.'
        ELSE n.switched_off_why END
FROM judged j JOIN tenants_nearmatching o ON o.id = j.near_id,
    LATERAL (SELECT j.scores >= {LEAST_SCORES} AND j.mean < o.agreement AS is_bad) v
WHERE n.id = j.near_id AND n.mode <> 'off'
RETURNING n.id, n.environment_id, n.model, n.mode, n.switched_off_why"""  # noqa: S608 - numbers of our own


def score(
    near_id: int, *, likeness: float, agreement: float, call_id: uuid.UUID, source_call_id: uuid.UUID
) -> str | None:
    """Adds what one call has shown, once, and switches its name off where the latest scores have too small a mean.

    The mode it is in then; None where nothing was added, since it is off, gone, or has this call's score. `likeness` is the
    questions' cosine, `agreement` the answers', from 0 to 1. Raises Unavailable.
    """
    rows = postgres.run(_SCORE, [near_id, likeness, agreement, call_id, source_call_id])
    if not rows:
        return None
    row = rows[0]
    if row.mode == Mode.OFF:
        log.warning("near.switched_off", near=row.id, environment=str(row.environment_id), model=row.model,
                    why=row.switched_off_why)  # fmt: skip
    return str(row.mode)


_ADD_USE = """
INSERT INTO tenants_embeddinguse (environment_id, day, texts, tokens, cpu_ms)
SELECT e.id, (now() AT TIME ZONE 'UTC')::date, u.texts, u.tokens, u.cpu_ms
FROM unnest(%s::uuid[], %s::bigint[], %s::bigint[], %s::float8[]) AS u(environment_id, texts, tokens, cpu_ms)
    JOIN tenants_environment e ON e.id = u.environment_id
ORDER BY e.id
ON CONFLICT (environment_id, day) DO UPDATE SET texts = tenants_embeddinguse.texts + excluded.texts,
    tokens = tenants_embeddinguse.tokens + excluded.tokens, cpu_ms = tenants_embeddinguse.cpu_ms + excluded.cpu_ms"""


def add_use(used: Sequence[tuple[uuid.UUID, int, int, float]]) -> None:
    """Adds (environment, texts, tokens, CPU milliseconds), each environment once, to today's.

    Sums cannot be added twice to be sure, so this is tried once: raises Unavailable, and then it is not on record.
    """
    environments, texts, tokens, milliseconds = zip(*used, strict=True)
    postgres.run(
        _ADD_USE,
        [postgres.plain(environments), postgres.plain(texts), postgres.plain(tokens), postgres.plain(milliseconds)],
        patience=0,
    )


def use(*, tenant: Tenant | uuid.UUID, environment: Any = None, days: int = 31) -> list[dict[str, Any]]:
    """What was embedded a day and environment, ready for JSON, the newest first."""
    found: QuerySet[EmbeddingUse] = EmbeddingUse.objects.filter(environment__tenant=tenant)
    if environment is not None:
        found = found.filter(environment=environment)
    since = timezone.now().date() - timedelta(days=days)
    rows = found.filter(day__gt=since).select_related("environment").order_by("-day", "environment__name")
    return [
        {
            "environment": row.environment.name,
            "day": row.day.isoformat(),
            "texts": row.texts,
            "tokens": row.tokens,
            "cpu_ms": round(row.cpu_ms, 1),
        }
        for row in rows
    ]


def shown(*, tenant: Tenant | uuid.UUID, environment: Any = None) -> dict[str, Any]:
    """All of a tenant's or an environment's, with scores and what was embedded, ready for JSON."""
    found = listed(tenant=tenant, environment=environment)
    return {"near": [as_json(one) for one in found], "embedded": use(tenant=tenant, environment=environment)}


def in_words(shown: Mapping[str, Any]) -> str:
    """One that `as_json` made, on one line."""
    mean = "none yet" if shown["mean"] is None else f"{shown['scored']}, mean {shown['mean']:.3f}"
    latest = ", ".join(f"{one['agreement']:.2f}" for one in shown["latest"][:5])
    why = f" Switched off {shown['switched_off_at']}: {shown['switched_off_why']}" if shown["switched_off_at"] else ""
    return (
        f"{shown['environment']} {shown['model']}: {shown['mode']}, likeness from {shown['threshold']:g}, agreement from "
        f"{shown['agreement']:g}; scores {mean}{f' (latest {latest})' if latest else ''}.{why}"
    )


def as_json(matching: NearMatching, scores: int = 20) -> dict[str, Any]:
    """Ready for JSON, with so many of its latest scores."""
    return {
        "environment": matching.environment.name,
        "model": matching.model,
        "mode": matching.mode,
        "threshold": matching.threshold,
        "agreement": matching.agreement,
        "since": matching.since.isoformat(),
        "scored": matching.scored,
        "mean": round(matching.agreed / matching.scored, 4) if matching.scored else None,
        "switched_off_at": matching.switched_off_at and matching.switched_off_at.isoformat(),
        "switched_off_why": matching.switched_off_why,
        "latest": [
            {
                "at": one.at.isoformat(),
                "likeness": round(one.likeness, 4),
                "agreement": round(one.agreement, 4),
                "call": call_name(one.call_id),
                "source": call_name(one.source_call_id),
            }
            for one in latest(matching, scores)
        ],
    }


def _check(model: str, mode: str | None, threshold: float | None, agreement: float | None) -> None:
    if not (0 < len(model) <= LONGEST_MODEL and model.isprintable()):
        raise NearRefused(f"A model is named by 1 to {LONGEST_MODEL} printable characters, as callers ask for it.")
    if mode is not None and mode not in Mode.values:
        raise NearRefused(f"The mode {mode[:40]!a} is unknown; it is one of {', '.join(Mode.values)}.")
    least, most = THRESHOLDS
    if threshold is not None and not least <= threshold <= most:
        raise NearRefused(f"A threshold is a cosine from {least:g} to {most:g}.")
    if agreement is not None and not 0 < agreement <= 1:
        raise NearRefused("The agreement is more than 0 and at most 1.")


def _begin_anew(matching: NearMatching) -> None:
    matching.scored, matching.agreed, matching.since = 0, 0.0, timezone.now()
    matching.switched_off_at, matching.switched_off_why = None, ""
    if matching.pk:
        matching.scores.all().delete()


def _is_proven(matching: NearMatching) -> bool:
    scores, mean = _judged(matching)
    return scores >= LEAST_SCORES and mean is not None and mean >= matching.agreement


def _judged(matching: NearMatching) -> tuple[int, float | None]:
    """How many of the latest scores count, and their mean."""
    found = [one.agreement for one in latest(matching, JUDGED_SCORES)] if matching.pk else []
    return len(found), sum(found) / len(found) if found else None
