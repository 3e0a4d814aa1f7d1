-- What a call costs stays flat, however many tenants there are and whoever they are.

-- A function with a query of its own is called for each cap; as an expression the planner puts it in place.
CREATE FUNCTION usage_expired_credit(tenant uuid, moment timestamptz) RETURNS bigint LANGUAGE sql STABLE AS $$
    SELECT coalesce(sum(g.amount_nano - g.burnt_nano - g.expired_nano), 0)::bigint FROM usage_creditgrant g
    WHERE g.tenant_id = tenant AND g.expires_at <= moment
$$;
-- What a cap allows at `moment`: its limit and what it is raised by; a balance without what has expired.
CREATE OR REPLACE FUNCTION usage_cap_limit(c usage_spendingcap, moment timestamptz) RETURNS bigint LANGUAGE sql STABLE AS $$
    SELECT c.limit_nano + CASE WHEN c.raise_until > moment THEN c.raise_nano ELSE 0 END
        - CASE WHEN c.mode <> 'credit' THEN 0 ELSE usage_expired_credit(c.tenant_id, moment) END
$$;
