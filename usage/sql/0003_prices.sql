-- The price book is written once: no figure changes, no row goes away, and ranges never overlap.
ALTER TABLE usage_planassignment ADD CONSTRAINT plans_of_a_tenant_never_overlap
    EXCLUDE USING gist (tenant_id WITH =, tstzrange(valid_from, valid_to) WITH &&);
ALTER TABLE usage_tariff ADD CONSTRAINT tariffs_of_a_scope_never_overlap
    EXCLUDE USING gist (coalesce(tenant_id::text, 'plan ' || plan_id) WITH =, provider WITH =, model WITH =,
        tstzrange(valid_from, valid_to) WITH &&);

-- The end of a span may be set once, or moved earlier, but never into the past: calls have been held by it until now.
CREATE FUNCTION usage_only_succeeded() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF to_jsonb(OLD) - 'valid_to' IS DISTINCT FROM to_jsonb(NEW) - 'valid_to' THEN
        RAISE EXCEPTION '% % is never changed, only succeeded', TG_TABLE_NAME, OLD.id USING ERRCODE = 'restrict_violation';
    END IF;
    IF OLD.valid_to IS NOT DISTINCT FROM NEW.valid_to THEN
        RETURN NEW;
    END IF;
    IF NEW.valid_to IS NULL OR NEW.valid_to > OLD.valid_to OR NEW.valid_to < now() THEN
        RAISE EXCEPTION '% % ended, or would end in the past; calls were charged by it', TG_TABLE_NAME, OLD.id
            USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE FUNCTION usage_never_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is never changed (%)', TG_TABLE_NAME, TG_OP USING ERRCODE = 'restrict_violation';
END $$;

CREATE TRIGGER only_succeeded BEFORE UPDATE ON usage_price FOR EACH ROW EXECUTE FUNCTION usage_only_succeeded();
CREATE TRIGGER only_succeeded BEFORE UPDATE ON usage_planassignment FOR EACH ROW EXECUTE FUNCTION usage_only_succeeded();
CREATE TRIGGER only_succeeded BEFORE UPDATE ON usage_tariff FOR EACH ROW EXECUTE FUNCTION usage_only_succeeded();
CREATE TRIGGER never_changed BEFORE UPDATE ON usage_pricecomponent FOR EACH ROW EXECUTE FUNCTION usage_never_changed();
CREATE TRIGGER never_changed BEFORE UPDATE OR DELETE ON usage_frozentariff
    FOR EACH ROW EXECUTE FUNCTION usage_never_changed();

-- A price that a call was held by stays. (A figure goes away with its price only.)
CREATE FUNCTION usage_price_in_use() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    which bigint;
BEGIN
    which := CASE WHEN TG_TABLE_NAME = 'usage_price' THEN (to_jsonb(OLD)->>'id')::bigint
                  ELSE (to_jsonb(OLD)->>'price_id')::bigint END;
    IF EXISTS (SELECT 1 FROM usage_call c WHERE c.price_id = which) THEN
        RAISE EXCEPTION 'price % is in use: calls were held by it', which USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN OLD;
END $$;
CREATE TRIGGER in_use BEFORE DELETE ON usage_price FOR EACH ROW EXECUTE FUNCTION usage_price_in_use();
CREATE TRIGGER in_use BEFORE DELETE ON usage_pricecomponent FOR EACH ROW EXECUTE FUNCTION usage_price_in_use();

CREATE TRIGGER catalogue_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON usage_plan
    FOR EACH STATEMENT EXECUTE FUNCTION usage_catalogue_changed();
CREATE TRIGGER catalogue_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON usage_planassignment
    FOR EACH STATEMENT EXECUTE FUNCTION usage_catalogue_changed();
CREATE TRIGGER catalogue_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON usage_tariff
    FOR EACH STATEMENT EXECUTE FUNCTION usage_catalogue_changed();
