"""Near matches over REST, as their scores stand."""

from rest_framework.request import Request
from rest_framework.response import Response

from tenants import lookup, near_matching
from tenants.models import Tenant
from usage.api import Reading


class NearMatches(Reading):
    """`GET /api/cache/near`: near matches that the key may see, with their latest scores, and what was embedded a day."""

    parameters = frozenset({"environment"})

    def get(self, request: Request) -> Response:
        holder = self.holder(request)
        tenant = Tenant.objects.get(pk=holder.tenant_id)
        named, only = request.query_params.get("environment"), holder.environment_id
        environment = lookup.environment(tenant, named).pk if named is not None else only
        if only is not None and environment != only:
            raise lookup.NotFound(f"There is no environment {(named or '')[:40]!a} here.")
        return Response(near_matching.shown(tenant=tenant, environment=environment))
