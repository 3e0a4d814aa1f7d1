-- The money functions: one call each, each safe to repeat. Locks are always taken in one order, calls by id and then
-- buckets by id, so that nothing deadlocks. docs/money.md tells the story.

-- The period in which `moment` falls, in a tenant's own time zone.
CREATE FUNCTION usage_period(period text, zone text, moment timestamptz, OUT starts_at timestamptz, OUT ends_at timestamptz)
LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF period = 'lifetime' THEN
        starts_at := '1970-01-01Z';
    ELSE
        starts_at := date_trunc(period, moment, zone);
        -- Added to local time: a day on which the clocks change has 23 or 25 hours.
        ends_at := ((starts_at AT TIME ZONE zone) + ('1 ' || period)::interval) AT TIME ZONE zone;
    END IF;
END $$;

-- Admits a batch of calls in order, each against every cap that matches it, all or nothing per call.
--   verdict: held | stale | key_invalid | cap_exceeded | cap_contended
--   hold = base + output price * choices * max output tokens; where a cap affords fewer tokens, as many as it affords
--   are granted, down to the floor.
CREATE FUNCTION usage_hold(
    web uuid, known_revision bigint, start_within interval, deadline_within interval,
    ids uuid[], keys uuid[], end_users text[], request_ids text[], wires text[], endpoints text[], models text[],
    providers text[], streams boolean[], price_ids bigint[], bases_nano bigint[], units_pico bigint[],
    wanted_tokens bigint[], floor_tokens bigint[], headers jsonb[], bodies bytea[]
) RETURNS TABLE (
    n integer, verdict text, held_nano bigint, max_tokens bigint, remaining_nano bigint, cap_id bigint, cap_period text,
    limit_nano bigint, spent_nano bigint, cap_held_nano bigint, affordable_tokens bigint, resets_at timestamptz
) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    tenant uuid; one record; at integer; room bigint; fits bigint; hold bigint; granted bigint; worst integer; spare bigint;
    moment timestamptz;
    b_id bigint[]; b_cap bigint[]; b_period text[]; b_limit bigint[]; b_held bigint[]; b_spent bigint[]; b_added bigint[];
    b_ends timestamptz[]; matched bigint[];
    a_n integer[] := '{}'; a_tenant uuid[] := '{}'; a_environment uuid[] := '{}'; a_held bigint[] := '{}';
    a_tokens bigint[] := '{}'; a_buckets text[] := '{}'; a_clamped boolean[] := '{}'; buckets bigint[];
