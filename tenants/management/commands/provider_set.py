from argparse import ArgumentParser, BooleanOptionalAction
from typing import Any

from aiplatform.lib import commands
from tenants import providers
from tenants.models import Provider


class Command(commands.OperatorCommand):
    help = "Sets up a provider, or changes one. Its secret stays in the workers' environment; here it is only named."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("name", metavar="NAME")
        parser.add_argument("--wire", required=True, choices=Provider.Wire.values)
        parser.add_argument(
            "--base-url", required=True, metavar="URL",
            help="what the vendor's SDK takes (https://api.openai.com/v1, https://api.anthropic.com), or `sandbox:`",
        )  # fmt: skip
        parser.add_argument("--key-env", metavar="VAR", help="the workers' environment variable that holds the secret")
        parser.add_argument("--models", metavar="A,B", help="the models it serves; empty: every model priced for it")
        parser.add_argument("--api-version", metavar="V", help="sent as ?api-version=V, as Azure wants it")
        parser.add_argument("--key-header", metavar="NAME", help="carries the secret alone, such as api-key")
        parser.add_argument(
            "--header",
            action="append",
            metavar="NAME=VALUE",
            help="sent with every request; no secret; --header '' takes all away",
        )
        parser.add_argument(
            "--limit-field",
            choices=("", *Provider.LimitField.values),
            help="by which its chat completions are bounded; empty: max_completion_tokens at OpenAI and Azure, else max_tokens",
        )
        parser.add_argument(
            "--responses",
            action=BooleanOptionalAction,
            help="whether it has /v1/responses (default); without, these are put into chat completions",
        )

    def perform(self, **options: Any) -> dict[str, Any]:
        models = options["models"]
        provider, change = providers.set_provider(
            name=options["name"],
            wire=options["wire"],
            base_url=options["base_url"],
            key_env=options["key_env"],
            model_names=None if models is None else [name.strip() for name in models.split(",") if name.strip()],
            api_version=options["api_version"],
            key_header=options["key_header"],
            headers=_headers(options["header"]),
            limit_field=options["limit_field"],
            has_responses=options["responses"],
        )
        credential = provider.credentials.filter(tenant=None, name=providers.DEFAULT).first()
        return {
            "provider": provider.name,
            "id": provider.pk,
            "change": change,
            "wire": provider.wire,
            "base_url": provider.base_url,
            "models": provider.model_names,
            "secret_ref": credential.secret_ref if credential else None,
            "api_version": provider.api_version or None,
            "key_header": provider.key_header or None,
            "headers": provider.headers,
            "limit_field": provider.limit_field or None,
            "responses": provider.has_responses,
        }

    def text(self, result: dict[str, Any]) -> str:
        models = ", ".join(result["models"]) or "every model priced for it"
        return f"Provider {result['provider']} {result['change']}: {result['wire']} at {result['base_url']}, {models}."


def _headers(given: list[str] | None) -> dict[str, str] | None:
    if given is None:
        return None
    pairs = [text.partition("=") for text in given if text]
    return {name.strip(): value.strip() for name, _, value in pairs}
