UPDATE usage_call SET is_live = false WHERE state IN ('settled', 'void');
CREATE TABLE usage_creditconsumption (
    call_id uuid NOT NULL,
    grant_id uuid NOT NULL,
    seq smallint NOT NULL DEFAULT 0,
    amount_nano bigint NOT NULL CHECK (amount_nano <> 0),
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (call_id, grant_id, seq)
) PARTITION BY RANGE (call_id);
CREATE INDEX credit_by_grant ON usage_creditconsumption (grant_id);
CREATE TABLE usage_creditconsumption_other PARTITION OF usage_creditconsumption DEFAULT;

-- A call is written three times; with room on its page the second version touches no index.
DO $$
DECLARE child regclass;
BEGIN
    FOR child IN SELECT inhrelid::regclass FROM pg_inherits WHERE inhparent IN ('usage_call'::regclass, 'usage_attempt'::regclass) LOOP
        EXECUTE format('ALTER TABLE %s SET (fillfactor = 60)', child);
    END LOOP;
END $$;
CREATE INDEX tenant_suspended ON tenants_tenant (id) WHERE suspended_at IS NOT NULL;
CREATE INDEX environment_suspended ON tenants_environment (id) WHERE suspended_at IS NOT NULL;
CREATE INDEX api_key_suspended ON tenants_apikey (id) WHERE suspended_at IS NOT NULL;
-- The sweeper looks for what has run out every few seconds, however many caps and grants there are.
CREATE INDEX cap_raised ON usage_spendingcap (raise_until) WHERE raise_until IS NOT NULL;
CREATE INDEX credit_expiring ON usage_creditgrant (expires_at) WHERE expires_at IS NOT NULL;

-- The clock by which calls belong to periods.
CREATE FUNCTION usage_now() RETURNS timestamptz LANGUAGE sql VOLATILE AS $$ SELECT clock_timestamp() $$;

CREATE FUNCTION usage_cap_scope(c usage_spendingcap) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN c.mode = 'credit' THEN 'credit' WHEN c.tenant_id IS NULL THEN 'platform' WHEN c.end_user <> '' THEN 'end_user'
        WHEN c.api_key_id IS NOT NULL THEN 'key' WHEN c.environment_id IS NOT NULL THEN 'environment' ELSE 'tenant' END
$$;

-- What a cap allows at `moment`: its limit and what it is raised by; a balance without what has expired.
CREATE FUNCTION usage_cap_limit(c usage_spendingcap, moment timestamptz) RETURNS bigint LANGUAGE sql STABLE AS $$
    SELECT c.limit_nano + CASE WHEN c.raise_until > moment THEN c.raise_nano ELSE 0 END
        - CASE WHEN c.mode <> 'credit' THEN 0 ELSE (
            SELECT coalesce(sum(g.amount_nano - g.burnt_nano - g.expired_nano), 0)::bigint FROM usage_creditgrant g
            WHERE g.tenant_id = c.tenant_id AND g.expires_at <= moment) END
$$;

-- Locks are taken in one order everywhere: the platform's and the tenants' advisory locks (shared to hold, exclusive to change
-- caps), idempotency keys, calls by id, buckets by id, credit grants.

-- Admits a batch of calls in order, each against every cap that matches it, all or nothing per call.
--   verdict: held | stale | again | key_invalid | suspended | cap_exceeded | cap_contended | replay | key_reused
--   hold = base + output price * max output tokens; where a cap affords fewer tokens, as many as it affords are granted, down
--   to the floor.
DROP FUNCTION usage_hold;
CREATE FUNCTION usage_hold(
    web uuid, known_revision bigint, start_within interval, deadline_within interval,
    ids uuid[], keys uuid[], end_users text[], request_ids text[], wires text[], endpoints text[], models text[],
    providers text[], streams boolean[], price_ids bigint[], tariff_ids bigint[], bases_nano bigint[], units_pico bigint[],
    wanted_tokens bigint[], floor_tokens bigint[], idempotency_hashes bytea[], body_hashes bytea[], headers jsonb[], bodies bytea[]
) RETURNS TABLE (
    n integer, verdict text, call_id uuid, held_nano bigint, max_tokens bigint, remaining_nano bigint, cap_id bigint,
    cap_scope text, cap_period text, limit_nano bigint, spent_nano bigint, cap_held_nano bigint, affordable_tokens bigint,
    resets_at timestamptz
) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    moment timestamptz; one record; at integer; room bigint; need bigint; fits bigint; hold bigint; granted bigint;
    worst integer; exceeded integer; spare bigint; prepaid boolean; buckets bigint[];
    stood uuid[]; known jsonb := '{}';  -- what idempotency keys say, by place in the batch
    q_key uuid[]; q_asked text[]; q_cap bigint[]; q_user text[]; q_zone text[];  -- who meets which cap
    b_id bigint[]; b_cap bigint[]; b_user text[]; b_scope text[]; b_mode text[]; b_period text[]; b_limit bigint[];
    b_held bigint[]; b_spent bigint[]; b_ends timestamptz[]; b_added bigint[]; b_missed bigint[]; b_missed_nano bigint[];
    a_n integer[] := '{}'; a_tenant uuid[] := '{}'; a_environment uuid[] := '{}'; a_held bigint[] := '{}';
    a_tokens bigint[] := '{}'; a_buckets text[] := '{}'; a_clamped boolean[] := '{}'; a_prepaid boolean[] := '{}';