BEGIN
    IF (SELECT revision FROM usage_catalogue WHERE id = 1) <> known_revision THEN
        RETURN QUERY SELECT g, 'stale', 0::bigint, 0::bigint, NULL::bigint, NULL::bigint, NULL::text, NULL::bigint, NULL::bigint,
            NULL::bigint, NULL::bigint, NULL::timestamptz FROM generate_subscripts(ids, 1) g;
        RETURN;
    END IF;

    -- A new cap counts what its period has already seen; until it has counted, nothing of its tenant is admitted.
    FOR tenant IN SELECT DISTINCT k.tenant_id FROM tenants_apikey k WHERE k.id = ANY (keys) ORDER BY 1 LOOP
        PERFORM pg_advisory_xact_lock_shared(hashtextextended(tenant::text, 0));
    END LOOP;
    moment := clock_timestamp();

    SELECT array_agg(DISTINCT c.id) INTO matched
    FROM unnest(keys, end_users) AS u(key, end_user)
    JOIN tenants_apikey k ON k.id = u.key
    JOIN usage_spendingcap c ON c.tenant_id = k.tenant_id AND c.end_user IN ('', u.end_user)
        AND (c.environment_id IS NULL OR c.environment_id = k.environment_id)
        AND (c.api_key_id IS NULL OR c.api_key_id = k.id);

    INSERT INTO usage_capbucket (cap_id, starts_at, ends_at, held_nano, spent_nano)
    SELECT c.id, p.starts_at, p.ends_at, 0, 0
    FROM usage_spendingcap c JOIN tenants_tenant t ON t.id = c.tenant_id, usage_period(c.period, t.time_zone, moment) p
    WHERE c.id = ANY (matched)
      AND NOT EXISTS (SELECT 1 FROM usage_capbucket b WHERE b.cap_id = c.id AND b.starts_at = p.starts_at)
    ON CONFLICT DO NOTHING;

    SELECT array_agg(l.id), array_agg(l.cap_id), array_agg(l.period), array_agg(l.limit_nano), array_agg(l.held_nano),
           array_agg(l.spent_nano), array_agg(l.ends_at), array_agg(0::bigint)
    INTO b_id, b_cap, b_period, b_limit, b_held, b_spent, b_ends, b_added
    FROM (SELECT b.id, b.cap_id, c.period, c.limit_nano, b.held_nano, b.spent_nano, b.ends_at
          FROM usage_spendingcap c
          JOIN tenants_tenant t ON t.id = c.tenant_id
          CROSS JOIN LATERAL usage_period(c.period, t.time_zone, moment) p
          JOIN usage_capbucket b ON b.cap_id = c.id AND b.starts_at = p.starts_at
          WHERE c.id = ANY (matched)
          ORDER BY b.id FOR NO KEY UPDATE OF b) l;

    FOR one IN
        SELECT u.*, k.tenant_id, k.environment_id, c.held_nano AS already_held, c.max_output_tokens AS already_granted,
            (k.id IS NOT NULL AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > moment)
                AND t.suspended_at IS NULL AND e.suspended_at IS NULL) AS valid,
            ARRAY(SELECT array_position(b_cap, m.id) FROM usage_spendingcap m
                  WHERE m.tenant_id = k.tenant_id AND m.end_user IN ('', u.end_user) AND m.id = ANY (matched)
                    AND (m.environment_id IS NULL OR m.environment_id = k.environment_id)
                    AND (m.api_key_id IS NULL OR m.api_key_id = k.id)) AS places
        FROM unnest(ids, keys, end_users, bases_nano, units_pico, wanted_tokens, floor_tokens)
            WITH ORDINALITY AS u(id, key, end_user, base, unit, wanted, floor, n)
        LEFT JOIN tenants_apikey k ON k.id = u.key
        LEFT JOIN tenants_tenant t ON t.id = k.tenant_id
        LEFT JOIN tenants_environment e ON e.id = k.environment_id
        LEFT JOIN usage_call c ON c.id = u.id
        ORDER BY u.n
    LOOP
        n := one.n; held_nano := 0; max_tokens := 0; remaining_nano := NULL; cap_id := NULL; cap_period := NULL;
        limit_nano := NULL; spent_nano := NULL; cap_held_nano := NULL; affordable_tokens := NULL; resets_at := NULL;
        IF one.already_held IS NOT NULL THEN  -- this very batch was committed before, and its answer was lost
            verdict := 'held'; held_nano := one.already_held; max_tokens := one.already_granted;
            RETURN NEXT; CONTINUE;
        ELSIF NOT one.valid THEN
            verdict := 'key_invalid'; RETURN NEXT; CONTINUE;
        END IF;

        granted := one.wanted; worst := 0;
        FOREACH at IN ARRAY one.places LOOP
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
            IF fits < granted THEN granted := fits; worst := at; END IF;
        END LOOP;

        IF granted < one.wanted AND granted < one.floor THEN
            cap_id := b_cap[worst]; cap_period := b_period[worst]; limit_nano := b_limit[worst];
            spent_nano := b_spent[worst]; cap_held_nano := b_held[worst] + b_added[worst]; resets_at := b_ends[worst];
            affordable_tokens := greatest(granted, 0);
            room := limit_nano - spent_nano;
            verdict := CASE WHEN one.base + ceil(one.unit::numeric * least(one.floor, one.wanted) / 1000) <= room
                THEN 'cap_contended' ELSE 'cap_exceeded' END;
            RETURN NEXT; CONTINUE;
        END IF;

        hold := one.base + ceil(one.unit::numeric * granted / 1000);
        spare := NULL; buckets := '{}';
        FOREACH at IN ARRAY one.places LOOP
            b_added[at] := b_added[at] + hold;
            buckets := buckets || b_id[at];
            spare := least(spare, b_limit[at] - b_spent[at] - b_held[at] - b_added[at]);
        END LOOP;
        a_n := a_n || one.n::integer; a_tenant := a_tenant || one.tenant_id; a_environment := a_environment || one.environment_id;
        a_held := a_held || hold; a_tokens := a_tokens || granted; a_clamped := a_clamped || (granted < one.wanted);
        a_buckets := a_buckets || buckets::text;
        verdict := 'held'; held_nano := hold; max_tokens := granted; remaining_nano := spare;
        RETURN NEXT;
    END LOOP;

    INSERT INTO usage_call (id, tenant_id, environment_id, api_key_id, price_id, end_user, request_id, wire, endpoint, model,
        provider, streamed, state, held_nano, bucket_ids, max_output_tokens, clamped, admitted_at, start_by, deadline_at,
        next_ring_at, web_process)
    SELECT ids[a.n], a.tenant_id, a.environment_id, keys[a.n], price_ids[a.n], end_users[a.n], request_ids[a.n], wires[a.n],
        endpoints[a.n], models[a.n], providers[a.n], streams[a.n], 'held', a.held, a.buckets::bigint[], a.tokens, a.clamped,
        moment, moment + start_within, moment + deadline_within, moment + interval '3 seconds', web
    FROM unnest(a_n, a_tenant, a_environment, a_held, a_tokens, a_buckets, a_clamped)
        AS a(n, tenant_id, environment_id, held, tokens, buckets, clamped);
    INSERT INTO usage_callpayload (call_id, kind, headers, body)
    SELECT ids[a.n], 'request', headers[a.n], bodies[a.n] FROM unnest(a_n) AS a(n);
    UPDATE usage_capbucket b SET held_nano = b.held_nano + x.added
    FROM unnest(b_id, b_added) AS x(id, added) WHERE b.id = x.id AND x.added > 0;
