-- What providers do for nothing (keeping files, counting tokens, showing what they keep) is called by this price.
INSERT INTO usage_price (provider, model, valid_from, source, created_at)
    VALUES ('*', '*', '2000-01-01Z', 'built in', now());
INSERT INTO usage_pricecomponent (price_id, meter, usd, per, variant, tier_from)
    SELECT id, meter, 0, 1000000, 'standard', 0 FROM usage_price, unnest(ARRAY['input', 'output']) meter
    WHERE provider = '*' AND model = '*';
-- The built-in provider costs nothing whatever it is asked for; input and output it has.
INSERT INTO usage_pricecomponent (price_id, meter, usd, per, variant, tier_from)
    SELECT id, meter, 0, 1000000, 'standard', 0
    FROM usage_price, unnest(ARRAY['input_audio', 'output_audio', 'input_image', 'output_image', 'image_256', 'image_512',
        'image_1024', 'image_wide', 'image_hd_1024', 'image_hd_wide', 'input_seconds', 'input_characters']) meter
    WHERE provider = 'sandbox' AND model = '*';

-- Units that are no tokens: paid tools, images, seconds and characters.
CREATE FUNCTION usage_is_fee(meter text) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT meter IN ('web_search', 'file_search', 'image_256', 'image_512', 'image_1024', 'image_wide', 'image_hd_1024',
                     'image_hd_wide', 'input_seconds', 'input_characters')
$$;

CREATE OR REPLACE FUNCTION usage_rate(price bigint, way text, what text, total bigint) RETURNS numeric
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
    ELSIF what = 'output_image' THEN
        RETURN usage_rate(price, way, 'output', total);
    ELSIF what IN ('cache_audio_read', 'cache_image_read') THEN
        RETURN usage_rate(price, way, replace(replace(what, 'cache_', 'input_'), '_read', ''), total);
    ELSIF usage_is_fee(what) AND way <> 'standard' THEN
        RETURN usage_rate(price, 'standard', what, total);
    END IF;
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION usage_dearest_rate(price bigint, way text, what text, total bigint) RETURNS numeric
LANGUAGE sql STABLE AS $$
    SELECT coalesce(max(r.rate) FILTER (WHERE usage_is_fee(m.meter) = usage_is_fee(what)), max(r.rate))
    FROM (SELECT DISTINCT c.meter FROM usage_pricecomponent c WHERE c.price_id = price) m,
        LATERAL (SELECT usage_rate(price, way, m.meter, total) AS rate) r
$$;

-- A price need not have input and output any more, so any class of tokens may be without one.
CREATE OR REPLACE FUNCTION usage_rated_as(
    price bigint, way text, input bigint, cache_read bigint, cache_write_5m bigint, cache_write_1h bigint, output bigint,
    meters jsonb, total bigint
) RETURNS numeric LANGUAGE sql STABLE AS $$
    SELECT coalesce(sum(u.units * coalesce(
        usage_rate(price, way, u.meter, total), usage_dearest_rate(price, way, u.meter, total))), 0)
    FROM (VALUES ('input', input::numeric), ('cache_read', cache_read), ('cache_write_5m', cache_write_5m),
              ('cache_write_1h', cache_write_1h), ('output', output)
          UNION ALL SELECT e.key, e.value::numeric FROM jsonb_each_text(coalesce(meters, '{}')) e) AS u(meter, units)
    WHERE u.units > 0
$$;