BEGIN
    IF (SELECT revision FROM usage_catalogue WHERE id = 1) <> known_revision THEN
        RETURN QUERY SELECT g, 'stale', NULL::uuid, 0::bigint, 0::bigint, NULL::bigint, NULL::bigint, NULL::text, NULL::text,
            NULL::bigint, NULL::bigint, NULL::bigint, NULL::bigint, NULL::timestamptz FROM generate_subscripts(ids, 1) g;
        RETURN;
    END IF;

    -- A new cap counts what its period has already seen; until it has counted, nothing of its tenant is admitted.
    PERFORM pg_advisory_xact_lock_shared(5701);
    PERFORM pg_advisory_xact_lock_shared(l.tenant)
    FROM (SELECT DISTINCT hashtextextended(k.tenant_id::text, 0) AS tenant FROM tenants_apikey k WHERE k.id = ANY (keys)
          ORDER BY 1) l;
    IF array_length(array_remove(idempotency_hashes, NULL), 1) > 0 THEN
        known := usage_idempotency(ids, keys, idempotency_hashes, body_hashes);
    END IF;

    SELECT array_agg(x.key), array_agg(x.end_user), array_agg(x.cap_id), array_agg(x.bucket_user), array_agg(x.zone)
    INTO q_key, q_asked, q_cap, q_user, q_zone
    FROM (SELECT p.key, p.end_user, c.id AS cap_id, CASE WHEN c.end_user = '*' THEN p.end_user ELSE '' END AS bucket_user,
              t.time_zone AS zone
          FROM (SELECT DISTINCT u.key, u.end_user FROM unnest(keys, end_users) AS u(key, end_user)) p
          JOIN tenants_apikey k ON k.id = p.key
          JOIN tenants_tenant t ON t.id = k.tenant_id
          JOIN usage_spendingcap c ON c.tenant_id = k.tenant_id
              AND (c.end_user IN ('', p.end_user) OR (c.end_user = '*' AND p.end_user <> ''))
              AND (c.environment_id IS NULL OR c.environment_id = k.environment_id)
              AND (c.api_key_id IS NULL OR c.api_key_id = k.id)
          UNION ALL
          SELECT p.key, p.end_user, c.id, '', 'UTC'
          FROM (SELECT DISTINCT u.key, u.end_user FROM unnest(keys, end_users) AS u(key, end_user)) p
          CROSS JOIN usage_spendingcap c WHERE c.tenant_id IS NULL) x;

    LOOP
        moment := usage_now();
        SELECT array_agg(l.id), array_agg(l.cap_id), array_agg(l.end_user), array_agg(l.scope), array_agg(l.mode),
            array_agg(l.period), array_agg(l.limit_nano), array_agg(l.held_nano), array_agg(l.spent_nano), array_agg(l.ends_at),
            array_agg(0::bigint), array_agg(0::bigint), array_agg(0::bigint)
        INTO b_id, b_cap, b_user, b_scope, b_mode, b_period, b_limit, b_held, b_spent, b_ends, b_added, b_missed, b_missed_nano
        FROM (SELECT b.id, c.id AS cap_id, b.end_user, usage_cap_scope(c) AS scope, c.mode, c.period,
                  usage_cap_limit(c, moment) AS limit_nano, b.held_nano, b.spent_nano, b.ends_at
              FROM (SELECT DISTINCT q.cap_id, q.end_user, q.zone FROM unnest(q_cap, q_user, q_zone) AS q(cap_id, end_user, zone)) m
              JOIN usage_spendingcap c ON c.id = m.cap_id
              CROSS JOIN LATERAL usage_period(c.period, m.zone, moment) p
              JOIN usage_capbucket b ON b.cap_id = m.cap_id AND b.end_user = m.end_user AND b.starts_at = p.starts_at
              ORDER BY b.id FOR NO KEY UPDATE OF b) l;
        EXIT WHEN (SELECT count(DISTINCT (q.cap_id, q.end_user)) FROM unnest(q_cap, q_user) AS q(cap_id, end_user))
            = coalesce(array_length(b_id, 1), 0);
        INSERT INTO usage_capbucket (cap_id, end_user, starts_at, ends_at, held_nano, spent_nano, notice_at_nano)
        SELECT m.cap_id, m.end_user, p.starts_at, p.ends_at, 0, 0, usage_notice_at(c, 0, moment)
        FROM (SELECT DISTINCT q.cap_id, q.end_user, q.zone FROM unnest(q_cap, q_user, q_zone) AS q(cap_id, end_user, zone)) m
        JOIN usage_spendingcap c ON c.id = m.cap_id, LATERAL usage_period(c.period, m.zone, moment) p
        ORDER BY m.cap_id, m.end_user
        ON CONFLICT DO NOTHING;
    END LOOP;
    -- A batch whose COMMIT was answered to nobody comes again; its calls stand, whatever the caps have left by now.
    SELECT array_agg(c.id) INTO stood FROM usage_call c WHERE c.id = ANY (ids);

    FOR one IN
        WITH place AS (
            SELECT q.key, q.end_user, array_agg(x.at ORDER BY x.at) AS places
            FROM unnest(q_key, q_asked, q_cap, q_user) AS q(key, end_user, cap_id, bucket_user)
            JOIN unnest(b_cap, b_user) WITH ORDINALITY AS x(cap_id, bucket_user, at) USING (cap_id, bucket_user)
            GROUP BY q.key, q.end_user
        ), party AS (
            SELECT p.key, p.end_user, k.tenant_id, k.environment_id, place.places,
                CASE WHEN k.id IS NULL OR k.revoked_at IS NOT NULL OR k.expires_at <= moment THEN 'key_invalid'
                     WHEN coalesce(t.suspended_at, e.suspended_at, k.suspended_at) IS NOT NULL THEN 'suspended' END AS refused
            FROM (SELECT DISTINCT u.key, u.end_user FROM unnest(keys, end_users) AS u(key, end_user)) p
            LEFT JOIN place USING (key, end_user)
            LEFT JOIN tenants_apikey k ON k.id = p.key
            LEFT JOIN tenants_tenant t ON t.id = k.tenant_id
            LEFT JOIN tenants_environment e ON e.id = k.environment_id
        )
        SELECT u.*, p.tenant_id, p.environment_id, p.places, p.refused
        FROM unnest(keys, end_users, bases_nano, units_pico, wanted_tokens, floor_tokens)
            WITH ORDINALITY AS u(key, end_user, base, unit, wanted, floor, n)
        JOIN party p USING (key, end_user)
        ORDER BY u.n
    LOOP
        n := one.n; call_id := NULL; held_nano := 0; max_tokens := 0; remaining_nano := NULL; cap_id := NULL; cap_scope := NULL;
        cap_period := NULL; limit_nano := NULL; spent_nano := NULL; cap_held_nano := NULL; affordable_tokens := NULL;
        resets_at := NULL;
        IF ids[n] = ANY (stood) THEN
            SELECT c.held_nano, c.max_output_tokens INTO held_nano, max_tokens FROM usage_call c WHERE c.id = ids[n];
            verdict := 'held'; call_id := ids[n]; RETURN NEXT; CONTINUE;
        END IF;
        IF one.refused IS NOT NULL THEN
            verdict := one.refused; RETURN NEXT; CONTINUE;
        ELSIF known ? n::text THEN
            verdict := known -> n::text ->> 0; call_id := known -> n::text ->> 1; RETURN NEXT; CONTINUE;
        END IF;

        granted := one.wanted; worst := 0; exceeded := 0; prepaid := false;
        need := one.base + ceil(one.unit::numeric * least(one.floor, one.wanted) / 1000);
        FOREACH at IN ARRAY coalesce(one.places, '{}') LOOP
            prepaid := prepaid OR b_mode[at] = 'credit';
            CONTINUE WHEN one.base = 0 AND one.unit = 0;  -- free of charge, whatever the cap says
            room := b_limit[at] - b_spent[at] - b_held[at] - b_added[at];
            IF one.base > room THEN
                fits := -1;
            ELSIF one.unit = 0 THEN
                CONTINUE;
            ELSE
                fits := least((room - one.base)::numeric * 1000 / one.unit, one.wanted)::bigint;
                -- The cast rounds to nearest; the hold must not.
                IF one.base + ceil(one.unit::numeric * fits / 1000) > room THEN fits := fits - 1; END IF;
            END IF;
            CONTINUE WHEN b_mode[at] = 'shadow';
            IF fits < granted THEN granted := fits; worst := at; END IF;
            IF need > b_limit[at] - b_spent[at] AND exceeded = 0 THEN exceeded := at; END IF;
        END LOOP;

        IF granted < one.wanted AND granted < one.floor THEN
            at := CASE WHEN exceeded > 0 THEN exceeded ELSE worst END;
            verdict := CASE WHEN exceeded > 0 THEN 'cap_exceeded' ELSE 'cap_contended' END;
            cap_id := b_cap[at]; cap_scope := b_scope[at]; cap_period := b_period[at]; limit_nano := b_limit[at];
            spent_nano := b_spent[at]; cap_held_nano := b_held[at] + b_added[at]; resets_at := b_ends[at];
            affordable_tokens := greatest(granted, 0);
            RETURN NEXT; CONTINUE;
        END IF;

        hold := one.base + ceil(one.unit::numeric * granted / 1000);
        spare := NULL; buckets := '{}';
        FOREACH at IN ARRAY coalesce(one.places, '{}') LOOP
            IF b_mode[at] = 'shadow' AND hold > 0 AND need > b_limit[at] - b_spent[at] - b_held[at] - b_added[at] THEN
                b_missed[at] := b_missed[at] + 1; b_missed_nano[at] := b_missed_nano[at] + hold;
            END IF;
            b_added[at] := b_added[at] + hold;
            buckets := buckets || b_id[at];
            IF b_mode[at] <> 'shadow' AND b_scope[at] <> 'platform' THEN
                spare := least(spare, b_limit[at] - b_spent[at] - b_held[at] - b_added[at]);
            END IF;
        END LOOP;
        a_n := a_n || n; a_tenant := a_tenant || one.tenant_id; a_environment := a_environment || one.environment_id;
        a_held := a_held || hold; a_tokens := a_tokens || granted; a_clamped := a_clamped || (granted < one.wanted);
        a_buckets := a_buckets || buckets::text; a_prepaid := a_prepaid || prepaid;
        verdict := 'held'; call_id := ids[n]; held_nano := hold; max_tokens := granted; remaining_nano := spare;
        RETURN NEXT;
    END LOOP;

    INSERT INTO usage_call (id, tenant_id, environment_id, api_key_id, price_id, tariff_id, end_user, request_id, wire, endpoint,
        model, provider, streamed, state, is_prepaid, held_nano, bucket_ids, max_output_tokens, clamped, admitted_at, start_by,
        deadline_at, next_ring_at, web_process)
    SELECT ids[a.n], a.tenant_id, a.environment_id, keys[a.n], price_ids[a.n], tariff_ids[a.n], end_users[a.n], request_ids[a.n],
        wires[a.n], endpoints[a.n], models[a.n], providers[a.n], streams[a.n], 'held', a.prepaid, a.held, a.buckets::bigint[],
        a.tokens, a.clamped, moment, moment + start_within, moment + deadline_within, moment + interval '3 seconds', web
    FROM unnest(a_n, a_tenant, a_environment, a_held, a_tokens, a_buckets, a_clamped, a_prepaid)
        AS a(n, tenant_id, environment_id, held, tokens, buckets, clamped, prepaid);
    INSERT INTO usage_callpayload (call_id, kind, headers, body)
    SELECT ids[a.n], 'request', headers[a.n], bodies[a.n] FROM unnest(a_n) AS a(n);
    UPDATE usage_capbucket b SET held_nano = b.held_nano + x.added, shadow_refused_calls = b.shadow_refused_calls + x.missed,
        shadow_refused_nano = b.shadow_refused_nano + x.missed_nano
    FROM unnest(b_id, b_added, b_missed, b_missed_nano) AS x(id, added, missed, missed_nano)
    WHERE b.id = x.id AND x.added > 0;