END $$;

-- Takes held calls for one live worker process; from here on they are maybe sent, and each has its first attempt's row.
CREATE FUNCTION usage_claim(worker uuid, wanted uuid[])
RETURNS TABLE (
    id uuid, tenant_id uuid, environment_id uuid, api_key_id uuid, price_id bigint, request_id text, wire text, endpoint text, model text,
    provider text, streamed boolean, held_nano bigint, max_output_tokens bigint, web_process uuid, deadline_seconds double precision,
    headers jsonb, body bytea
) LANGUAGE sql AS $$
    WITH claimed AS (
        UPDATE usage_call c SET state = 'inflight', worker_process = worker, claimed_at = clock_timestamp()
        WHERE c.id IN (SELECT w.id FROM usage_call w WHERE w.id = ANY (wanted) AND w.state = 'held' AND w.start_by > now()
                       ORDER BY w.id FOR NO KEY UPDATE SKIP LOCKED)
          AND EXISTS (SELECT 1 FROM usage_processlease p WHERE p.id = worker AND p.state = 'alive')
        RETURNING c.*
    ), tried AS (
        INSERT INTO usage_attempt (call_id, n, provider, started_at)
        SELECT c.id, 1, c.provider, clock_timestamp() FROM claimed c
    )
    SELECT c.id, c.tenant_id, c.environment_id, c.api_key_id, c.price_id, c.request_id, c.wire, c.endpoint, c.model, c.provider, c.streamed, c.held_nano,
        c.max_output_tokens, c.web_process, extract(epoch FROM c.deadline_at - now()), p.headers, p.body
    FROM claimed c JOIN usage_callpayload p ON p.call_id = c.id AND p.kind = 'request'
    ORDER BY c.id
$$;

