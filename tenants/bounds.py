"""What an issued key is bound to: models, endpoints, pages of browsers and addresses. What is outside is refused with 403."""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from aiplatform.lib.errors import ApiError

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
MOST_TOLD = 20
EVERY_SUCH = "*"


class KeyNotAllowed(ApiError):
    """This key is bound to something else."""

    status = 403
    code = "key_not_allowed"
    always = {"x-should-retry": "false"}


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one key may do, and from where; an empty list allows everything, but no `origins` allow no page."""

    models: tuple[str, ...] = ()
    endpoints: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    networks: tuple[Network, ...] = ()

    def allows_model(self, name: str) -> bool:
        return not self.models or any(_matches(name, allowed) for allowed in self.models)


def of(
    models: Sequence[str], endpoints: Sequence[str], origins: Sequence[str], networks: Sequence[str]
) -> Bounds | None:
    """The bounds that a key's row says; None for a key that is bound to nothing."""
    if not (models or endpoints or origins or networks):
        return None
    return Bounds(tuple(models), tuple(endpoints), tuple(origins), tuple(map(ipaddress.ip_network, networks)))


def refuse_caller(bounds: Bounds | None, *, origin: str | None, address: str) -> None:
    """Raises KeyNotAllowed for a page or an address that the key is not bound to.

    `origin` is the header of that name, None where there is none: browsers send it for every page of another site.
    """
    if bounds is None and origin is None:
        return
    if not is_from_its_page(bounds, origin):
        _refuse_origin(bounds, origin)
    if bounds is not None and bounds.networks and not _is_within(address, bounds.networks):
        raise _refusal(
            "networks", f"This key may not be used from the address {address[:60] or 'that nobody knows'}",
            [str(network) for network in bounds.networks], "Call from there, or have the key bound to this address as well.",
        )  # fmt: skip


def refuse_call(bounds: Bounds | None, *, model: str, endpoint: str) -> None:
    """Raises KeyNotAllowed for a model or an endpoint that the key is not bound to; a call may name no model ("")."""
    if bounds is None:
        return
    if bounds.endpoints and endpoint not in bounds.endpoints:
        raise _refusal(
            "endpoints", f"This key may not call the endpoint {endpoint}", bounds.endpoints,
            "Use one of these, or have the key bound to it as well.",
        )  # fmt: skip
    if model and not bounds.allows_model(model):
        raise _refusal(
            "models", f"This key may not ask for the model {model[:200]!r}", bounds.models,
            "Use one of these, or have the key bound to it as well.",
        )  # fmt: skip


def is_from_its_page(bounds: Bounds | None, origin: str | None) -> bool:
    """Whether the request comes from a page of the key's, or, where the key is for no page, from none at all."""
    if bounds is None or not bounds.origins:
        return origin is None
    return origin is not None and origin.lower() in bounds.origins


def _refuse_origin(bounds: Bounds | None, origin: str | None) -> None:
    if bounds is None or not bounds.origins:
        raise KeyNotAllowed(
            f"This key is for servers, and the request comes from a page of {str(origin)[:200]!r}: whoever opens the page can "
            "read the key. Take it out of the page and revoke it; call from your server, or use a key that is bound to this "
            "origin and may spend little.",
            binding="origins",
            allowed=[],
        )
    what = (
        f"to the page of {origin[:200]!r}" if origin is not None else "to a caller that is no page (no Origin header)"
    )
    raise _refusal("origins", f"This key does not belong {what}", bounds.origins, "Use another key there.")


def _refusal(binding: str, what: str, allowed: Sequence[str], do: str) -> KeyNotAllowed:
    told = ", ".join(allowed[:MOST_TOLD]) + (" and others" if len(allowed) > MOST_TOLD else "")
    return KeyNotAllowed(f"{what}; it is bound to {told}. {do}", binding=binding, allowed=list(allowed[:MOST_TOLD]))


def _matches(name: str, allowed: str) -> bool:
    return name.startswith(allowed[:-1]) if allowed.endswith(EVERY_SUCH) else name == allowed


def _is_within(text: str, networks: Sequence[Network]) -> bool:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped  # how a socket of both families tells IPv4
    return any(address in network for network in networks)
