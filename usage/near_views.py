"""The console's page about near matches: how far the answers that would be given agree with the real ones."""

import uuid
from collections.abc import Iterable
from typing import Any

from django.db.models import BinaryField, F, Func
from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_safe

from tenants import access, near_matching
from tenants.access import Right
from tenants.models import Member, NearMatching
from usage import transcripts
from usage.models import Call, CallPayload

SHOWN_SCORES = 20
SHOWN_CHARACTERS = 300
READ_BYTES = 64 * 1024


@require_safe
@access.requires(Right.SPEND)
def listed(request: HttpRequest, member: Member) -> HttpResponse:
    """All near matches of the tenant; the questions to whoever may read what was said."""
    may_read = access.may(member, Right.CONTENT)
    found = [_row(one, may_read=may_read) for one in near_matching.listed(tenant=member.tenant)]
    embedded = near_matching.use(tenant=member.tenant)
    return access.page(request, member, "usage/near.html", {"matchings": found, "embedded": embedded})


def _row(matching: NearMatching, *, may_read: bool) -> dict[str, Any]:
    scores = near_matching.latest(matching, SHOWN_SCORES)
    ids = {call_id for score in scores for call_id in (score.call_id, score.source_call_id)}
    asked = _questions(matching, ids) if may_read else {}
    return {
        "it": matching,
        "mean": matching.agreed / matching.scored if matching.scored else None,
        "scores": [
            {"it": score, "asked": asked.get(score.call_id), "source": asked.get(score.source_call_id)}
            for score in scores
        ],
    }


def _questions(matching: NearMatching, call_ids: Iterable[uuid.UUID]) -> dict[uuid.UUID, str]:
    """What was asked in these calls of the matching's environment, as far as it is stored."""
    own = Call.objects.filter(pk__in=list(call_ids), environment=matching.environment_id).values_list("pk", flat=True)
    start = Func(F("body"), template=f"substr(%(expressions)s, 1, {READ_BYTES})", output_field=BinaryField())
    bodies = CallPayload.objects.filter(call_id__in=list(own), kind=CallPayload.Kind.REQUEST).values_list(
        "call_id", start
    )
    turns = {call_id: transcripts.read(bytes(body), len(body)).turns for call_id, body in bodies}
    return {call_id: said[-1].text[:SHOWN_CHARACTERS] for call_id, said in turns.items() if said}