-- Ends a batch of calls: frees the holds, charges at most the hold, books what lies above it to the house.
-- `worker` NULL is the sweeper, which may end what no worker owns any more: state must then be one of `from_states`.
-- Returns the calls that it ended; a call that somebody else ended before is not among them.
CREATE FUNCTION usage_settle(
    worker uuid, from_states text[], ids uuid[], to_states text[], statuses smallint[], error_codes text[], evidences text[],
    costs_nano bigint[], provider_costs_nano bigint[], exposures_nano bigint[],
    inputs bigint[], cache_reads bigint[], cache_writes_5m bigint[], cache_writes_1h bigint[], outputs bigint[],
    reasonings bigint[], served_models text[], provider_request_ids text[], first_bytes_at timestamptz[],
    attempt_outcomes text[], attempt_errors text[], headers jsonb[], bodies bytea[]
) RETURNS TABLE (id uuid, charged_nano bigint, platform_loss_nano bigint, remaining_nano bigint)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    ended uuid[]; touched bigint[];
BEGIN
    PERFORM 1 FROM usage_call c WHERE c.id = ANY (ids) ORDER BY c.id FOR NO KEY UPDATE;
    WITH done AS (
        UPDATE usage_call c SET
            state = u.to_state, status = u.status, error_code = u.error_code, evidence = u.evidence,
            charged_nano = least(u.cost, c.held_nano), list_nano = u.cost, provider_cost_nano = u.provider_cost,
            platform_loss_nano = greatest(u.cost - c.held_nano, 0),
            input_tokens = u.input, cache_read_tokens = u.cache_read, cache_write_5m_tokens = u.cache_write_5m,
            cache_write_1h_tokens = u.cache_write_1h, output_tokens = u.output, reasoning_tokens = u.reasoning,
            served_model = u.served_model, provider_request_id = u.provider_request_id, first_byte_at = u.first_byte_at,
            settled_at = clock_timestamp()
        FROM unnest(ids, to_states, statuses, error_codes, evidences, costs_nano, provider_costs_nano, exposures_nano, inputs,
                cache_reads, cache_writes_5m, cache_writes_1h, outputs, reasonings, served_models, provider_request_ids,
                first_bytes_at, attempt_outcomes, attempt_errors)
            AS u(id, to_state, status, error_code, evidence, cost, provider_cost, exposure, input, cache_read, cache_write_5m,
                cache_write_1h, output, reasoning, served_model, provider_request_id, first_byte_at, attempt_outcome,
                attempt_error)
        WHERE c.id = u.id AND c.state = ANY (from_states) AND (worker IS NULL OR c.worker_process = worker)
        RETURNING c.*, u.exposure, u.attempt_outcome, u.attempt_error
    ), booked AS (
        INSERT INTO usage_ledgerentry (ref, kind, tenant_id, environment_id, api_key_id, end_user, debit, credit, amount_nano,
            price_id, evidence, belongs_at)
        SELECT d.id, b.kind, d.tenant_id, d.environment_id, d.api_key_id, d.end_user, b.debit, b.credit, b.amount, d.price_id,
            d.evidence, d.admitted_at
        FROM done d, LATERAL (VALUES
            ('charge', 'receivable', 'revenue', d.charged_nano),
            ('provider_cost', 'cost_of_sales', 'payable:' || d.provider, d.provider_cost_nano),
            ('platform_loss', 'platform_loss', 'revenue_forgone', d.platform_loss_nano),
            ('exposure', 'exposure', 'payable:' || d.provider, d.exposure)
        ) AS b(kind, debit, credit, amount)
        WHERE b.amount > 0 AND d.state IN ('settled', 'void')
    ), tried AS (
        UPDATE usage_attempt a SET outcome = d.attempt_outcome, ended_at = clock_timestamp(), status = d.status,
            error = d.attempt_error, provider_request_id = d.provider_request_id
        FROM done d
        WHERE a.call_id = d.id AND d.attempt_outcome IS NOT NULL
          AND a.n = (SELECT max(l.n) FROM usage_attempt l WHERE l.call_id = d.id)
    )
    SELECT array_agg(d.id ORDER BY d.id) INTO ended FROM done d;

    INSERT INTO usage_callpayload (call_id, kind, headers, body)
    SELECT u.id, 'response', u.headers, u.body FROM unnest(ids, headers, bodies) AS u(id, headers, body)
    WHERE u.id = ANY (ended) AND u.body IS NOT NULL
    ON CONFLICT DO NOTHING;

    SELECT array_agg(DISTINCT bucket) INTO touched
    FROM usage_call c, unnest(c.bucket_ids) bucket WHERE c.id = ANY (ended) AND c.state IN ('settled', 'void');
    PERFORM 1 FROM usage_capbucket b WHERE b.id = ANY (touched) ORDER BY b.id FOR NO KEY UPDATE;
    UPDATE usage_capbucket b SET held_nano = b.held_nano - x.freed, spent_nano = b.spent_nano + x.spent
    FROM (SELECT bucket, sum(c.held_nano) AS freed, sum(c.charged_nano) AS spent
          FROM usage_call c, unnest(c.bucket_ids) bucket
          WHERE c.id = ANY (ended) AND c.state IN ('settled', 'void') GROUP BY bucket) x
    WHERE b.id = x.bucket;

    RETURN QUERY
    SELECT c.id, c.charged_nano, c.platform_loss_nano,
        (SELECT min(s.limit_nano - b.spent_nano - b.held_nano) FROM usage_capbucket b
            JOIN usage_spendingcap s ON s.id = b.cap_id WHERE b.id = ANY (c.bucket_ids))
    FROM usage_call c WHERE c.id = ANY (ended);
