from argparse import ArgumentParser
from typing import Any

from aiplatform.lib import commands, ids
from aiplatform.lib.errors import ApiError
from usage import caps, ledger, receipts
from usage.ledger import Correction
from usage.models import Call
from usage.receipts import CallNotFound


class Command(commands.OperatorCommand):
    help = (
        "Books what an ended call should have been charged, and what it cost us, as new entries with their reason; for an "
        "unknown outcome that the provider's records have told since, or a goodwill credit. Edits nothing."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("id", metavar="ID", help="call_… as in the header x-call-id, or the bare UUID")
        parser.add_argument("--charge-usd", required=True, metavar="0.01", help="what the tenant should have paid")
        parser.add_argument("--cost-usd", metavar="0.01", help="what the provider bills us; as it is, if not given")
        parser.add_argument("--reason", required=True, help="stands in the ledger and on the receipt")
        parser.add_argument(
            "--charge-tenant", action="store_true", help="he pays what is against him, as far as his caps afford it"
        )

    def perform(self, **options: Any) -> dict[str, Any]:
        try:
            call = Call.objects.get(pk=ids.call_id(options["id"]))
        except (ValueError, Call.DoesNotExist):
            raise CallNotFound from None
        if call.state in Call.LIVE:
            raise NotEnded
        cost = call.provider_cost_nano if options["cost_usd"] is None else caps.parse_usd(options["cost_usd"])
        correction = Correction(call.pk, caps.parse_usd(options["charge_usd"]), cost)
        ledger.correct([correction], reason=options["reason"], charge_tenant=options["charge_tenant"])
        return receipts.receipt(call.pk)

    def text(self, result: dict[str, Any]) -> str:
        return (
            f"{result['id']}: charged {result['charged_usd']}, to pay {result['to_pay_usd']}, borne by the house "
            f"{result['platform_loss_usd']}, the provider's cost {result['provider_cost_usd']} USD."
        )


class NotEnded(ApiError):
    """This call has not ended: an unknown outcome is finalised after its grace period, and can be corrected then."""
