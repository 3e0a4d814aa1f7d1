-- Seals of the ledger: every entry up to a horizon is in one block of one chain; a block's hash covers the hash before it.
-- docs/ledger.md tells the story.

-- The sealer reads what came since the last round, and a block's entries are read again, by number.
CREATE INDEX ledger_by_number ON usage_ledgerentry (number);

-- Append-only tables carry a trigger of this very name: by it the application's role gets SELECT and INSERT on them only.
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON usage_creditconsumption
    FOR EACH ROW EXECUTE FUNCTION usage_ledger_is_append_only();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON usage_ledgerseal
    FOR EACH ROW EXECUTE FUNCTION usage_ledger_is_append_only();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON usage_auditrun
    FOR EACH ROW EXECUTE FUNCTION usage_ledger_is_append_only();
DO $$
DECLARE target regclass;
BEGIN
    FOR target IN
        SELECT 'usage_ledgerseal'::regclass UNION SELECT 'usage_auditrun'::regclass
        UNION SELECT relid FROM pg_partition_tree('usage_creditconsumption')
    LOOP
        EXECUTE format('CREATE TRIGGER no_truncate BEFORE TRUNCATE ON %s FOR EACH STATEMENT '
                       'EXECUTE FUNCTION usage_ledger_is_append_only()', target);
    END LOOP;
END $$;

