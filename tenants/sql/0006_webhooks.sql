-- A UUIDv7 (RFC 9562): 48 bits of Unix milliseconds, then random bits.
CREATE FUNCTION tenants_uuid7() RETURNS uuid LANGUAGE sql VOLATILE AS $$
    SELECT encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid())
        PLACING substring(int8send((extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3) FROM 1 FOR 6), 52, 1), 53, 1),
        'hex')::uuid
$$;

-- Whether an endpoint is to be told of what happens now in this place.
CREATE FUNCTION tenants_webhook_wants(p tenants_webhookendpoint, place uuid, type text) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT p.is_enabled AND (p.environment_id IS NULL OR p.environment_id = place)
        AND (cardinality(p.event_types) = 0 OR type = ANY (p.event_types))
$$;

-- Puts down that something happened, in the transaction in which it does; nothing where nobody wants to know, or where it is
-- down already. It is told once its body has been written (tenants_webhook_tell).
CREATE FUNCTION tenants_webhook_note(tenant uuid, place uuid, type text, subject text, moment timestamptz)
RETURNS void LANGUAGE sql AS $$
    INSERT INTO tenants_webhookevent (id, tenant_id, environment_id, type, subject, occurred_at)
    SELECT tenants_uuid7(), tenant, place, type, subject, moment
    WHERE EXISTS (SELECT FROM tenants_webhookendpoint p WHERE p.tenant_id = tenant AND tenants_webhook_wants(p, place, type))
    ON CONFLICT DO NOTHING
$$;

-- Writes the bodies of events, each once, and a delivery for each endpoint that wants it and was there when it happened.
-- Returns how many deliveries.
CREATE FUNCTION tenants_webhook_tell(events uuid[], bodies text[]) RETURNS bigint LANGUAGE sql AS $$
    WITH told AS (
        UPDATE tenants_webhookevent e SET body = u.body FROM unnest(events, bodies) AS u(id, body)
        WHERE e.id = u.id AND e.body IS NULL RETURNING e.*
    ), made AS (
        INSERT INTO tenants_webhookdelivery (id, tenant_id, endpoint_id, event_id, state, tries, next_at, window_from)
        SELECT tenants_uuid7(), t.tenant_id, p.id, t.id, 'pending', 0, clock_timestamp(), clock_timestamp()
        FROM told t JOIN tenants_webhookendpoint p ON p.tenant_id = t.tenant_id AND CASE
            WHEN t.only_endpoint_id IS NOT NULL THEN p.id = t.only_endpoint_id
            ELSE tenants_webhook_wants(p, t.environment_id, t.type) AND p.created_at <= t.occurred_at END
        ORDER BY t.id
        ON CONFLICT DO NOTHING RETURNING 1
    )
    SELECT count(*) FROM made
$$;

-- Claims what is due for one process, at most `places`: so many at once for an endpoint (one, if it fails) and for a tenant,
-- at most half a tenant's and `failing_places` of all for endpoints that fail. Tenants take turns, and so do a tenant's
-- endpoints. A claim ends by itself, and then it is due again: its process is dead or has forgotten it.
CREATE FUNCTION tenants_webhook_claim(
    token uuid, places integer, failing_places integer, per_endpoint integer, per_tenant integer, lease interval
) RETURNS TABLE (
    id uuid, n integer, endpoint_id uuid, event_id uuid, url text, fails boolean, secret bytea, old_secret bytea, body text
) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE chosen uuid[];
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('tenants_webhook_claim'));  -- so that nobody counts what another is claiming
    WITH busy AS MATERIALIZED (
        SELECT d.endpoint_id, d.tenant_id, p.failing_since IS NOT NULL AS fails, count(*) AS n
        FROM tenants_webhookdelivery d JOIN tenants_webhookendpoint p ON p.id = d.endpoint_id
        WHERE d.claim IS NOT NULL AND d.next_at > now() GROUP BY 1, 2, 3
    ), waiting AS (
        SELECT d.id, p.tenant_id, d.next_at, p.failing_since IS NOT NULL AS fails,
            row_number() OVER (PARTITION BY p.id ORDER BY d.next_at, d.id) AS turn
        FROM tenants_webhookendpoint p
        LEFT JOIN busy b ON b.endpoint_id = p.id
        CROSS JOIN LATERAL (
            SELECT d.id, d.next_at FROM tenants_webhookdelivery d
            WHERE d.endpoint_id = p.id AND d.state = 'pending' AND d.next_at <= now() ORDER BY d.next_at
            LIMIT greatest(CASE WHEN p.failing_since IS NULL THEN per_endpoint ELSE 1 END - coalesce(b.n, 0), 0)) d
        WHERE p.is_enabled
    ), fair AS (
        SELECT w.id, w.next_at, w.fails,
            row_number() OVER (PARTITION BY w.tenant_id ORDER BY w.fails, w.turn, w.next_at)
                + coalesce((SELECT sum(b.n) FROM busy b WHERE b.tenant_id = w.tenant_id), 0) AS nth,
            row_number() OVER (PARTITION BY w.tenant_id, w.fails ORDER BY w.turn, w.next_at)
                + coalesce((SELECT sum(b.n) FROM busy b WHERE b.tenant_id = w.tenant_id AND b.fails), 0) AS nth_failing
        FROM waiting w
    ), allowed AS (
        SELECT f.*, row_number() OVER (PARTITION BY f.fails ORDER BY f.nth, f.next_at) AS overall FROM fair f
        WHERE f.nth <= per_tenant AND (NOT f.fails OR f.nth_failing <= greatest(per_tenant / 2, 1))
    )
    SELECT array_agg(a.id) INTO chosen FROM (
        SELECT a.id FROM allowed a WHERE NOT a.fails OR a.overall <= failing_places ORDER BY a.fails, a.nth, a.next_at LIMIT places
    ) a;
    IF chosen IS NULL THEN RETURN; END IF;
    UPDATE tenants_webhookattempt a SET ended_at = clock_timestamp(), error = 'worker_lost'
    WHERE a.delivery_id = ANY (chosen) AND a.ended_at IS NULL;
    RETURN QUERY
    WITH taken AS (
        UPDATE tenants_webhookdelivery d SET claim = token, tries = d.tries + 1, next_at = clock_timestamp() + lease
        WHERE d.id = ANY (chosen) AND d.state = 'pending' AND d.next_at <= now() RETURNING d.*
    ), tried AS (
        INSERT INTO tenants_webhookattempt (delivery_id, n, started_at, error, answer)
        SELECT t.id, t.tries, clock_timestamp(), '', '' FROM taken t
    )
    SELECT t.id, t.tries, t.endpoint_id, t.event_id, p.url::text, p.failing_since IS NOT NULL, p.secret,
        CASE WHEN p.old_secret_until > now() THEN p.old_secret END, e.body
    FROM taken t JOIN tenants_webhookendpoint p ON p.id = t.endpoint_id JOIN tenants_webhookevent e ON e.id = t.event_id
    ORDER BY t.id;