END $$;

-- What the Idempotency-Keys of a batch say: {place: [verdict, call]} of those that are not to be made. A key stands for one
-- call of its environment for a day; where that call ended without effect, or was refused, it stands for the new one.
CREATE FUNCTION usage_idempotency(ids uuid[], keys uuid[], hashes bytea[], body_hashes bytea[]) RETURNS jsonb
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    one record; stood record; known jsonb := '{}';
BEGIN
    FOR one IN
        SELECT u.*, k.environment_id FROM unnest(ids, keys, hashes, body_hashes) WITH ORDINALITY AS u(id, key, hash, body, n)
        JOIN tenants_apikey k ON k.id = u.key WHERE u.hash IS NOT NULL ORDER BY k.environment_id, u.hash, u.n
    LOOP
        INSERT INTO usage_idempotencykey (environment_id, key_hash, body_hash, call_id, created_at)
            VALUES (one.environment_id, one.hash, one.body, one.id, usage_now()) ON CONFLICT DO NOTHING;
        CONTINUE WHEN FOUND;
        SELECT i.call_id, i.body_hash, i.created_at, c.state, i.created_at < usage_now() - interval '24 hours'
                OR (c.id IS NULL AND i.call_id <> ALL (ids))
                OR (c.state = 'void' AND NOT EXISTS (
                    SELECT 1 FROM usage_attempt a WHERE a.call_id = c.id AND a.outcome IN ('sent', 'broken', 'unknown'))) AS is_free
            INTO stood
        FROM usage_idempotencykey i LEFT JOIN usage_call c ON c.id = i.call_id
        WHERE i.environment_id = one.environment_id AND i.key_hash = one.hash FOR NO KEY UPDATE OF i;
        CONTINUE WHEN stood.call_id = one.id;  -- this batch, repeated
        IF stood.is_free THEN
            UPDATE usage_idempotencykey i SET call_id = one.id, body_hash = one.body, created_at = usage_now()
            WHERE i.environment_id = one.environment_id AND i.key_hash = one.hash;
        ELSIF stood.body_hash <> one.body THEN
            known := known || jsonb_build_object(one.n, jsonb_build_array('key_reused', stood.call_id));
        ELSE
            known := known || jsonb_build_object(one.n,
                jsonb_build_array(CASE WHEN stood.state IS NULL THEN 'again' ELSE 'replay' END, stood.call_id));
        END IF;
    END LOOP;
    RETURN known;
