from argparse import ArgumentParser
from typing import Any

from aiplatform.lib import commands
from tenants import lookup
from usage import plans, pricebook, tariffs
from usage.management.commands.plan_assign import plan


class Command(commands.OperatorCommand):
    help = "Sets what a tenant, or the tenants of a plan, pay instead of list prices: a markup, or fixed figures of a model."

    def add_arguments(self, parser: ArgumentParser) -> None:
        whose = parser.add_mutually_exclusive_group(required=True)
        whose.add_argument("--tenant", metavar="T", help="name or id")
        whose.add_argument("--plan", metavar="P", help="its name")
        parser.add_argument("--provider", default="", metavar="NAME", help="default: of all")
        parser.add_argument("--model", default="", metavar="NAME", help="default: all of the provider")
        parser.add_argument(
            "--markup-bps", type=int, metavar="N", help="hundredths of a percent; less than 0 is a discount"
        )
        parser.add_argument(
            "--component", action="append", default=[], metavar="METER[@TIER][/VARIANT]=USD[/PER]",
            help="instead of the list's figures of this meter and variant, all tiers of them",
        )  # fmt: skip
        parser.add_argument("--from", dest="begins", metavar="DATE", help="2027-01-31 or 2027-01-31T12:00Z")

    def perform(self, **options: Any) -> dict[str, Any]:
        tariff, created = plans.set_tariff(
            tenant=lookup.tenant(options["tenant"]) if options["tenant"] else None,
            plan=plan(options["plan"]) if options["plan"] else None,
            provider=options["provider"],
            model=options["model"],
            markup_bps=options["markup_bps"],
            parts=[pricebook.parse_component(text) for text in options["component"]],
            valid_from=commands.later(options["begins"]),
        )
        return {
            "tariff": tariff.pk,
            "created": created,
            "of": options["tenant"] or f"plan {options['plan']}",
            "provider": tariff.provider or "all",
            "model": tariff.model or "all",
            "markup_bps": tariff.markup_bps,
            "components": tariff.components,
            "valid_from": tariff.valid_from.isoformat(),
        }

    def text(self, result: dict[str, Any]) -> str:
        figures = [tariffs.told(one) for one in result["components"]]
        if result["markup_bps"] is not None:
            figures.append(f"list price {result['markup_bps'] / 100:+.2f} %")
        unchanged = "" if result["created"] else " (unchanged)"
        return (
            f"Tariff {result['tariff']} of {result['of']}{unchanged}, provider {result['provider']}, model "
            f"{result['model']}: {', '.join(figures)}, from {result['valid_from']}."
        )
