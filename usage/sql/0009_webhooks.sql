-- What webhooks are told of is put down by the very statement that does it, and put into words later (usage/webhook_events.py).

-- A call that nobody waits for has ended, or nobody can say how: once for each of the two.
CREATE FUNCTION usage_call_ended() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM tenants_webhook_note(NEW.tenant_id, NEW.environment_id,
        CASE WHEN NEW.state = 'settled' AND NEW.error_code = '' THEN 'call.settled' ELSE 'call.failed' END,
        'call_' || NEW.id, NEW.settled_at);
    RETURN NULL;
END $$;
CREATE TRIGGER webhook_event AFTER UPDATE OF state ON usage_call FOR EACH ROW
    WHEN (NEW.detached AND NEW.state <> OLD.state AND NEW.state IN ('settled', 'void', 'unknown'))
    EXECUTE FUNCTION usage_call_ended();

CREATE FUNCTION usage_cap_notice_written() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM tenants_webhook_note(c.tenant_id, coalesce(c.environment_id, k.environment_id), 'cap.threshold_reached',
        'notice_' || NEW.id, NEW.reached_at)
    FROM usage_capbucket b JOIN usage_spendingcap c ON c.id = b.cap_id LEFT JOIN tenants_apikey k ON k.id = c.api_key_id
    WHERE b.id = NEW.bucket_id AND c.tenant_id IS NOT NULL;
    RETURN NULL;
END $$;
CREATE TRIGGER webhook_event AFTER INSERT ON usage_capnotice FOR EACH ROW EXECUTE FUNCTION usage_cap_notice_written();