END $$;

-- Takes held calls for one live worker process; from here on they are maybe sent, and each has its first attempt's row. Calls
-- whose key, environment or tenant was suspended meanwhile stay behind, for the sweeper to void.
DROP FUNCTION usage_claim;
CREATE FUNCTION usage_claim(worker uuid, wanted uuid[])
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
          AND c.tenant_id NOT IN (SELECT t.id FROM tenants_tenant t WHERE t.suspended_at IS NOT NULL)
          AND c.environment_id NOT IN (SELECT e.id FROM tenants_environment e WHERE e.suspended_at IS NOT NULL)
          AND c.api_key_id NOT IN (SELECT k.id FROM tenants_apikey k WHERE k.suspended_at IS NOT NULL)
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

-- Ends a batch of calls: frees the holds, charges at most the hold, books what lies above it to the house. A charge is the
-- contract's price of the last attempt and of those earlier ones that the tenant's plan lets him pay; a void call charges
-- nothing. What earlier attempts cost us is provider cost in any case.
-- `worker` NULL is the sweeper, which may end what no worker owns any more: state must then be one of `from_states`.
-- Returns the calls that it ended; a call that somebody else ended before is not among them.
DROP FUNCTION usage_settle;
CREATE FUNCTION usage_settle(
    worker uuid, from_states text[], ids uuid[], to_states text[], statuses smallint[], error_codes text[], evidences text[],
    costs_nano bigint[], lists_nano bigint[], provider_costs_nano bigint[], exposures_nano bigint[],
    inputs bigint[], cache_reads bigint[], cache_writes_5m bigint[], cache_writes_1h bigint[], outputs bigint[],
    reasonings bigint[], metered jsonb[], variants text[], served_models text[], provider_request_ids text[],
    first_bytes_at timestamptz[], attempt_outcomes text[], attempt_errors text[], headers jsonb[], bodies bytea[]
) RETURNS TABLE (id uuid, charged_nano bigint, platform_loss_nano bigint, remaining_nano bigint)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    d_id uuid[]; d_buckets text[]; d_held bigint[]; d_charged bigint[]; d_loss bigint[]; d_prepaid boolean;
    b_id bigint[]; b_room bigint[]; due bigint[];
BEGIN
    PERFORM 1 FROM usage_call c WHERE c.id = ANY (ids) ORDER BY c.id FOR NO KEY UPDATE;
    WITH done AS (
        UPDATE usage_call c SET
            state = u.to_state, is_live = u.to_state NOT IN ('settled', 'void'), status = u.status, error_code = u.error_code,
            evidence = u.evidence, charged_nano = CASE WHEN u.to_state = 'settled' THEN least(u.cost + c.retried_charge_nano, c.held_nano) ELSE 0 END,
            list_nano = u.list, provider_cost_nano = CASE WHEN u.to_state = 'unknown' THEN 0 ELSE u.provider_cost + c.retried_cost_nano END,
            platform_loss_nano = CASE WHEN u.to_state = 'settled'
                THEN greatest(u.cost + c.retried_charge_nano - c.held_nano, 0) ELSE 0 END,
            input_tokens = u.input, cache_read_tokens = u.cache_read, cache_write_5m_tokens = u.cache_write_5m,
            cache_write_1h_tokens = u.cache_write_1h, output_tokens = u.output, reasoning_tokens = u.reasoning,
            meters = u.meters, variant = u.variant, served_model = u.served_model,
            provider_request_id = u.provider_request_id, first_byte_at = u.first_byte_at, settled_at = clock_timestamp()
        FROM unnest(ids, to_states, statuses, error_codes, evidences, costs_nano, lists_nano, provider_costs_nano, exposures_nano,
                inputs, cache_reads, cache_writes_5m, cache_writes_1h, outputs, reasonings, metered, variants, served_models,
                provider_request_ids, first_bytes_at, attempt_outcomes, attempt_errors)
            AS u(id, to_state, status, error_code, evidence, cost, list, provider_cost, exposure, input, cache_read,
                cache_write_5m, cache_write_1h, output, reasoning, meters, variant, served_model, provider_request_id,
                first_byte_at, attempt_outcome, attempt_error)
        WHERE c.id = u.id AND c.state = ANY (from_states) AND (worker IS NULL OR c.worker_process = worker)
        RETURNING c.*, u.exposure, u.attempt_outcome, u.attempt_error
    ), booked AS (
        INSERT INTO usage_ledgerentry (ref, kind, tenant_id, environment_id, api_key_id, end_user, debit, credit, amount_nano,
            price_id, evidence, belongs_at)
        SELECT d.id, b.kind, d.tenant_id, d.environment_id, d.api_key_id, d.end_user, b.debit, b.credit, b.amount, d.price_id,
            d.evidence, d.admitted_at
        FROM done d, LATERAL (VALUES
            ('charge', CASE WHEN d.is_prepaid THEN 'customer_credit' ELSE 'receivable' END, 'revenue', d.charged_nano),
            ('provider_cost', 'cost_of_sales', 'payable:' || d.provider, d.provider_cost_nano),
            ('platform_loss', 'platform_loss', 'revenue_forgone', d.platform_loss_nano),
            ('exposure', 'exposure', 'payable:' || d.provider, d.exposure)
        ) AS b(kind, debit, credit, amount)
        WHERE b.amount > 0 AND NOT d.is_live
    ), tried AS (
        UPDATE usage_attempt a SET outcome = d.attempt_outcome, ended_at = clock_timestamp(), status = d.status,
            error = d.attempt_error, provider_request_id = d.provider_request_id
        FROM done d WHERE a.call_id = d.id AND a.n = d.tries AND d.attempt_outcome IS NOT NULL
    )
    SELECT array_agg(d.id), array_agg(CASE WHEN d.is_live THEN '{}' ELSE d.bucket_ids::text END), array_agg(d.held_nano),
        array_agg(d.charged_nano), array_agg(d.platform_loss_nano), bool_or(d.is_prepaid AND d.charged_nano > 0)
    INTO d_id, d_buckets, d_held, d_charged, d_loss, d_prepaid FROM done d;
    IF d_id IS NULL THEN RETURN; END IF;

    INSERT INTO usage_callpayload (call_id, kind, headers, body)
    SELECT u.id, 'response', u.headers, u.body FROM unnest(ids, headers, bodies) AS u(id, headers, body)
    WHERE u.body IS NOT NULL AND u.id = ANY (d_id)
    ON CONFLICT DO NOTHING;

    PERFORM 1 FROM usage_capbucket b
    WHERE b.id = ANY (ARRAY(SELECT unnest(x::bigint[]) FROM unnest(d_buckets) x)) ORDER BY b.id FOR NO KEY UPDATE;
    WITH moved AS (
        UPDATE usage_capbucket b SET held_nano = b.held_nano - x.freed, spent_nano = b.spent_nano + x.spent
        FROM (SELECT bucket, sum(d.held)::bigint AS freed, sum(d.charged)::bigint AS spent
              FROM unnest(d_buckets, d_held, d_charged) AS d(buckets, held, charged), unnest(d.buckets::bigint[]) bucket
              GROUP BY bucket) x
        WHERE b.id = x.bucket
        RETURNING b.*
    )
    SELECT array_agg(m.id), array_agg(CASE WHEN c.mode <> 'shadow' AND c.tenant_id IS NOT NULL
            THEN usage_cap_limit(c, usage_now()) - m.spent_nano - m.held_nano END),
        array_agg(m.id) FILTER (WHERE m.spent_nano >= m.notice_at_nano)
    INTO b_id, b_room, due FROM moved m JOIN usage_spendingcap c ON c.id = m.cap_id;
    IF due IS NOT NULL THEN PERFORM usage_notice(due); END IF;
    IF d_prepaid THEN PERFORM usage_burn(d_id); END IF;

    RETURN QUERY
    SELECT d.id, d.charged, d.loss,
        (SELECT min(b.room) FROM unnest(b_id, b_room) AS b(id, room) WHERE b.id = ANY (d.buckets::bigint[]))
    FROM unnest(d_id, d_buckets, d_charged, d_loss) AS d(id, buckets, charged, loss);
