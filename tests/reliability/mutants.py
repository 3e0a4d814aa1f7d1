"""Hand-made mistakes in the money code, each of which a proof must notice."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """A text in a function of the database, or in a file of ours, and what stands there instead; `proof` is to notice."""

    name: str
    place: str
    old: str
    new: str
    proof: str = "model"

    @property
    def is_python(self) -> bool:
        return self.place.endswith(".py")


MUTANTS = (
    Mutant("settled twice", "usage_settle", "WHERE c.id = u.id AND c.state = ANY (from_states) AND", "WHERE c.id = u.id AND"),
    Mutant("the hold released twice", "usage_settle", "held_nano = b.held_nano - x.freed", "held_nano = b.held_nano - 2 * x.freed"),
    Mutant(
        "caps locked in another order", "usage_hold", "ORDER BY b.id FOR NO KEY UPDATE OF b", "ORDER BY b.id DESC FOR NO KEY UPDATE OF b",
        "lock order",
    ),
    Mutant(
        "the hold rounded down", "usage_hold", "hold := one.base + ceil(one.unit::numeric * granted / 1000)",
        "hold := one.base + floor(one.unit::numeric * granted / 1000)",
    ),
    Mutant(
        "what is held not counted", "usage_hold", "room := b_limit[at] - b_spent[at] - b_held[at] - b_added[at]",
        "room := b_limit[at] - b_spent[at] - b_added[at]",
    ),
    Mutant(
        "caps of an environment forgotten", "usage_hold", "(c.environment_id IS NULL OR c.environment_id = k.environment_id)",
        "c.environment_id IS NULL",
    ),
    Mutant("caps on each end user forgotten", "usage_hold", "OR (c.end_user = '*' AND p.end_user <> '')", ""),
    Mutant("charged above the hold", "usage_settle", "least(u.cost + c.retried_charge_nano, c.held_nano)", "u.cost + c.retried_charge_nano"),
    Mutant("an Idempotency-Key for any body", "usage_idempotency", "stood.body_hash <> one.body", "false"),
    Mutant("a ledger that takes an entry twice", "usage_ledgerentry", "PRIMARY KEY", "", "ledger"),
    Mutant("a correction that no cap hears of", "usage_correct", "b.spent_nano + delta", "b.spent_nano"),
    Mutant("a raise without its end", "usage_cap_limit", "c.raise_until > moment", "c.raise_until IS NOT NULL"),
    Mutant(
        "a new cap that does not wait for admissions", "usage_lock_caps",
        "PERFORM pg_advisory_xact_lock(hashtextextended(tenant::text, 0))",
        "PERFORM pg_advisory_xact_lock_shared(hashtextextended(tenant::text, 0))", "admit and new_cap",
    ),
    Mutant(
        "a new cap that does not wait for settlements", "usage_count_cap", "ORDER BY x.id FOR UPDATE) l", "ORDER BY x.id) l",
        "settle and new_cap",
    ),
    Mutant("a sweep that takes calls of the living", "aiplatform/gateway/recovery.py", "c.worker_process IS NOT NULL AND p.state IS DISTINCT FROM 'alive'", "c.worker_process IS NOT NULL"),
    Mutant("calls settled by any worker", "usage/ledger.py", "        worker, texts(from_states),", "        None, texts(from_states),"),
)  # fmt: skip
SHORT = (
    "settled twice",
    "what is held not counted",
    "caps locked in another order",
    "a new cap that does not wait for settlements",
)