-- Opens the monthly partitions from this month to `ahead` months on; safe to repeat. Returns how many it opened.
-- The sweeper calls it as the application, which owns no table: it runs as its owner. Those of an append-only table refuse
-- TRUNCATE too, and are reached through their parent only.
DROP FUNCTION usage_open_partitions;
CREATE FUNCTION usage_open_partitions(ahead integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    parent text; child text; first timestamptz; opened integer := 0; grantee text;
BEGIN
    IF ahead NOT BETWEEN 0 AND 24 THEN RAISE 'between 0 and 24 months ahead, not %', ahead; END IF;
    FOREACH parent IN ARRAY ARRAY['usage_call', 'usage_callpayload', 'usage_attempt', 'usage_ledgerentry',
                                  'usage_creditconsumption'] LOOP
        FOR month IN 0..ahead LOOP
            first := date_trunc('month', now(), 'UTC') + make_interval(months => month);
            child := parent || to_char(first AT TIME ZONE 'UTC', '_YYYY_MM');
            CONTINUE WHEN to_regclass(child) IS NOT NULL;
            EXECUTE format(
                'CREATE TABLE %I PARTITION OF %I FOR VALUES FROM (%L) TO (%L) WITH (autovacuum_vacuum_scale_factor = 0.02%s)',
                child, parent, usage_uuid_at(first), usage_uuid_at(first + interval '1 month'),
                -- A call is written three times; with room on its page the second version touches no index.
                CASE WHEN parent IN ('usage_call', 'usage_attempt') THEN ', fillfactor = 60' ELSE '' END);
            opened := opened + 1;
            CONTINUE WHEN parent NOT IN ('usage_ledgerentry', 'usage_creditconsumption');
            EXECUTE format('CREATE TRIGGER no_truncate BEFORE TRUNCATE ON %I FOR EACH STATEMENT '
                           'EXECUTE FUNCTION usage_ledger_is_append_only()', child);
            FOR grantee IN
                SELECT DISTINCT x.grantee::regrole::text FROM pg_class c, aclexplode(c.relacl) x
                WHERE c.oid = child::regclass AND x.grantee NOT IN (0, c.relowner)
            LOOP
                EXECUTE format('REVOKE ALL ON %I FROM %s', child, grantee);
            END LOOP;
        END LOOP;
    END LOOP;
    RETURN opened;
END $$;
REVOKE EXECUTE ON FUNCTION usage_open_partitions FROM PUBLIC;
SELECT usage_open_partitions(2);

-- The chain that an entry belongs to: its tenant's, if it moves what he owes or owns; the house's, a nil UUID, if it is what a
-- provider bills us or what we bear.
CREATE FUNCTION usage_ledger_chain(entry usage_ledgerentry) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN ARRAY[entry.debit, entry.credit] && ARRAY['receivable', 'customer_credit', 'revenue']
        THEN entry.tenant_id ELSE '00000000-0000-0000-0000-000000000000'::uuid END
$$;

-- Version 1 of an entry's canonical bytes: one line of JSON, keys sorted, no blanks, times in UTC with microseconds.
CREATE FUNCTION usage_ledger_line(entry usage_ledgerentry) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT '{"amount_nano":' || entry.amount_nano
        || ',"api_key_id":' || coalesce('"' || entry.api_key_id || '"', 'null')
        || ',"belongs_at":"' || to_char(entry.belongs_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
        || '","created_at":"' || to_char(entry.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
        || '","credit":' || to_json(entry.credit) || ',"debit":' || to_json(entry.debit)
        || ',"end_user":' || to_json(entry.end_user)
        || ',"environment_id":' || coalesce('"' || entry.environment_id || '"', 'null')
        || ',"evidence":' || to_json(entry.evidence) || ',"kind":' || to_json(entry.kind)
        || ',"number":' || entry.number || ',"price_id":' || coalesce(entry.price_id::text, 'null')
        || ',"reason":' || to_json(entry.reason) || ',"ref":"' || entry.ref || '","seq":' || entry.seq
        || ',"tenant_id":"' || entry.tenant_id || E'"}\n'
$$;
CREATE FUNCTION usage_seal_sha256(prev_sha256 text, lines text) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT encode(sha256(convert_to(prev_sha256 || E'\n' || lines, 'UTF8')), 'hex')
$$;

-- The last number that was drawn, and who may still be inserting. A number is drawn by its insert, under a lock on the ledger
-- that is kept to the transaction's end; so once these have ended, every entry up to that number is there or never will be.
-- No lock is taken, so no writer waits.
CREATE FUNCTION usage_ledger_drawn(OUT number bigint, OUT writers text[]) LANGUAGE plpgsql AS $$
BEGIN
    SELECT CASE WHEN s.is_called THEN s.last_value ELSE 0 END INTO number FROM usage_ledgerentry_number s;
    writers := usage_ledger_writers();
END $$;
CREATE FUNCTION usage_ledger_writers() RETURNS text[] LANGUAGE sql VOLATILE AS $$
    SELECT coalesce(array_agg(DISTINCT l.virtualtransaction), '{}') FROM pg_locks l
    WHERE l.locktype = 'relation' AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND l.relation IN (SELECT relid FROM pg_partition_tree('usage_ledgerentry')) AND l.mode = 'RowExclusiveLock' AND l.granted
      AND l.pid IS DISTINCT FROM pg_backend_pid()
$$;

-- Seals the next entries up to `horizon`, about `at_most` of them: one block for each chain that has any. One sealer at a time.
-- `sealed_to` is the number up to which every entry is sealed now, or NULL where another sealer is at work.
CREATE FUNCTION usage_seal(horizon bigint, at_most integer, OUT sealed_to bigint, OUT blocks integer, OUT entries integer)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    behind bigint; upto bigint;
BEGIN
    blocks := 0; entries := 0;
    IF NOT pg_try_advisory_xact_lock(5702) THEN RETURN; END IF;
    behind := coalesce((SELECT max(s.upto_number) FROM usage_ledgerseal s), 0);
    SELECT max(x.number) INTO upto
    FROM (SELECT l.number FROM usage_ledgerentry l WHERE l.number > behind AND l.number <= horizon
          ORDER BY l.number LIMIT at_most) x;
    IF upto IS NULL THEN sealed_to := greatest(behind, horizon); RETURN; END IF;
    WITH block AS (
        SELECT usage_ledger_chain(l) AS tenant_id, min(l.number) AS first, max(l.number) AS last, count(*) AS entries,
            string_agg(usage_ledger_line(l), '' ORDER BY l.number, l.ref, l.kind, l.seq) AS lines
        FROM usage_ledgerentry l WHERE l.number > behind AND l.number <= upto GROUP BY 1
    ), sealed AS (
        INSERT INTO usage_ledgerseal (tenant_id, n, first_number, last_number, upto_number, entries, prev_sha256, sha256, version,
            sealed_at)
        SELECT b.tenant_id, coalesce(h.n, 0) + 1, b.first, b.last, upto, b.entries, p.sha256,
            usage_seal_sha256(p.sha256, b.lines), 1, clock_timestamp()
        FROM block b
        LEFT JOIN LATERAL (SELECT s.n, s.sha256 FROM usage_ledgerseal s WHERE s.tenant_id = b.tenant_id ORDER BY s.n DESC LIMIT 1) h
            ON true,
        LATERAL (SELECT coalesce(h.sha256, repeat('0', 64)) AS sha256) p
        RETURNING entries
    )
    SELECT upto, count(*), sum(s.entries) INTO sealed_to, blocks, entries FROM sealed s;
END $$;