END $$;

-- The spent amount from which a cap's next notice is due: the lowest threshold above `told` percent.
CREATE FUNCTION usage_notice_at(c usage_spendingcap, told integer, moment timestamptz) RETURNS bigint LANGUAGE sql STABLE AS $$
    SELECT ceil(l.nano::numeric * min(t) / 100)::bigint
    FROM unnest(c.thresholds) t, (SELECT usage_cap_limit(c, moment) AS nano) l WHERE t > told AND l.nano > 0 GROUP BY l.nano
$$;

-- Writes the notices that these periods' spending has reached, each once, and says when the next one is due.
CREATE FUNCTION usage_notice(bucket_ids bigint[]) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    INSERT INTO usage_capnotice (bucket_id, percent, limit_nano, spent_nano, reached_at)
    SELECT b.id, t, l.nano, b.spent_nano, usage_now()
    FROM usage_capbucket b JOIN usage_spendingcap c ON c.id = b.cap_id, unnest(c.thresholds) t,
        LATERAL (SELECT usage_cap_limit(c, usage_now()) AS nano) l
    WHERE b.id = ANY (bucket_ids) AND l.nano > 0 AND b.spent_nano::numeric * 100 >= l.nano::numeric * t
    ORDER BY b.id, t
    ON CONFLICT DO NOTHING;
    UPDATE usage_capbucket b SET notice_at_nano = usage_notice_at(c,
        coalesce((SELECT max(n.percent) FROM usage_capnotice n WHERE n.bucket_id = b.id), 0), usage_now())
    FROM usage_spendingcap c WHERE c.id = b.cap_id AND b.id = ANY (bucket_ids);
END $$;

-- Notices after a change of a cap: its running periods look at their thresholds again.
CREATE FUNCTION usage_notice_again(cap bigint) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE running bigint[];
BEGIN
    SELECT array_agg(l.id) INTO running FROM (
        SELECT b.id FROM usage_capbucket b WHERE b.cap_id = cap AND (b.ends_at IS NULL OR b.ends_at > usage_now())
        ORDER BY b.id FOR NO KEY UPDATE) l;
    PERFORM usage_notice(running);
END $$;

-- Burns credit for calls that have just been charged: by priority, then earliest expiry, then age. The balance's own bucket is
-- locked already, so that no two burn at once; what a grant had when the call was admitted may pay for it, expired since or not.
CREATE FUNCTION usage_burn(call_ids uuid[]) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE one record; rest bigint;
BEGIN
    FOR one IN SELECT c.id, c.tenant_id, c.charged_nano, c.admitted_at FROM usage_call c
               WHERE c.id = ANY (call_ids) AND c.is_prepaid AND c.charged_nano > 0 AND c.state IN ('settled', 'void')
               ORDER BY c.id LOOP
        rest := usage_burn_from_grants(one.id, one.tenant_id, one.charged_nano, one.admitted_at, 0::smallint);
        IF rest > 0 THEN
            RAISE EXCEPTION 'call % burns % nano-USD more credit than tenant % has', one.id, rest, one.tenant_id;
        END IF;
    END LOOP;
END $$;

CREATE FUNCTION usage_burn_from_grants(call uuid, tenant uuid, amount bigint, moment timestamptz, seq_ smallint) RETURNS bigint
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE source record; rest bigint := amount; part bigint;
BEGIN
    FOR source IN SELECT g.id, g.amount_nano - g.burnt_nano - g.expired_nano AS room FROM usage_creditgrant g
                  WHERE g.tenant_id = tenant AND g.amount_nano > g.burnt_nano + g.expired_nano
                  ORDER BY coalesce(g.expires_at <= moment, false), g.priority, g.expires_at NULLS LAST, g.id FOR NO KEY UPDATE LOOP
        EXIT WHEN rest = 0;
        part := least(rest, source.room);
        UPDATE usage_creditgrant g SET burnt_nano = g.burnt_nano + part WHERE g.id = source.id;
        INSERT INTO usage_creditconsumption (call_id, grant_id, seq, amount_nano) VALUES (call, source.id, seq_, part);
        rest := rest - part;
    END LOOP;
    RETURN rest;
END $$;