END $$;

-- Ends attempts by their outcomes: delivered, gone, or again after so many seconds; given up once their time is over. Whoever
-- has lost his claim changes nothing. Returns what it ended, and whether that disabled the endpoint.
CREATE FUNCTION tenants_webhook_finish(
    ids uuid[], tokens uuid[], outcomes text[], waits double precision[], statuses integer[], spans integer[], errors text[],
    answers text[], give_up interval
) RETURNS TABLE (id uuid, endpoint_id uuid, state text, disabled_why text) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE done uuid[]; moment timestamptz := clock_timestamp(); stopped uuid[];
BEGIN
    WITH ended AS (
        UPDATE tenants_webhookdelivery d SET claim = NULL,
            state = CASE WHEN u.outcome = 'delivered' THEN 'delivered'
                WHEN u.outcome = 'gone' OR d.window_from + give_up <= moment THEN 'failed' ELSE 'pending' END,
            ended_at = CASE WHEN u.outcome = 'again' AND d.window_from + give_up > moment THEN NULL ELSE moment END,
            next_at = CASE WHEN u.outcome = 'again'
                THEN greatest(least(moment + u.wait * interval '1 second', d.window_from + give_up), moment + interval '1 millisecond')
                ELSE moment END
        FROM unnest(ids, tokens, outcomes, waits) AS u(id, token, outcome, wait)
        WHERE d.id = u.id AND d.claim = u.token
        RETURNING d.id, d.tries
    ), tried AS (
        UPDATE tenants_webhookattempt a SET ended_at = moment, status = u.status, milliseconds = u.span, error = u.error,
            answer = u.answer
        FROM ended e JOIN unnest(ids, statuses, spans, errors, answers) AS u(id, status, span, error, answer) ON u.id = e.id
        WHERE a.delivery_id = e.id AND a.n = e.tries
    )
    SELECT array_agg(e.id) INTO done FROM ended e;
    IF done IS NULL THEN RETURN; END IF;

    WITH seen AS (
        SELECT d.endpoint_id, bool_or(d.state = 'delivered') AS reached, bool_or(u.outcome = 'gone') AS gone,
            -- from when on what was given up has failed
            min((SELECT min(a.ended_at) FROM tenants_webhookattempt a
                 WHERE a.delivery_id = d.id AND a.started_at >= d.window_from)) FILTER (WHERE d.state = 'failed') AS failed_from
        FROM tenants_webhookdelivery d JOIN unnest(ids, outcomes) AS u(id, outcome) ON u.id = d.id
        WHERE d.id = ANY (done) GROUP BY d.endpoint_id
    ), judged AS (
        SELECT p.id, s.reached, CASE WHEN s.gone THEN 'gone'
            WHEN NOT s.reached AND coalesce(p.failing_since, moment) <= s.failed_from AND s.failed_from <= moment - give_up / 2
                THEN 'failing' END AS why
        FROM seen s JOIN tenants_webhookendpoint p ON p.id = s.endpoint_id
        WHERE (s.reached) IS DISTINCT FROM (p.failing_since IS NULL) OR s.gone OR s.failed_from IS NOT NULL
        ORDER BY p.id FOR NO KEY UPDATE OF p
    ), changed AS (
        UPDATE tenants_webhookendpoint p SET
            failing_since = CASE WHEN NOT j.reached THEN coalesce(p.failing_since, moment) END,
            is_enabled = p.is_enabled AND j.why IS NULL,
            disabled_at = CASE WHEN p.is_enabled AND j.why IS NOT NULL THEN moment ELSE p.disabled_at END,
            disabled_why = CASE WHEN p.is_enabled AND j.why IS NOT NULL THEN j.why ELSE p.disabled_why END,
            notice_due_at = CASE WHEN p.is_enabled AND j.why IS NOT NULL THEN moment ELSE p.notice_due_at END
        FROM judged j WHERE p.id = j.id
        RETURNING p.id, p.disabled_at
    )
    SELECT array_agg(c.id) INTO stopped FROM changed c WHERE c.disabled_at = moment;
    RETURN QUERY
    SELECT d.id, d.endpoint_id, d.state::text, p.disabled_why::text
    FROM tenants_webhookdelivery d LEFT JOIN tenants_webhookendpoint p ON p.id = d.endpoint_id AND p.id = ANY (stopped)
    WHERE d.id = ANY (done);
END $$;
