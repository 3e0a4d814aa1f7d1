-- Changing what a name means changes what may be called.
CREATE TRIGGER catalogue_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON tenants_route
    FOR EACH STATEMENT EXECUTE FUNCTION usage_catalogue_changed();

-- Closes the last attempt of each call and opens the next one, before its first byte may leave. Where the next one goes to
-- another step of the call's chain, the call's provider, price and tariff are that step's from here on, so that settlement,
-- receipt, sweeper and audit all rate it by whoever serves it; it was held at the dearest step. `worker` NULL asks for no owner.
-- `ns` number the attempts that end here, so that a batch whose COMMIT was answered to nobody can come again; 0 is the last one.
-- Returns the calls that go on; one that is not among them is not this worker's any more, and nothing more of it may be sent.
CREATE FUNCTION usage_retry(
    worker uuid, ids uuid[], ns smallint[], outcomes text[], errors text[], statuses smallint[], waits_ms integer[], provider_request_ids text[],
    costs_nano bigint[], charges_nano bigint[], models text[], credentials text[], next_providers text[], next_models text[],
    next_credentials text[], next_price_ids bigint[], next_tariff_ids bigint[]
) RETURNS TABLE (id uuid) LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    PERFORM 1 FROM usage_call c WHERE c.id = ANY (ids) ORDER BY c.id FOR NO KEY UPDATE;
    RETURN QUERY
    WITH u AS (
        SELECT * FROM unnest(ids, ns, outcomes, errors, statuses, waits_ms, provider_request_ids, costs_nano, charges_nano, models,
                credentials, next_providers, next_models, next_credentials, next_price_ids, next_tariff_ids)
            AS u(id, tried, outcome, error, status, wait, provider_request_id, cost, charge, model, credential, next_provider, next_model,
                next_credential, next_price, next_tariff)
    ), ended AS (
        UPDATE usage_attempt a SET outcome = u.outcome, error = u.error, status = u.status,
            provider_request_id = u.provider_request_id, ended_at = clock_timestamp(), cost_nano = u.cost,
            model = coalesce(nullif(u.model, ''), a.model), credential = coalesce(nullif(u.credential, ''), a.credential)
        FROM u JOIN usage_call c ON c.id = u.id
        WHERE a.call_id = u.id AND a.n = c.tries AND u.tried IN (0, c.tries) AND a.outcome = 'sent' AND c.state = 'inflight'
          AND (worker IS NULL OR c.worker_process = worker)
        RETURNING a.call_id, a.n, a.provider, u.*
    ), counted AS (
        UPDATE usage_call c SET tries = e.n + 1, retried_cost_nano = c.retried_cost_nano + e.cost,
            retried_charge_nano = c.retried_charge_nano + e.charge, provider = coalesce(e.next_provider, c.provider),
            price_id = CASE WHEN e.next_provider IS NULL THEN c.price_id ELSE e.next_price END,
            tariff_id = CASE WHEN e.next_provider IS NULL THEN c.tariff_id ELSE e.next_tariff END
        FROM ended e WHERE c.id = e.call_id
    ), opened AS (
        INSERT INTO usage_attempt (call_id, n, provider, model, credential, started_at, backoff_ms)
        SELECT e.call_id, e.n + 1, coalesce(e.next_provider, e.provider), e.next_model, e.next_credential,
            clock_timestamp() + e.wait * interval '1 millisecond', e.wait
        FROM ended e
    )
    SELECT e.call_id FROM ended e
    UNION ALL
    SELECT c.id FROM u JOIN usage_call c ON c.id = u.id
    WHERE u.tried > 0 AND c.tries = u.tried + 1 AND c.state = 'inflight' AND c.worker_process = worker;
END $$;

