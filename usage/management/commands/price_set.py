from argparse import ArgumentParser
from typing import Any

from aiplatform.lib import commands
from tenants.models import Provider
from usage import pricebook, tariffs
from usage.pricing import TEXT_METERS


class Command(commands.OperatorCommand):
    help = "Sets the price of a model, in USD per million tokens; the same figures again change nothing."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("provider", metavar="PROVIDER")
        parser.add_argument("model", metavar="MODEL")
        for meter in TEXT_METERS:
            parser.add_argument(
                f"--{meter.replace('_', '-')}", metavar="USD",
                help="per million tokens" if meter in {"input", "output"} else "default: as input",
            )  # fmt: skip
        parser.add_argument(
            "--component", action="append", default=[], metavar="METER[@TIER][/VARIANT]=USD[/PER]",
            help="audio, images, paid tools, long inputs, service tiers: input@200000=5, output/batch=7.5, web_search=10/1k",
        )  # fmt: skip
        parser.add_argument("--from", dest="begins", metavar="DATE", help="2027-01-31 or 2027-01-31T12:00Z")

    def perform(self, **options: Any) -> dict[str, Any]:
        flat = {meter: options[meter] for meter in TEXT_METERS if options[meter] is not None}
        parts = pricebook.per_million({meter: pricebook.parse_usd(text) for meter, text in flat.items()})
        parts += [pricebook.parse_component(text) for text in options["component"]]
        price, is_new = pricebook.set_price(
            provider=options["provider"],
            model=options["model"],
            parts=parts,
            valid_from=commands.later(options["begins"]),
        )
        return {
            "price": price.pk,
            "created": is_new,
            "provider": price.provider,
            "model": price.model,
            "valid_from": price.valid_from.isoformat(),
            "valid_to": price.valid_to and price.valid_to.isoformat(),
            "source": price.source,
            "usd_per_million": flat,
            "components": tariffs.components(parts),
            "provider_is_set_up": Provider.objects.filter(name=price.provider).exists(),
        }

    def text(self, result: dict[str, Any]) -> str:
        figures = ", ".join(tariffs.told(one) for one in result["components"])
        unchanged = "" if result["created"] else " (unchanged)"
        text = (
            f"Price {result['price']} of {result['provider']} {result['model']}{unchanged}: "
            f"{figures} USD per million, from {result['valid_from']}."
        )
        if not result["provider_is_set_up"]:
            text += f"\nNo provider {result['provider']!r} is set up yet: see provider_set."
        return text
