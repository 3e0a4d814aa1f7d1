-- Prices of one model never overlap, and every change to what may be called grows the revision that admission compares.
CREATE EXTENSION IF NOT EXISTS btree_gist;
ALTER TABLE usage_price ADD CONSTRAINT price_ranges_never_overlap
    EXCLUDE USING gist (provider WITH =, model WITH =, tstzrange(valid_from, valid_to) WITH &&);
ALTER TABLE usage_capbucket SET (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.01);

INSERT INTO usage_catalogue (id, revision) VALUES (1, 1);
CREATE FUNCTION usage_catalogue_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE usage_catalogue SET revision = revision + 1 WHERE id = 1;
    RETURN NULL;
END $$;
CREATE TRIGGER catalogue_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON usage_price
    FOR EACH STATEMENT EXECUTE FUNCTION usage_catalogue_changed();
CREATE TRIGGER catalogue_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON usage_pricecomponent
    FOR EACH STATEMENT EXECUTE FUNCTION usage_catalogue_changed();
CREATE TRIGGER catalogue_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON tenants_provider
    FOR EACH STATEMENT EXECUTE FUNCTION usage_catalogue_changed();
CREATE TRIGGER catalogue_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON tenants_providercredential
    FOR EACH STATEMENT EXECUTE FUNCTION usage_catalogue_changed();

-- The built-in provider of sandbox environments costs nothing, whatever model is asked for.
INSERT INTO usage_price (provider, model, valid_from, source, created_at)
    VALUES ('sandbox', '*', '2000-01-01Z', 'built in', now());
INSERT INTO usage_pricecomponent (price_id, meter, usd, per)
    SELECT id, meter, 0, 1000000 FROM usage_price, unnest(ARRAY['input', 'output']) meter WHERE provider = 'sandbox';