-- As before; the last attempt now says which model it asked for and by which credential, and what earlier attempts cost is owed
-- to the providers that they were sent to.
DROP FUNCTION usage_settle;
CREATE FUNCTION usage_settle(
    worker uuid, from_states text[], ids uuid[], to_states text[], statuses smallint[], error_codes text[], evidences text[],
    costs_nano bigint[], lists_nano bigint[], provider_costs_nano bigint[], exposures_nano bigint[],
    inputs bigint[], cache_reads bigint[], cache_writes_5m bigint[], cache_writes_1h bigint[], outputs bigint[],
    reasonings bigint[], metered jsonb[], variants text[], served_models text[], provider_request_ids text[],
    first_bytes_at timestamptz[], attempt_outcomes text[], attempt_errors text[], attempt_models text[], attempt_credentials text[],
    headers jsonb[], bodies bytea[]
) RETURNS TABLE (id uuid, charged_nano bigint, platform_loss_nano bigint, remaining_nano bigint)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    d_id uuid[]; d_buckets text[]; d_held bigint[]; d_charged bigint[]; d_loss bigint[]; d_prepaid boolean;
    b_id bigint[]; b_room bigint[]; due bigint[]; moment timestamptz := usage_now();
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
                provider_request_ids, first_bytes_at, attempt_outcomes, attempt_errors, attempt_models, attempt_credentials)
            AS u(id, to_state, status, error_code, evidence, cost, list, provider_cost, exposure, input, cache_read,
                cache_write_5m, cache_write_1h, output, reasoning, meters, variant, served_model, provider_request_id,
                first_byte_at, attempt_outcome, attempt_error, attempt_model, attempt_credential)
        WHERE c.id = u.id AND c.state = ANY (from_states) AND (worker IS NULL OR c.worker_process = worker)
        RETURNING c.*, u.exposure, u.attempt_outcome, u.attempt_error, u.attempt_model, u.attempt_credential
    ), elsewhere AS (  -- what earlier attempts cost at other providers than the last one is owed to these
        SELECT a.call_id, a.provider, sum(a.cost_nano)::bigint AS nano, row_number() OVER (PARTITION BY a.call_id ORDER BY a.provider) AS seq
        FROM done d JOIN usage_attempt a ON a.call_id = d.id AND a.n < d.tries AND a.provider <> d.provider AND a.cost_nano > 0
        WHERE d.retried_cost_nano > 0 AND NOT d.is_live GROUP BY a.call_id, a.provider
    ), owed AS (
        INSERT INTO usage_ledgerentry (ref, kind, seq, tenant_id, environment_id, api_key_id, end_user, debit, credit, amount_nano,
            price_id, evidence, belongs_at)
        SELECT d.id, 'provider_cost', e.seq, d.tenant_id, d.environment_id, d.api_key_id, d.end_user, 'cost_of_sales',
            'payable:' || e.provider, e.nano, d.price_id, d.evidence, d.admitted_at
        FROM elsewhere e JOIN done d ON d.id = e.call_id
    ), booked AS (
        INSERT INTO usage_ledgerentry (ref, kind, tenant_id, environment_id, api_key_id, end_user, debit, credit, amount_nano,
            price_id, evidence, belongs_at)
        SELECT d.id, b.kind, d.tenant_id, d.environment_id, d.api_key_id, d.end_user, b.debit, b.credit, b.amount, d.price_id,
            d.evidence, d.admitted_at
        FROM done d, LATERAL (VALUES
            ('charge', CASE WHEN d.is_prepaid THEN 'customer_credit' ELSE 'receivable' END, 'revenue', d.charged_nano),
            ('provider_cost', 'cost_of_sales', 'payable:' || d.provider, d.provider_cost_nano
                - coalesce((SELECT sum(e.nano) FROM elsewhere e WHERE e.call_id = d.id), 0)::bigint),
            ('platform_loss', 'platform_loss', 'revenue_forgone', d.platform_loss_nano),
            ('exposure', 'exposure', 'payable:' || d.provider, d.exposure)
        ) AS b(kind, debit, credit, amount)
        WHERE b.amount > 0 AND NOT d.is_live
    ), tried AS (
        UPDATE usage_attempt a SET outcome = d.attempt_outcome, ended_at = clock_timestamp(), status = d.status,
            error = d.attempt_error, provider_request_id = d.provider_request_id,
            model = coalesce(nullif(d.attempt_model, ''), a.model), credential = coalesce(nullif(d.attempt_credential, ''), a.credential)
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
            THEN usage_cap_limit(c, moment) - m.spent_nano - m.held_nano END),
        array_agg(m.id) FILTER (WHERE m.spent_nano >= m.notice_at_nano)
    INTO b_id, b_room, due FROM moved m JOIN usage_spendingcap c ON c.id = m.cap_id;
    IF due IS NOT NULL THEN PERFORM usage_notice(due); END IF;
    IF d_prepaid THEN PERFORM usage_burn(d_id); END IF;

    RETURN QUERY
    WITH left_of AS (
        SELECT d.id, min(b.room) AS room
        FROM unnest(d_id, d_buckets) AS d(id, buckets), unnest(d.buckets::bigint[]) AS x(bucket)
        JOIN unnest(b_id, b_room) AS b(id, room) ON b.id = x.bucket GROUP BY d.id
    )
    SELECT d.id, d.charged, d.loss, l.room
    FROM unnest(d_id, d_charged, d_loss) AS d(id, charged, loss) LEFT JOIN left_of l USING (id);
END $$;
