UPDATE usage_call SET is_live = false WHERE state IN ('settled', 'void');
CREATE TABLE usage_creditconsumption (
    call_id uuid NOT NULL,
    grant_id uuid NOT NULL,
    seq smallint NOT NULL DEFAULT 0,
    amount_nano bigint NOT NULL CHECK (amount_nano <> 0),
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (call_id, grant_id, seq)
) PARTITION BY RANGE (call_id);
