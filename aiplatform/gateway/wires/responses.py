"""OpenAI's Responses: what a request asks for, and the most that it can cost, input that is not in its body included.

Sources, read in November 2026: developers.openai.com/api/reference/resources/responses, …/docs/guides/background,
…/docs/guides/conversation-state, …/docs/guides/tools. docs/responses.md has the decisions in words.
"""

from typing import Any
from urllib.parse import parse_qs

from aiplatform.gateway.wires.base import (
    MOST_OUTPUT_TOKENS,
    Asked,
    BadRequest,
    Facts,
    Named,
    NotPriced,
    end_user,
    flag,
    read_object,
    text,
    whole,
)
from aiplatform.gateway.wires.bounds import TEMPLATE_TOKENS, TOOLS_TOKENS, Media
from aiplatform.gateway.wires.kept import free, read_named
from aiplatform.gateway.wires.openai import (
    NO_SEARCH,
    SEARCHES_BY_ITSELF,
    add_audio,
    add_image,
    check_cache,
    output_meters,
    shown,
    variants,
)
from usage.pricing import Bound

_TEXT_PARTS = frozenset(("input_text", "output_text", "text", "refusal", "summary_text", "reasoning_text"))
# Their bytes are all that there is of them; whatever else may stand in an input brings in what is not in the body.
_PLAIN_ITEMS = frozenset(("function_call", "custom_tool_call", "configuration_update"))
_OUTPUTS = frozenset(("function_call_output", "custom_tool_call_output"))
# Fields of a request that bring in input, output or a bill of which the body tells nothing.
_UNBOUNDED = {
    "conversation": "A conversation grows by what others add, so nobody can bound it before: use `previous_response_id`, or "
    "send what was said in `input`.",
    "prompt": "The text of a stored prompt is not in the request: send it in `instructions` and `input`.",
    "context_management": "Compaction is a model's work of its own, beyond this call's output limit: leave it out.",
    "prediction": "Predicted tokens that are rejected are billed beyond the output limit; leave `prediction` out.",
    "web_search_options": NO_SEARCH,
}


def read(asked: Asked) -> Facts:
    """The facts of a request; raises BadRequest or NotPriced with what was wrong."""
    request = read_object(asked.body)
    model = text(request, "model")
    media = Media()
    names = _read_input(request, model, media)
    facts = Facts(
        wire=asked.endpoint.wire,
        endpoint=asked.endpoint.name,
        model=model,
        body=asked.body,
        streamed=flag(request, "stream"),
        end_user=end_user(request.get("user") or request.get("safety_identifier"), asked.headers),
        bound=_bound(request, model, len(asked.body), media),
        max_tokens=whole(request, "max_output_tokens", MOST_OUTPUT_TOKENS),
        max_tokens_field="max_output_tokens",
        media_bytes=media.encoded_bytes,
        names=names,
        figures={"media": sorted(media.meters)} if media.meters else {},
    )
    flag(request, "background")
    if beta := asked.headers.get("openai-beta"):
        facts.forward["openai-beta"] = beta
    return facts


def read_count(asked: Asked) -> Facts:
    """A request to count the tokens of an input: free, and refused where the call itself would be."""
    request = read_object(asked.body)
    facts = free(asked, model=text(request, "model") if request.get("model") is not None else "")
    facts.names = _read_input(request, facts.model, Media())
    _refuse_what_has_no_bound(request)
    _checked_tools(request.get("tools"), "tools")
    return facts


def read_look(asked: Asked) -> Facts:
    """A look at a stored response, or its events again."""
    facts = read_named(asked)
    facts.streamed = parse_qs(asked.query).get("stream", [""])[-1].lower() == "true"
    return facts


def _bound(request: dict[str, Any], model: str, body_bytes: int, media: Media) -> Bound:
    if SEARCHES_BY_ITSELF.search(model):
        raise NotPriced(NO_SEARCH, param="model")
    _refuse_what_has_no_bound(request)
    tokens = body_bytes - media.encoded_bytes + TEMPLATE_TOKENS
    if _checked_tools(request.get("tools"), "tools"):
        tokens += TOOLS_TOKENS
    return Bound(tokens, media.meters, output_meters(request), 1, *variants(request))


def _refuse_what_has_no_bound(request: dict[str, Any]) -> None:
    for name, why in _UNBOUNDED.items():
        if request.get(name) is not None:
            raise NotPriced(why, param=name)
    reasoning, options = _object(request, "reasoning"), _object(request, "background_options")
    if reasoning.get("mode") not in (None, "standard"):
        raise NotPriced(
            f"The reasoning mode {shown(reasoning['mode'])} has no price for each token; leave `mode` out.",
            param="reasoning.mode",
        )
    if options.get("completion_window") not in (None, "soonest"):
        raise NotPriced(
            "A completion window other than `soonest` has no price of its own; leave it out.",
            param="background_options",
        )
    if request.get("prompt_cache_options") is not None:
        check_cache(request["prompt_cache_options"], "prompt_cache_options")


def _object(request: dict[str, Any], name: str) -> dict[str, Any]:
    found = request.get(name)
    if found is not None and not isinstance(found, dict):
        raise BadRequest(f"`{name}` must be an object.", param=name)
    return found or {}


