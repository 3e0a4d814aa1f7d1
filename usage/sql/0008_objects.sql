-- What providers do for nothing (keeping files, counting tokens, showing what they keep) is called by this price.
INSERT INTO usage_price (provider, model, valid_from, source, created_at)
    VALUES ('*', '*', '2000-01-01Z', 'built in', now());
INSERT INTO usage_pricecomponent (price_id, meter, usd, per, variant, tier_from)
    SELECT id, meter, 0, 1000000, 'standard', 0 FROM usage_price, unnest(ARRAY['input', 'output']) meter
    WHERE provider = '*' AND model = '*';
