-- Answers that are given again are calls: those that cost something, or that an Idempotency-Key stands for, are held and settled
-- like any other, in one transaction, so that nothing can ever be rung for or sent.
CREATE FUNCTION usage_give(
    web uuid, known_revision bigint, lanes text[], detached boolean[], starts_within interval[], deadlines_within interval[],
    ids uuid[], keys uuid[], end_users text[], request_ids text[], wires text[], endpoints text[], models text[],
    providers text[], streams boolean[], price_ids bigint[], tariff_ids bigint[], bases_nano bigint[], units_pico bigint[],
    wanted_tokens bigint[], floor_tokens bigint[], idempotency_hashes bytea[], body_hashes bytea[], headers jsonb[], bodies bytea[],
    kinds text[], sources uuid[], ages integer[], saved_nano bigint[], shares smallint[], answer_models text[],
    answer_headers jsonb[], answers bytea[]
) RETURNS TABLE (
    n integer, verdict text, call_id uuid, held_nano bigint, max_tokens bigint, remaining_nano bigint, cap_id bigint,
    cap_scope text, cap_period text, limit_nano bigint, spent_nano bigint, cap_held_nano bigint, affordable_tokens bigint,
    resets_at timestamptz
) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    one record; held integer[] := '{}'; many integer;
BEGIN
    FOR one IN SELECT h.* FROM usage_hold(web, known_revision, lanes, detached, starts_within, deadlines_within, ids, keys,
        end_users, request_ids, wires, endpoints, models, providers, streams, price_ids, tariff_ids, bases_nano, units_pico,
        wanted_tokens, floor_tokens, idempotency_hashes, body_hashes, headers, bodies) h
    LOOP
        n := one.n; verdict := one.verdict; call_id := one.call_id; held_nano := one.held_nano; max_tokens := one.max_tokens;
        remaining_nano := one.remaining_nano; cap_id := one.cap_id; cap_scope := one.cap_scope; cap_period := one.cap_period;
        limit_nano := one.limit_nano; spent_nano := one.spent_nano; cap_held_nano := one.cap_held_nano;
        affordable_tokens := one.affordable_tokens; resets_at := one.resets_at;
        IF verdict = 'held' THEN held := held || n; END IF;
        RETURN NEXT;
    END LOOP;
    many := coalesce(array_length(held, 1), 0);
    IF many = 0 THEN RETURN; END IF;

    -- What tells that it was given is there before it is settled: whoever sees it settled sees both.
    UPDATE usage_call c SET cached = kinds[g.n], cached_from = sources[g.n], cached_age_seconds = ages[g.n],
        saved_nano = usage_give.saved_nano[g.n], cache_share_bps = shares[g.n]
    FROM unnest(held) AS g(n) WHERE c.id = ids[g.n] AND c.state = 'held';
    PERFORM usage_settle(NULL, ARRAY['held'],
        ARRAY(SELECT ids[g.n] FROM unnest(held) AS g(n)),
        array_fill('settled'::text, ARRAY[many]), array_fill(200::smallint, ARRAY[many]), array_fill(''::text, ARRAY[many]),
        array_fill('cache'::text, ARRAY[many]),
        ARRAY(SELECT bases_nano[g.n] FROM unnest(held) AS g(n)),
        array_fill(0::bigint, ARRAY[many]), array_fill(0::bigint, ARRAY[many]), array_fill(0::bigint, ARRAY[many]),
        array_fill(0::bigint, ARRAY[many]), array_fill(0::bigint, ARRAY[many]), array_fill(0::bigint, ARRAY[many]),
        array_fill(0::bigint, ARRAY[many]), array_fill(0::bigint, ARRAY[many]), array_fill(0::bigint, ARRAY[many]),
        array_fill(NULL::jsonb, ARRAY[many]), array_fill('standard'::text, ARRAY[many]),
        ARRAY(SELECT answer_models[g.n] FROM unnest(held) AS g(n)), array_fill(''::text, ARRAY[many]),
        array_fill(NULL::timestamptz, ARRAY[many]), array_fill(NULL::text, ARRAY[many]), array_fill(''::text, ARRAY[many]),
        array_fill(''::text, ARRAY[many]), array_fill(''::text, ARRAY[many]),
        ARRAY(SELECT answer_headers[g.n] FROM unnest(held) AS g(n)), ARRAY(SELECT answers[g.n] FROM unnest(held) AS g(n)));
END $$;