-- Gives every running period of a cap what it has already spent and holds, to the nano-dollar: admissions wait for the
-- exclusive lock that the caller holds, the calls in flight are locked here, and those already settled are in the ledger.
CREATE FUNCTION usage_count_cap(cap bigint) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    c usage_spendingcap; span record; live uuid[]; moment timestamptz := usage_now();
BEGIN
    SELECT * INTO c FROM usage_spendingcap s WHERE s.id = cap;
    SELECT p.* INTO span FROM usage_period(c.period, coalesce((SELECT t.time_zone FROM tenants_tenant t WHERE t.id = c.tenant_id),
        'UTC'), moment) p;
    SELECT array_agg(l.id) INTO live
    FROM (SELECT x.id FROM usage_call x
          WHERE x.is_live AND (c.tenant_id IS NULL OR x.tenant_id = c.tenant_id) AND x.admitted_at >= span.starts_at
            AND (c.environment_id IS NULL OR x.environment_id = c.environment_id)
            AND (c.api_key_id IS NULL OR x.api_key_id = c.api_key_id)
            AND (c.end_user IN ('', x.end_user) OR (c.end_user = '*' AND x.end_user <> ''))
          ORDER BY x.id FOR UPDATE) l;
    INSERT INTO usage_capbucket (cap_id, end_user, starts_at, ends_at, held_nano, spent_nano)
    SELECT cap, m.bucket_user, span.starts_at, span.ends_at, sum(m.held), sum(m.spent)
    FROM (SELECT CASE WHEN c.end_user = '*' THEN x.end_user ELSE '' END AS bucket_user, x.held_nano AS held, 0 AS spent
          FROM usage_call x WHERE x.id = ANY (live)
          UNION ALL
          SELECT CASE WHEN c.end_user = '*' THEN l.end_user ELSE '' END, 0,
              CASE WHEN l.credit = 'revenue' THEN l.amount_nano ELSE -l.amount_nano END
          FROM usage_ledgerentry l
          WHERE (c.tenant_id IS NULL OR l.tenant_id = c.tenant_id) AND 'revenue' IN (l.debit, l.credit)
            AND l.belongs_at >= span.starts_at
            AND (c.environment_id IS NULL OR l.environment_id = c.environment_id)
            AND (c.api_key_id IS NULL OR l.api_key_id = c.api_key_id)
            AND (c.end_user IN ('', l.end_user) OR (c.end_user = '*' AND l.end_user <> ''))
          UNION ALL
          SELECT '', 0, 0 WHERE c.end_user <> '*') m
    GROUP BY m.bucket_user
    ON CONFLICT (cap_id, end_user, starts_at) DO UPDATE
        SET held_nano = excluded.held_nano, spent_nano = excluded.spent_nano, ends_at = excluded.ends_at;
    UPDATE usage_call x SET bucket_ids = x.bucket_ids || b.id
    FROM usage_capbucket b
    WHERE x.id = ANY (live) AND b.cap_id = cap AND b.starts_at = span.starts_at
      AND b.end_user = CASE WHEN c.end_user = '*' THEN x.end_user ELSE '' END AND b.id <> ALL (x.bucket_ids);
    PERFORM usage_notice_again(cap);
END $$;

CREATE FUNCTION usage_lock_caps(tenant uuid) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF tenant IS NULL THEN
        PERFORM pg_advisory_xact_lock(5701);
    ELSE
        PERFORM pg_advisory_xact_lock_shared(5701);
        PERFORM pg_advisory_xact_lock(hashtextextended(tenant::text, 0));
    END IF;
END $$;

-- Sets a cap, new or not; a new one starts with what its running period has already spent and holds. Thresholds NULL: as they
-- are. A cap that exists keeps its usage.
DROP FUNCTION usage_set_cap;
CREATE FUNCTION usage_set_cap(tenant uuid, environment uuid, key uuid, end_user_ text, period_ text, mode_ text, limit_ bigint,
    thresholds_ smallint[]) RETURNS bigint LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE cap bigint;
BEGIN
    PERFORM usage_lock_caps(tenant);
    UPDATE usage_spendingcap c SET limit_nano = limit_, thresholds = coalesce(thresholds_, c.thresholds)
    WHERE c.tenant_id IS NOT DISTINCT FROM tenant AND c.environment_id IS NOT DISTINCT FROM environment
      AND c.api_key_id IS NOT DISTINCT FROM key AND c.end_user = end_user_ AND c.period = period_ AND c.mode = mode_
    RETURNING c.id INTO cap;
    IF cap IS NOT NULL THEN
        PERFORM usage_notice_again(cap);
    ELSE
        INSERT INTO usage_spendingcap (tenant_id, environment_id, api_key_id, end_user, period, mode, limit_nano, thresholds,
                created_at)
            VALUES (tenant, environment, key, end_user_, period_, mode_, limit_, coalesce(thresholds_, '{50,80,100}'), now())
            RETURNING id INTO cap;
        PERFORM usage_count_cap(cap);
    END IF;
    RETURN cap;
END $$;

-- Raises a cap by so much until then; a raise replaces the one before. NULL ends it. False where there is no such cap.
CREATE FUNCTION usage_raise_cap(cap bigint, by_nano bigint, until_ timestamptz) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    PERFORM usage_lock_caps((SELECT c.tenant_id FROM usage_spendingcap c WHERE c.id = cap));
    UPDATE usage_spendingcap c SET raise_nano = CASE WHEN until_ IS NULL THEN 0 ELSE by_nano END, raise_until = until_
    WHERE c.id = cap AND c.mode <> 'credit';
    IF NOT FOUND THEN RETURN false; END IF;
    PERFORM usage_notice_again(cap);
    RETURN true;
END $$;

-- Raises whose time has come count no more by themselves; this looks at the thresholds that they had moved.
CREATE FUNCTION usage_end_raises() RETURNS integer LANGUAGE plpgsql AS $$
DECLARE cap bigint; ended integer := 0;
BEGIN
    FOR cap IN SELECT c.id FROM usage_spendingcap c WHERE c.raise_until <= usage_now()
               ORDER BY hashtextextended(c.tenant_id::text, 0) NULLS FIRST, c.id LOOP
        PERFORM usage_raise_cap(cap, 0, NULL);
        ended := ended + 1;
    END LOOP;
    RETURN ended;
END $$;

CREATE FUNCTION usage_remove_cap(cap bigint) RETURNS boolean LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE gone bigint[]; live uuid[];
BEGIN
    PERFORM usage_lock_caps((SELECT c.tenant_id FROM usage_spendingcap c WHERE c.id = cap));
    SELECT array_agg(b.id) INTO gone FROM usage_capbucket b WHERE b.cap_id = cap;
    SELECT array_agg(l.id) INTO live
    FROM (SELECT c.id FROM usage_call c WHERE c.is_live AND c.bucket_ids && gone ORDER BY c.id FOR UPDATE) l;
    UPDATE usage_call c SET bucket_ids = ARRAY(SELECT u FROM unnest(c.bucket_ids) u WHERE u <> ALL (gone))
    WHERE c.id = ANY (live);
    DELETE FROM usage_capnotice n WHERE n.bucket_id = ANY (gone);
    DELETE FROM usage_capbucket b WHERE b.id = ANY (gone);
    DELETE FROM usage_spendingcap c WHERE c.id = cap AND c.mode <> 'credit';
    IF NOT FOUND AND gone IS NOT NULL THEN
        RAISE EXCEPTION 'a balance is no cap that can be removed';
    END IF;
    RETURN FOUND;
