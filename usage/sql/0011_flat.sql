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

-- Takes held calls for one live worker process; from here on they are maybe sent, and each has its first attempt's row. Calls
-- whose key, environment or tenant was suspended meanwhile stay behind, for the sweeper to void.
CREATE OR REPLACE FUNCTION usage_claim(worker uuid, wanted uuid[])
RETURNS TABLE (
    id uuid, tenant_id uuid, environment_id uuid, api_key_id uuid, price_id bigint, tariff_id bigint, request_id text, wire text,
    endpoint text, model text, provider text, streamed boolean, held_nano bigint, max_output_tokens bigint, web_process uuid,
    deadline_seconds double precision, headers jsonb, body bytea
) LANGUAGE sql AS $$
    WITH claimed AS (
        UPDATE usage_call c SET state = 'inflight', worker_process = worker, claimed_at = clock_timestamp()
        WHERE c.id IN (SELECT w.id FROM usage_call w WHERE w.id = ANY (wanted) AND w.state = 'held' AND w.start_by > now()
                       ORDER BY w.id FOR NO KEY UPDATE SKIP LOCKED)
          AND EXISTS (SELECT 1 FROM usage_processlease p WHERE p.id = worker AND p.state = 'alive')
          AND NOT EXISTS (SELECT 1 FROM tenants_tenant t WHERE t.id = c.tenant_id AND t.suspended_at IS NOT NULL)
          AND NOT EXISTS (SELECT 1 FROM tenants_environment e WHERE e.id = c.environment_id AND e.suspended_at IS NOT NULL)
          AND NOT EXISTS (SELECT 1 FROM tenants_apikey k WHERE k.id = c.api_key_id AND k.suspended_at IS NOT NULL)
        RETURNING c.*
    ), tried AS (
        INSERT INTO usage_attempt (call_id, n, provider, started_at)
        SELECT c.id, 1, c.provider, clock_timestamp() FROM claimed c
    )
    SELECT c.id, c.tenant_id, c.environment_id, c.api_key_id, c.price_id, c.tariff_id, c.request_id, c.wire, c.endpoint, c.model,
        c.provider, c.streamed, c.held_nano, c.max_output_tokens, c.web_process, extract(epoch FROM c.deadline_at - now()),
        p.headers, p.body
    FROM claimed c JOIN usage_callpayload p ON p.call_id = c.id AND p.kind = 'request'
    ORDER BY c.id
$$;