END $$;

-- Sets a cap, new or not. A new one starts with what its current period has already spent and holds, to the nano-dollar:
-- admissions of the tenant wait for it, the calls in flight are locked, and those already settled are in the ledger.
CREATE FUNCTION usage_set_cap(tenant uuid, environment uuid, key uuid, end_user_ text, period_ text, limit_ bigint)
RETURNS bigint LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    cap bigint; bucket bigint; span record; live uuid[];
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended(tenant::text, 0));
    UPDATE usage_spendingcap c SET limit_nano = limit_
    WHERE c.tenant_id = tenant AND c.environment_id IS NOT DISTINCT FROM environment AND c.api_key_id IS NOT DISTINCT FROM key
      AND c.end_user = end_user_ AND c.period = period_ RETURNING c.id INTO cap;
    IF cap IS NOT NULL THEN RETURN cap; END IF;

    INSERT INTO usage_spendingcap (tenant_id, environment_id, api_key_id, end_user, period, limit_nano, created_at)
        VALUES (tenant, environment, key, end_user_, period_, limit_, now()) RETURNING id INTO cap;
    SELECT p.* INTO span FROM tenants_tenant t, usage_period(period_, t.time_zone, clock_timestamp()) p WHERE t.id = tenant;
    SELECT array_agg(l.id) INTO live
    FROM (SELECT c.id FROM usage_call c
          WHERE c.tenant_id = tenant AND c.state IN ('held', 'inflight', 'unknown') AND c.admitted_at >= span.starts_at
            AND (environment IS NULL OR c.environment_id = environment) AND (key IS NULL OR c.api_key_id = key)
            AND (end_user_ = '' OR c.end_user = end_user_)
          ORDER BY c.id FOR UPDATE) l;
    INSERT INTO usage_capbucket (cap_id, starts_at, ends_at, held_nano, spent_nano)
    SELECT cap, span.starts_at, span.ends_at,
        (SELECT coalesce(sum(c.held_nano), 0) FROM usage_call c WHERE c.id = ANY (live)),
        (SELECT coalesce(sum(CASE WHEN l.debit = 'receivable' THEN l.amount_nano ELSE -l.amount_nano END), 0)
         FROM usage_ledgerentry l
         WHERE l.tenant_id = tenant AND 'receivable' IN (l.debit, l.credit) AND l.belongs_at >= span.starts_at
           AND (environment IS NULL OR l.environment_id = environment) AND (key IS NULL OR l.api_key_id = key)
           AND (end_user_ = '' OR l.end_user = end_user_))
    RETURNING id INTO bucket;
    UPDATE usage_call c SET bucket_ids = c.bucket_ids || bucket WHERE c.id = ANY (live);
    RETURN cap;
END $$;

-- Whether a sweeper may begin a round: at most one in `apart`, and only one of several that ask at once.
CREATE UNLOGGED TABLE usage_sweep (id smallint PRIMARY KEY, begun_at timestamptz NOT NULL);
INSERT INTO usage_sweep VALUES (1, 'epoch');
CREATE FUNCTION usage_sweeper_begins(apart interval) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO usage_sweep VALUES (1, 'epoch') ON CONFLICT DO NOTHING;
    UPDATE usage_sweep SET begun_at = now() WHERE id = 1 AND begun_at < now() - apart;
    RETURN FOUND;
END $$;