END $$;

-- Moves a tenant to another time zone. The periods that run by the old one end now; those of the new one count everything
-- since their own beginning, so that no change of zone ever resets a cap.
CREATE FUNCTION usage_set_time_zone(tenant uuid, zone text) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE cap bigint; moment timestamptz;
BEGIN
    PERFORM usage_lock_caps(tenant);
    moment := usage_now();
    UPDATE tenants_tenant t SET time_zone = zone WHERE t.id = tenant AND t.time_zone <> zone;
    IF NOT FOUND THEN RETURN; END IF;
    PERFORM 1 FROM usage_call c WHERE c.is_live AND c.tenant_id = tenant ORDER BY c.id FOR UPDATE;
    FOR cap IN SELECT c.id FROM usage_spendingcap c WHERE c.tenant_id = tenant AND c.period <> 'lifetime' ORDER BY c.id LOOP
        UPDATE usage_capbucket b SET ends_at = moment WHERE b.cap_id = cap AND b.starts_at < moment AND b.ends_at > moment;
        PERFORM usage_count_cap(cap);
    END LOOP;
END $$;

-- Grants credit; the first grant makes the tenant prepaid, with his balance as a cap.
CREATE FUNCTION usage_grant_credit(tenant uuid, id_ uuid, amount bigint, category_ text, priority_ smallint, expires timestamptz,
    note_ text) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE cap bigint;
BEGIN
    PERFORM usage_lock_caps(tenant);
    INSERT INTO usage_creditgrant (id, tenant_id, amount_nano, burnt_nano, expired_nano, category, priority, expires_at, note,
            created_at)
        VALUES (id_, tenant, amount, 0, 0, category_, priority_, expires, note_, usage_now()) ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN RETURN; END IF;
    UPDATE usage_spendingcap c SET limit_nano = c.limit_nano + amount WHERE c.tenant_id = tenant AND c.mode = 'credit'
    RETURNING c.id INTO cap;
    IF cap IS NULL THEN
        INSERT INTO usage_spendingcap (tenant_id, end_user, period, mode, limit_nano, thresholds, created_at)
            VALUES (tenant, '', 'lifetime', 'credit', amount, '{50,80,100}', now()) RETURNING id INTO cap;
        INSERT INTO usage_capbucket (cap_id, starts_at, ends_at, held_nano, spent_nano)
            SELECT cap, p.starts_at, NULL, 0, 0 FROM usage_period('lifetime', 'UTC', now()) p;
    END IF;
    PERFORM usage_notice_again(cap);
    INSERT INTO usage_ledgerentry (ref, kind, tenant_id, debit, credit, amount_nano, reason, belongs_at)
        VALUES (id_, 'credit_grant', tenant, CASE category_ WHEN 'paid' THEN 'cash' ELSE 'marketing' END, 'customer_credit',
            amount, note_, usage_now());
END $$;

-- Forfeits credit that has expired, but for what calls still in flight hold. Returns how many grants lost something.
CREATE FUNCTION usage_expire_credit(most integer) RETURNS integer LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE tenant uuid; one record; ended integer := 0; cap bigint; spare bigint; part bigint;
BEGIN
    FOR tenant IN SELECT d.tenant_id FROM (
                      SELECT DISTINCT g.tenant_id FROM usage_creditgrant g
                      WHERE g.expires_at <= usage_now() AND g.amount_nano > g.burnt_nano + g.expired_nano LIMIT most) d
                  ORDER BY hashtextextended(d.tenant_id::text, 0) LOOP
        PERFORM usage_lock_caps(tenant);
        SELECT c.id, c.limit_nano - b.spent_nano - b.held_nano INTO cap, spare
        FROM usage_spendingcap c JOIN usage_capbucket b ON b.cap_id = c.id
        WHERE c.tenant_id = tenant AND c.mode = 'credit' FOR NO KEY UPDATE OF b;
        FOR one IN SELECT g.id, g.amount_nano - g.burnt_nano - g.expired_nano AS rest, g.note FROM usage_creditgrant g
                   WHERE g.tenant_id = tenant AND g.expires_at <= usage_now() AND g.amount_nano > g.burnt_nano + g.expired_nano
                   ORDER BY g.expires_at, g.id FOR NO KEY UPDATE LOOP
            part := least(one.rest, spare);
            CONTINUE WHEN part <= 0;
            UPDATE usage_creditgrant g SET expired_nano = g.expired_nano + part WHERE g.id = one.id;
            UPDATE usage_spendingcap c SET limit_nano = c.limit_nano - part WHERE c.id = cap;
            INSERT INTO usage_ledgerentry (ref, kind, seq, tenant_id, debit, credit, amount_nano, reason, belongs_at)
                SELECT one.id, 'credit_expiry', count(*), tenant, 'customer_credit', 'breakage', part, one.note, usage_now()
                FROM usage_ledgerentry l WHERE l.ref = one.id AND l.kind = 'credit_expiry';
            spare := spare - part; ended := ended + 1;
        END LOOP;
        PERFORM usage_notice_again(cap);
    END LOOP;
    RETURN ended;
END $$;

-- The periods of caps in which a call counts, whenever they were made.
CREATE FUNCTION usage_buckets_of(call uuid) RETURNS SETOF bigint LANGUAGE sql STABLE AS $$
    SELECT b.id FROM usage_call c
    JOIN usage_spendingcap s ON s.mode <> 'credit' AND (s.tenant_id = c.tenant_id OR s.tenant_id IS NULL)
        AND (s.environment_id IS NULL OR s.environment_id = c.environment_id)
        AND (s.api_key_id IS NULL OR s.api_key_id = c.api_key_id)
        AND (s.end_user IN ('', c.end_user) OR (s.end_user = '*' AND c.end_user <> ''))
    JOIN usage_capbucket b ON b.cap_id = s.id AND b.end_user = CASE WHEN s.end_user = '*' THEN c.end_user ELSE '' END
        AND c.admitted_at >= b.starts_at AND (b.ends_at IS NULL OR c.admitted_at < b.ends_at)
    WHERE c.id = call
    UNION ALL
    SELECT b.id FROM usage_call c JOIN usage_spendingcap s ON s.tenant_id = c.tenant_id AND s.mode = 'credit'
    JOIN usage_capbucket b ON b.cap_id = s.id WHERE c.id = call AND c.is_prepaid
$$;

