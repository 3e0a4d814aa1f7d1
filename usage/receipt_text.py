"""A receipt for the terminal. Knows the receipt's JSON only, so that it can be shown wherever that can be fetched."""

from collections.abc import Iterator
from typing import Any

_ITEMS = {
    "input": "input",
    "cache_read": "cache read",
    "cache_write_5m": "cache write 5 min",
    "cache_write_1h": "cache write 1 h",
    "output": "output",
    "input_audio": "audio input",
    "cache_audio_read": "audio cache read",
    "output_audio": "audio output",
    "input_image": "image input",
    "cache_image_read": "image cache read",
    "output_image": "image output",
    "web_search": "web search",
    "file_search": "file search",
    "image_256": "images, 256 px",
    "image_512": "images, 512 px",
    "image_1024": "images, 1024 px",
    "image_wide": "images, wide",
    "image_hd_1024": "HD images, 1024 px",
    "image_hd_wide": "HD images, wide",
    "input_seconds": "seconds of audio",
    "input_characters": "characters",
    "earlier_tries": "earlier tries, by your plan",
    "share_of_saving": "share of what was saved",
    "rounding": "rounding to a nano-dollar",
    "difference": "not explained by price",
    "above_hold": "above the hold, borne by us",
}


def text(receipt: dict[str, Any]) -> str:
    """Lines of at most 100 columns, for names of common length."""
    return "\n".join(_lines(receipt))


def _lines(r: dict[str, Any]) -> Iterator[str]:
    how = "streamed" if r["streamed"] else "plain"
    outcome = " ".join(str(part) for part in (r["state"], r["status"], r["error"]) if part)
    yield f"{printable(r['id'])}  {outcome}"
    yield f"  {printable(r['tenant']['name'])} / {printable(r['environment']['name'])} / {r['key']['prefix']}"
    yield f"  {printable(r['model'])} by {r['provider']}, {r['wire']} {r['endpoint']}, {how}"
    yield f"  price {r['price']['id']} ({r['price']['source']}) since {r['price']['valid_from'][:10]}{_contract(r['price'])}"
    if r["price"]["without_price"]:
        yield f"  rated by the dearest price: {', '.join(printable(each) for each in r['price']['without_price'])}"
    yield ""
    for line in r["lines"]:
        yield f"  {_ITEMS.get(line['item'], line['item'][:28]):<28}{_tokens(line):>34}  {_aligned(line['usd'])}"
    yield f"  {'charged':<28}{_evidence(r):>34}  {_aligned(r['charged_usd'])} USD"
    for each in r["corrections"]:
        yield f"  {'corrected, ' + each['at'][:10]:<28}{printable(each['reason'])[:34]:>34}  {_aligned(each['usd'])}"
    if r["corrections"]:
        yield f"  {'to pay':<28}{'':>34}  {_aligned(r['to_pay_usd'])} USD"
    if r["cache_saving_usd"].strip("-0."):
        yield f"  {'saved by the prompt cache':<28}{'':>34}  {_aligned(r['cache_saving_usd'])}"
    yield from _given_again(r["given_again"])
    if r["prompt_cache"]:
        yield f"  prompt cache: {printable(r['prompt_cache'])}"
    yield f"  {'held, and released of it':<28}{r['released_usd']:>34}  {_aligned(r['held_usd'])}"
    for name, label in (("platform_loss_usd", "borne by us"), ("provider_cost_usd", "the provider's cost")):
        if name == "provider_cost_usd" or r[name].strip("0."):
            yield f"  {label:<28}{'':>34}  {_aligned(r[name])}"
    yield from _caps(r["caps"])
    yield ""
    for step in r["timeline"]:
        yield f"  {step['ms']:>12.1f} ms  {step['step']}"
    yield from _attempts(r["attempts"])
    yield from _left_out(r["left_out"])
    numbers = ", ".join(f"{entry['number']} {entry['kind']}" for entry in r["ledger"])
    yield f"  ledger: {numbers or 'no entries'}"


def _given_again(again: dict[str, Any] | None) -> Iterator[str]:
    if again:
        how, age = f"saved, {again['how']} answer", f"{again['age_seconds']} s old"
        yield f"  {how:<28}{age:>34}  {_aligned(again['saved_usd'])}"
        yield f"  made for {printable(again['source'])}"


def _caps(caps: list[dict[str, Any]]) -> Iterator[str]:
    yield ""
    for cap in caps:
        until = f"until {cap['resets_at'][:16]}" if cap["resets_at"] else ""
        name = f"{cap['scope'].replace('_', ' ')} cap per {cap['period']}"
        yield f"  {name:<28}{'left of ' + cap['limit_usd']:>34}  {_aligned(cap['left_usd'])} {until}".rstrip()
    if not caps:
        yield "  no cap applies"


def _attempts(attempts: list[dict[str, Any]]) -> Iterator[str]:
    """Every try where there was more than one, else what went wrong with the only one."""
    for attempt in attempts:
        if len(attempts) > 1 or attempt["error"]:
            asked = f" for {printable(attempt['model'])}" if attempt["model"] else ""
            by = f" by {printable(attempt['credential'])}" if attempt["credential"] else ""
            waited = f" after {attempt['backoff_ms']} ms" if attempt["backoff_ms"] else ""
            how = " ".join(str(part) for part in (attempt["outcome"], attempt["status"]) if part)
            why = f": {printable(attempt['error'])}" if attempt["error"] else ""
            yield f"  attempt {attempt['n']} at {attempt['provider']}{asked}{by}{waited}, {how}{why}"


def _left_out(steps: list[dict[str, str]]) -> Iterator[str]:
    for step in steps:
        yield f"  left out of its chain: {printable(step['model'])} at {step['provider']}, {step['reason']}"


def _tokens(line: dict[str, Any]) -> str:
    if "calls" in line:
        return f"{line['calls']:,} x {line['usd_per_thousand']} / 1,000"
    if "units" in line:
        return f"{line['units']:,} x {line['usd_each']}"
    return f"{line['tokens']:,} x {line['usd_per_million']} / 1M" if "tokens" in line else ""


def _contract(price: dict[str, Any]) -> str:
    """How it was served, if not as usual, and what applied instead of the list price."""
    words = [] if price["variant"] == "standard" else [price["variant"]]
    if price["tariff"]:
        words.append(f"tariff {price['tariff']['id']}, list {price['tariff']['markup_percent']} %")
        words += ["on your own credential"] if price["tariff"]["own_key"] else []
    return "".join(f", {word}" for word in words)


def _evidence(r: dict[str, Any]) -> str:
    return {"provider": "by the provider's own usage", "counted": "counted by us"}.get(r["evidence"] or "", "")


def _aligned(usd: str) -> str:
    """Amounts under each other by their decimal point."""
    whole, _, decimals = usd.partition(".")
    return f"{whole:>6}.{decimals:<9}"


def printable(text: str) -> str:
    """What others wrote, without anything that a terminal obeys."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
