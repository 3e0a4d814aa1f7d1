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

-- What a call costs at list price, for a second time and independent of usage/pricing.py: `ledger_verify` compares them.
-- Nano-USD of one unit of a meter, exact; NULL where the variant has no price for it. `total` is the whole input in tokens.
CREATE FUNCTION usage_rate(price bigint, way text, what text, total bigint) RETURNS numeric
LANGUAGE plpgsql STABLE AS $$
DECLARE
    found numeric;
BEGIN
    -- per is 1, 1,000 or 1,000,000, so this is exact where a division would be rounded
    SELECT c.usd * (1000000 / c.per) * 1000 INTO found FROM usage_pricecomponent c
    WHERE c.price_id = price AND c.variant = way AND c.meter = what AND (c.tier_from = 0 OR c.tier_from < total)
    ORDER BY c.tier_from DESC LIMIT 1;
    IF found IS NOT NULL THEN
        RETURN found;
    ELSIF what IN ('cache_read', 'cache_write_5m', 'cache_write_1h', 'input_image') THEN
        RETURN usage_rate(price, way, 'input', total);
    ELSIF what IN ('cache_audio_read', 'cache_image_read') THEN
        RETURN usage_rate(price, way, replace(replace(what, 'cache_', 'input_'), '_read', ''), total);
    ELSIF what IN ('web_search', 'file_search') AND way <> 'standard' THEN
        RETURN usage_rate(price, 'standard', what, total);
    END IF;
    RETURN NULL;
END $$;

-- Of a meter without a price: that of the dearest fee, or of the dearest token, or of whatever is dearest.
CREATE FUNCTION usage_dearest_rate(price bigint, way text, what text, total bigint) RETURNS numeric
LANGUAGE sql STABLE AS $$
    SELECT coalesce(
        max(r.rate) FILTER (WHERE (m.meter IN ('web_search', 'file_search')) = (what IN ('web_search', 'file_search'))),
        max(r.rate))
    FROM (SELECT DISTINCT c.meter FROM usage_pricecomponent c WHERE c.price_id = price) m,
        LATERAL (SELECT usage_rate(price, way, m.meter, total) AS rate) r
$$;

CREATE FUNCTION usage_rated_as(
    price bigint, way text, input bigint, cache_read bigint, cache_write_5m bigint, cache_write_1h bigint, output bigint,
    meters jsonb, total bigint
) RETURNS numeric LANGUAGE plpgsql STABLE AS $$
DECLARE
    nano numeric := 0; one record;
BEGIN
    IF input > 0 THEN nano := nano + input * usage_rate(price, way, 'input', total); END IF;
    IF cache_read > 0 THEN nano := nano + cache_read * usage_rate(price, way, 'cache_read', total); END IF;
    IF cache_write_5m > 0 THEN nano := nano + cache_write_5m * usage_rate(price, way, 'cache_write_5m', total); END IF;
    IF cache_write_1h > 0 THEN nano := nano + cache_write_1h * usage_rate(price, way, 'cache_write_1h', total); END IF;
    IF output > 0 THEN nano := nano + output * usage_rate(price, way, 'output', total); END IF;
    IF meters IS NOT NULL AND meters <> '{}' THEN
        FOR one IN SELECT e.key, e.value::numeric AS units FROM jsonb_each_text(meters) e LOOP
            nano := nano + one.units * coalesce(
                usage_rate(price, way, one.key, total), usage_dearest_rate(price, way, one.key, total));
        END LOOP;
    END IF;
    RETURN nano;
END $$;

CREATE FUNCTION usage_rated(
    price_id bigint, variant text, input bigint, cache_read bigint, cache_write_5m bigint, cache_write_1h bigint, output bigint,
    meters jsonb
) RETURNS numeric LANGUAGE plpgsql STABLE AS $$
DECLARE
    way text := coalesce(nullif(variant, ''), 'standard');
    total bigint := input + cache_read + cache_write_5m + cache_write_1h;
    nano numeric;
BEGIN
    IF meters IS NULL OR meters = '{}' THEN  -- nearly all calls: text only, by one look at the price
        SELECT input * r.plain + cache_read * coalesce(r.read, r.plain) + cache_write_5m * coalesce(r.short, r.plain)
                + cache_write_1h * coalesce(r.long, r.plain) + output * r.answer INTO nano
        FROM (SELECT max(d.each) FILTER (WHERE d.meter = 'input') AS plain, max(d.each) FILTER (WHERE d.meter = 'output') AS answer,
                  max(d.each) FILTER (WHERE d.meter = 'cache_read') AS read,
                  max(d.each) FILTER (WHERE d.meter = 'cache_write_5m') AS short,
                  max(d.each) FILTER (WHERE d.meter = 'cache_write_1h') AS long
              FROM (SELECT c.meter, c.usd * (1000000 / c.per) * 1000 AS each,
                        c.tier_from = max(c.tier_from) OVER (PARTITION BY c.meter) AS applies
                    FROM usage_pricecomponent c
                    WHERE c.price_id = usage_rated.price_id AND c.variant = way AND (c.tier_from = 0 OR c.tier_from < total)) d
              WHERE d.applies) r;
        IF nano IS NOT NULL THEN
            RETURN nano;
        END IF;
    ELSE
        total := total + coalesce((SELECT sum(e.value::bigint) FROM jsonb_each_text(meters) e
            WHERE e.key IN ('input_audio', 'cache_audio_read', 'input_image', 'cache_image_read')), 0);
    END IF;
    IF EXISTS (SELECT 1 FROM usage_pricecomponent c WHERE c.price_id = usage_rated.price_id AND c.variant = way) THEN
        RETURN usage_rated_as(price_id, way, input, cache_read, cache_write_5m, cache_write_1h, output, meters, total);
    END IF;
    -- served in a way that has no price: the dearest one
    RETURN (SELECT max(usage_rated_as(usage_rated.price_id, v.variant, input, cache_read, cache_write_5m, cache_write_1h, output,
                                      meters, total))
            FROM (SELECT DISTINCT c.variant FROM usage_pricecomponent c WHERE c.price_id = usage_rated.price_id) v);
END $$;