def _checked_tools(tools: Any, where: str) -> bool:
    """Whether there are tools; raises NotPriced for those that the provider carries out by itself."""
    if tools is None:
        return False
    if not isinstance(tools, list):
        raise BadRequest(f"`{where}` must be an array.", param=where)
    for at, tool in enumerate(tools):
        kind = tool.get("type") if isinstance(tool, dict) else None
        if kind == "namespace":
            _checked_tools(tool.get("tools"), where)
        elif kind not in ("function", "custom"):
            raise NotPriced(
                f"{where}[{at}]: the cost of the tool {shown(kind)} cannot be bounded; use function or custom tools, and carry "
                "them out yourself.",
                param=where,
            )
    return bool(tools)


# --- the input ------------------------------------------------------------------------------------------------------


def _read_input(request: dict[str, Any], model: str, media: Media) -> list[Named]:
    """Looks at what is no text; returns what is named instead of sent."""
    names = [_named("response", request, "previous_response_id")]
    options = request.get("prompt_cache_options")
    if isinstance(options, dict):
        names.append(_named("response", options, "comparison_response_id"))
    if not isinstance(request.get("instructions"), str | None):
        raise BadRequest("`instructions` must be a string.", param="instructions")
    given = request.get("input")
    if not isinstance(given, str | list | None):
        raise BadRequest("`input` must be a string or an array.", param="input")
    for at, item in enumerate(given if isinstance(given, list) else ()):
        names.append(_read_item(item, model, media, f"input[{at}]"))
    return [one for one in names if one]


def _named(kind: str, of: dict[str, Any], field: str, param: str = "") -> Named | None:
    found = of.get(field)
    if not isinstance(found, str | None):
        raise BadRequest(f"`{field}` must be a string.", param=param or field)
    return Named(kind, found, param or field) if found else None


def _read_item(item: Any, model: str, media: Media, where: str) -> Named | None:
    """What the item names, if it only names it."""
    if not isinstance(item, dict):
        raise BadRequest(f"`{where}` must be an object.", param=where)
    kind = str(item.get("type") or ("message" if "role" in item else "item_reference"))
    if kind == "item_reference" or (kind == "reasoning" and not item.get("encrypted_content")):
        # The provider looks up what it has stored under this id: it is input, and somebody's own.
        return _named("item", item, "id", "input")
    if kind == "message":
        _read_parts(item.get("content"), model, media, where)
    elif kind in _OUTPUTS:
        _read_parts(item.get("output"), model, media, where)
    elif kind == "additional_tools":
        _checked_tools(item.get("tools"), where)
    elif kind != "reasoning" and kind not in _PLAIN_ITEMS:
        raise NotPriced(
            f"The cost of an input item of type {shown(kind)} cannot be bounded; send messages, reasoning items, and the calls "
            "and outputs of function and custom tools.",
            param=where,
        )
    return None


def _read_parts(content: Any, model: str, media: Media, where: str) -> None:
    if isinstance(content, str | None):
        return
    if not isinstance(content, list):
        raise BadRequest(f"The content of `{where}` must be a string or an array.", param=where)
    for part in content:
        kind = str(part.get("type")) if isinstance(part, dict) else ""
        if kind == "input_image" and part.get("file_id") is None:
            add_image({"url": part.get("image_url"), "detail": part.get("detail")}, model, media, where)
        elif kind == "input_audio":
            add_audio(part.get("input_audio"), media, where)
        elif kind not in _TEXT_PARTS:
            raise NotPriced(
                f"The cost of a content part of type {shown(kind)} cannot be bounded; send input_text, input_image with an "
                "`image_url`, or input_audio parts.",
                param=where,
            )
        if isinstance(part, dict) and "prompt_cache_breakpoint" in part:
            check_cache(part["prompt_cache_breakpoint"], where)


# --- what was said before -------------------------------------------------------------------------------------------


def bound_earlier(facts: Facts) -> None:
    """Adds to the bound what the request names instead of sending it, by what is on record of it (`facts.objects`).

    Raises NotPriced where its tokens are not known, or were counted for another model.
    """
    for named, row in zip(facts.names, facts.objects, strict=True):
        if named.kind not in {"response", "item"} or named.param == "comparison_response_id":
            continue
        tokens = row.figures.get("tokens")
        if tokens is None:
            raise NotPriced(
                f"How many tokens {named.id!r} has is not known: it has not ended yet, or ended without telling. Send what was "
                "said in `input`.",
                param=named.param,
            )
        if facts.model not in (row.model, row.figures.get("served")) and not row.figures.get("is_bytes"):
            raise NotPriced(
                f"{named.id!r} was counted for {row.model!r}; another model may make more tokens of it. Send what was said in "
                "`input`.",
                param=named.param,
            )
        _add_earlier(facts, tokens, row.figures.get("media", ()))


def _add_earlier(facts: Facts, tokens: int, media: list[str]) -> None:
    """Tokens that may be text, or an image's or audio's, are held as the dearest of what they may be."""
    meters = dict(facts.bound.meters)
    for meter in media:
        meters[meter] = meters.get(meter, 0) + tokens
    text = 0 if media else tokens
    facts.bound = facts.bound._replace(input_tokens=facts.bound.input_tokens + text, meters=meters)
    facts.earlier_tokens += text
    if media:
        facts.figures["media"] = sorted({*media, *facts.figures.get("media", ())})