CREATE FUNCTION usage_book_later(c usage_call, kind_ text, debit_ text, credit_ text, amount bigint, why text) RETURNS void
LANGUAGE sql AS $$
    INSERT INTO usage_ledgerentry (ref, kind, seq, tenant_id, environment_id, api_key_id, end_user, debit, credit, amount_nano,
        price_id, evidence, reason, belongs_at)
    SELECT c.id, kind_, coalesce((SELECT max(l.seq) + 1 FROM usage_ledgerentry l WHERE l.ref = c.id AND l.kind = kind_), 0),
        c.tenant_id, c.environment_id, c.api_key_id, c.end_user, debit_, credit_, amount, c.price_id, c.evidence, why, c.admitted_at
    WHERE amount > 0
$$;

-- Books later knowledge as new entries: what ended calls should have been charged and what they cost us; booking it again finds
-- nothing left to book. A correction in the tenant's favour is always his; one against him only if `charge_tenant`, and at most what every cap of his still affords: the
-- rest is the house's. Returns what was booked.
CREATE FUNCTION usage_correct(ids uuid[], new_charges_nano bigint[], new_costs_nano bigint[], why text, charge_tenant boolean)
RETURNS TABLE (id uuid, charged_delta_nano bigint, cost_delta_nano bigint, house_nano bigint)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    one record; c usage_call; buckets bigint[]; touched bigint[] := '{}'; delta bigint; loss bigint; release bigint; account text;
    next_seq smallint;
BEGIN
    PERFORM pg_advisory_xact_lock_shared(5701);
    PERFORM pg_advisory_xact_lock_shared(l.tenant)
    FROM (SELECT DISTINCT hashtextextended(x.tenant_id::text, 0) AS tenant FROM usage_call x WHERE x.id = ANY (ids)
          ORDER BY 1) l;
    PERFORM 1 FROM usage_call x WHERE x.id = ANY (ids) ORDER BY x.id FOR NO KEY UPDATE;
    PERFORM 1 FROM usage_capbucket b WHERE b.id = ANY (ARRAY(SELECT usage_buckets_of(u) FROM unnest(ids) u))
    ORDER BY b.id FOR NO KEY UPDATE;
    FOR one IN SELECT u.* FROM unnest(ids, new_charges_nano, new_costs_nano) AS u(call, charge, cost) ORDER BY u.call LOOP
        SELECT * INTO c FROM usage_call x WHERE x.id = one.call AND x.state IN ('settled', 'void');
        CONTINUE WHEN c.id IS NULL;
        buckets := ARRAY(SELECT usage_buckets_of(c.id));
        account := CASE WHEN c.is_prepaid THEN 'customer_credit' ELSE 'receivable' END;
        delta := greatest(one.charge, 0) - c.charged_nano - c.corrected_nano;
        loss := 0;
        IF delta > 0 THEN
            loss := delta;
            delta := CASE WHEN NOT charge_tenant THEN 0 ELSE greatest(least(delta, (
                SELECT min(usage_cap_limit(s, usage_now()) - b.spent_nano - b.held_nano) FROM usage_capbucket b
                JOIN usage_spendingcap s ON s.id = b.cap_id WHERE b.id = ANY (buckets) AND s.mode <> 'shadow')), 0) END;
            loss := loss - delta;
        END IF;
        house_nano := loss - c.platform_loss_nano;
        PERFORM usage_book_later(c, 'correction', account, 'revenue', delta, why);
        PERFORM usage_book_later(c, 'correction', 'revenue', account, -delta, why);
        PERFORM usage_book_later(c, 'platform_loss', 'platform_loss', 'revenue_forgone', house_nano, why);
        PERFORM usage_book_later(c, 'platform_loss', 'revenue_forgone', 'platform_loss', -house_nano, why);
        cost_delta_nano := one.cost - c.provider_cost_nano;
        PERFORM usage_book_later(c, 'cost_correction', 'cost_of_sales', 'payable:' || c.provider, cost_delta_nano, why);
        PERFORM usage_book_later(c, 'cost_correction', 'payable:' || c.provider, 'cost_of_sales', -cost_delta_nano, why);
        SELECT coalesce(sum(CASE l.kind WHEN 'exposure' THEN l.amount_nano ELSE -l.amount_nano END), 0) INTO release
        FROM usage_ledgerentry l WHERE l.ref = c.id AND l.kind IN ('exposure', 'exposure_release');
        PERFORM usage_book_later(c, 'exposure_release', 'payable:' || c.provider, 'exposure', release, why);
        UPDATE usage_call x SET corrected_nano = x.corrected_nano + delta, provider_cost_nano = one.cost,
            platform_loss_nano = loss WHERE x.id = c.id;
        UPDATE usage_capbucket b SET spent_nano = b.spent_nano + delta WHERE b.id = ANY (buckets) AND delta <> 0;
        touched := touched || buckets;
        IF c.is_prepaid AND delta <> 0 THEN
            SELECT coalesce(max(k.seq) + 1, 0) INTO next_seq FROM usage_creditconsumption k WHERE k.call_id = c.id;
            IF delta > 0 THEN
                IF usage_burn_from_grants(c.id, c.tenant_id, delta, c.admitted_at, next_seq) > 0 THEN
                    RAISE EXCEPTION 'call % burns more credit than tenant % has', c.id, c.tenant_id;
                END IF;
            ELSE
                PERFORM usage_give_back(c.id, -delta, next_seq);
            END IF;
        END IF;
        id := c.id; charged_delta_nano := delta;
        RETURN NEXT;
    END LOOP;
    PERFORM usage_notice(ARRAY(SELECT b.id FROM usage_capbucket b
        WHERE b.id = ANY (touched) AND b.spent_nano >= b.notice_at_nano ORDER BY b.id));
END $$;

-- Gives credit back to the grants that paid for a call, the last to pay first.
CREATE FUNCTION usage_give_back(call uuid, amount bigint, seq_ smallint) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE source record; rest bigint := amount; part bigint;
BEGIN
    FOR source IN SELECT g.id, k.paid FROM usage_creditgrant g
                  JOIN (SELECT x.grant_id, sum(x.amount_nano)::bigint AS paid, max(x.created_at) AS at FROM usage_creditconsumption x
                        WHERE x.call_id = call GROUP BY x.grant_id) k ON k.grant_id = g.id
                  WHERE k.paid > 0 ORDER BY k.at DESC, g.priority DESC, g.id DESC FOR NO KEY UPDATE OF g LOOP
        EXIT WHEN rest = 0;
        part := least(rest, source.paid);
        UPDATE usage_creditgrant g SET burnt_nano = g.burnt_nano - part WHERE g.id = source.id;
        INSERT INTO usage_creditconsumption (call_id, grant_id, seq, amount_nano) VALUES (call, source.id, seq_, -part);
        rest := rest - part;
    END LOOP;
END $$;
