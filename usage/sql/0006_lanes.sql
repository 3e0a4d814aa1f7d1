-- Admits a batch of calls in order, each against every cap that matches it, all or nothing per call.
--   verdict: held | stale | again | key_invalid | suspended | cap_exceeded | cap_contended | replay | key_reused
-- A call must be claimed within its `starts_within`, and in the batch lane its deadline counts from there (usage_claim).
--   hold = base + output price * max output tokens; where a cap affords fewer tokens, as many as it affords are granted, down
--   to the floor.
DROP FUNCTION usage_hold;
CREATE FUNCTION usage_hold(
    web uuid, known_revision bigint, lanes text[], detached boolean[], starts_within interval[], deadlines_within interval[],
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
        deadline_at, next_ring_at, web_process, lane, detached)
    SELECT ids[a.n], a.tenant_id, a.environment_id, keys[a.n], price_ids[a.n], tariff_ids[a.n], end_users[a.n], request_ids[a.n],
        wires[a.n], endpoints[a.n], models[a.n], providers[a.n], streams[a.n], 'held', a.prepaid, a.held, a.buckets::bigint[],
        a.tokens, a.clamped, moment, moment + starts_within[a.n],
        moment + deadlines_within[a.n],
        moment + CASE lanes[a.n] WHEN 'batch' THEN interval '60 seconds' ELSE interval '3 seconds' END, web, lanes[a.n], usage_hold.detached[a.n]
    FROM unnest(a_n, a_tenant, a_environment, a_held, a_tokens, a_buckets, a_clamped, a_prepaid)
        AS a(n, tenant_id, environment_id, held, tokens, buckets, clamped, prepaid);
    INSERT INTO usage_callpayload (call_id, kind, headers, body)
    SELECT ids[a.n], 'request', headers[a.n], bodies[a.n] FROM unnest(a_n) AS a(n);
    UPDATE usage_capbucket b SET held_nano = b.held_nano + x.added, shadow_refused_calls = b.shadow_refused_calls + x.missed,
        shadow_refused_nano = b.shadow_refused_nano + x.missed_nano
    FROM unnest(b_id, b_added, b_missed, b_missed_nano) AS x(id, added, missed, missed_nano)
    WHERE b.id = x.id AND x.added > 0;
END $$;

-- A call of the batch lane may have waited long; from its claim it has as long as any other, which is what lies between its
-- last start and its deadline.
-- Takes held calls for one live worker process; from here on they are maybe sent, and each has its first attempt's row. Calls
-- whose key, environment or tenant was suspended meanwhile stay behind, for the sweeper to void.
DROP FUNCTION usage_claim;
CREATE FUNCTION usage_claim(worker uuid, wanted uuid[])
RETURNS TABLE (
    id uuid, tenant_id uuid, environment_id uuid, api_key_id uuid, price_id bigint, tariff_id bigint, request_id text, wire text,
    endpoint text, model text, provider text, streamed boolean, held_nano bigint, max_output_tokens bigint, web_process uuid,
    deadline_seconds double precision, headers jsonb, body bytea, lane text, detached boolean
) LANGUAGE sql AS $$
    WITH claimed AS (
        UPDATE usage_call c SET state = 'inflight', worker_process = worker, claimed_at = clock_timestamp(),
            deadline_at = CASE c.lane WHEN 'batch' THEN least(c.deadline_at, now() + (c.deadline_at - c.start_by)) ELSE c.deadline_at END
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
        p.headers, p.body, c.lane, c.detached
    FROM claimed c JOIN usage_callpayload p ON p.call_id = c.id AND p.kind = 'request'
    ORDER BY c.id
$$;
