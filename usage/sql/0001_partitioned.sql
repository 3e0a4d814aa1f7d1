-- Tables that grow with every call, partitioned by range of a UUIDv7, which is time: the primary key stays unique, and a
-- month is detached in one statement.
CREATE TABLE usage_call (
    id uuid NOT NULL,
    tenant_id uuid NOT NULL,
    environment_id uuid NOT NULL,
    api_key_id uuid NOT NULL,
    price_id bigint NOT NULL,
    end_user text NOT NULL,
    request_id text NOT NULL,
    wire text NOT NULL,
    endpoint text NOT NULL,
    model text NOT NULL,
    provider text NOT NULL,
    streamed boolean NOT NULL,
    state text NOT NULL CHECK (state IN ('held', 'inflight', 'unknown', 'settled', 'void')),
    held_nano bigint NOT NULL CHECK (held_nano >= 0),
    bucket_ids bigint[] NOT NULL,
    max_output_tokens bigint NOT NULL,
    clamped boolean NOT NULL,
    admitted_at timestamptz NOT NULL,
    start_by timestamptz NOT NULL,
    deadline_at timestamptz NOT NULL,
    next_ring_at timestamptz NOT NULL,
    rings smallint NOT NULL DEFAULT 0,
    web_process uuid NOT NULL,
    worker_process uuid,
    claimed_at timestamptz,
    first_byte_at timestamptz,
    settled_at timestamptz,
    status smallint,
    error_code text NOT NULL DEFAULT '',
    served_model text NOT NULL DEFAULT '',
    provider_request_id text NOT NULL DEFAULT '',
    input_tokens bigint NOT NULL DEFAULT 0,
    cache_read_tokens bigint NOT NULL DEFAULT 0,
    cache_write_5m_tokens bigint NOT NULL DEFAULT 0,
    cache_write_1h_tokens bigint NOT NULL DEFAULT 0,
    output_tokens bigint NOT NULL DEFAULT 0,
    reasoning_tokens bigint NOT NULL DEFAULT 0,
    charged_nano bigint NOT NULL DEFAULT 0 CHECK (charged_nano BETWEEN 0 AND held_nano),
    list_nano bigint NOT NULL DEFAULT 0,
    provider_cost_nano bigint NOT NULL DEFAULT 0,
    platform_loss_nano bigint NOT NULL DEFAULT 0,
    evidence text NOT NULL DEFAULT '',
    PRIMARY KEY (id)
) PARTITION BY RANGE (id);
CREATE INDEX call_by_tenant ON usage_call (tenant_id, id DESC);
CREATE INDEX call_held ON usage_call (next_ring_at) WHERE state = 'held';
CREATE INDEX call_inflight ON usage_call (worker_process) WHERE state IN ('inflight', 'unknown');

CREATE TABLE usage_callpayload (
    call_id uuid NOT NULL,
    kind text NOT NULL,
    headers jsonb NOT NULL,
    body bytea NOT NULL,
    PRIMARY KEY (call_id, kind)
) PARTITION BY RANGE (call_id);

CREATE TABLE usage_attempt (
    call_id uuid NOT NULL,
    n smallint NOT NULL,
    provider text NOT NULL,
    outcome text NOT NULL DEFAULT 'sent',
    started_at timestamptz NOT NULL,
    ended_at timestamptz,
    status smallint,
    provider_request_id text NOT NULL DEFAULT '',
    error text NOT NULL DEFAULT '',
    backoff_ms integer NOT NULL DEFAULT 0,
    PRIMARY KEY (call_id, n)
) PARTITION BY RANGE (call_id);

CREATE SEQUENCE usage_ledgerentry_number;
CREATE TABLE usage_ledgerentry (
    number bigint NOT NULL DEFAULT nextval('usage_ledgerentry_number'),
    ref uuid NOT NULL,
    kind text NOT NULL,
    seq smallint NOT NULL DEFAULT 0,
    tenant_id uuid NOT NULL,
    environment_id uuid,
    api_key_id uuid,
    end_user text NOT NULL DEFAULT '',
    debit text NOT NULL,
    credit text NOT NULL CHECK (credit <> debit),
    amount_nano bigint NOT NULL CHECK (amount_nano > 0),
    price_id bigint,
    evidence text NOT NULL DEFAULT '',
    belongs_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (ref, kind, seq)
) PARTITION BY RANGE (ref);
CREATE INDEX ledger_by_tenant ON usage_ledgerentry (tenant_id, belongs_at);

CREATE FUNCTION usage_ledger_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE restrict_violation USING MESSAGE = 'the ledger is append-only: book a correction as a new entry';
END $$;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON usage_ledgerentry
    FOR EACH ROW EXECUTE FUNCTION usage_ledger_is_append_only();

-- The lowest UUIDv7 of an instant.
CREATE FUNCTION usage_uuid_at(moment timestamptz) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
    SELECT (lpad(to_hex((extract(epoch FROM moment) * 1000)::bigint), 12, '0') || '00000000000000000000')::uuid
$$;

-- Opens the monthly partitions from this month to `ahead` months on; safe to repeat. Returns how many it opened.
CREATE FUNCTION usage_open_partitions(ahead integer) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    parent text; child text; first timestamptz; opened integer := 0;
BEGIN
    FOREACH parent IN ARRAY ARRAY['usage_call', 'usage_callpayload', 'usage_attempt', 'usage_ledgerentry'] LOOP
        FOR month IN 0..ahead LOOP
            first := date_trunc('month', now(), 'UTC') + make_interval(months => month);
            child := parent || to_char(first AT TIME ZONE 'UTC', '_YYYY_MM');
            IF to_regclass(child) IS NULL THEN
                EXECUTE format(
                    'CREATE TABLE %I PARTITION OF %I FOR VALUES FROM (%L) TO (%L) WITH (autovacuum_vacuum_scale_factor = 0.02)',
                    child, parent, usage_uuid_at(first), usage_uuid_at(first + interval '1 month'));
                IF parent = 'usage_ledgerentry' THEN
                    EXECUTE format('CREATE TRIGGER no_truncate BEFORE TRUNCATE ON %I FOR EACH STATEMENT '
                                   'EXECUTE FUNCTION usage_ledger_is_append_only()', child);
                END IF;
                opened := opened + 1;
            END IF;
        END LOOP;
    END LOOP;
    RETURN opened;
END $$;
SELECT usage_open_partitions(2);
-- A clock that runs a little ahead or behind must never refuse a call.
CREATE TABLE usage_call_other PARTITION OF usage_call DEFAULT;
CREATE TABLE usage_callpayload_other PARTITION OF usage_callpayload DEFAULT;
CREATE TABLE usage_attempt_other PARTITION OF usage_attempt DEFAULT;
CREATE TABLE usage_ledgerentry_other PARTITION OF usage_ledgerentry DEFAULT;
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON usage_ledgerentry_other
    FOR EACH STATEMENT EXECUTE FUNCTION usage_ledger_is_append_only();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON usage_ledgerentry
    FOR EACH STATEMENT EXECUTE FUNCTION usage_ledger_is_append_only();
