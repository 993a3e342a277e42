-- Correcting prices and what was booked with them, and the levels of limits as they were last told.
--
-- What holds at every commit, also while Reprice runs, and what VerifyLedger can therefore ask:
--
--   Cost = price x tokens. A row that is 'priced' has a price_id in model_prices_ever (so also after its price was
--   replaced), and estimated_cost_usd is the sum over the five token classes of tokens x US dollars per million / 10^6,
--   rounded half to even at 12 decimals. (round() of numeric rounds half away from zero; the exact product has at most
--   15 decimals, so a check in SQL is: the difference is at most 0.0000000000005.) A class without a price of its own
--   is priced as input (cached_read, cached_write) or as output (reasoning). A row that is 'unpriced' has neither cost
--   nor price and more than 0 tokens; one that is 'nothing_consumed' has cost 0, no price and 0 tokens.
--
--   Rollups = a recount of the rows, adjustments included: Reprice changes a row's cost, price and state and appends the
--   adjustment and changes each kept rollup by the same difference in one transaction. Never add adjustments to the
--   rows' sum: it has them already. Buckets older than their rollup's retention may be gone or hold a part only.
--
--   Adjustments form a chain per event: revisions 1, 2, 3 ...; each one's old side is the new side of the one before; the
--   last one's new side is what the row holds (for as long as the row is kept; adjustments are never dropped). So what
--   was booked first is the old side of revision 1, and sum(rows) = sum(as first booked) + sum(delta_usd).

-- Entries of the price book that an operator has replaced by others with the same start. Rows may still refer to them.
-- Apart from model_prices, so that whoever reads that table reads what is valid.
CREATE TABLE model_prices_replaced (
    LIKE model_prices,
    replaced_at timestamptz NOT NULL DEFAULT now(),
    replaced_by bigint      NOT NULL,   -- the entry of model_prices, or of this table, that took its place
    PRIMARY KEY (id)
);

-- Every price that a row may refer to.
CREATE VIEW model_prices_ever AS
SELECT id, provider, model_name, input_usd, output_usd, cached_read_usd, cached_write_usd, reasoning_usd,
    max_prompt_tokens, effective_at, source, created_at, NULL::timestamptz AS replaced_at
FROM model_prices
UNION ALL
SELECT id, provider, model_name, input_usd, output_usd, cached_read_usd, cached_write_usd, reasoning_usd,
    max_prompt_tokens, effective_at, source, created_at, replaced_at
FROM model_prices_replaced;

-- What Reprice changed of a row, appended once and never altered.
CREATE TABLE usage_cost_adjustments (
    tenant_id         uuid           NOT NULL,
    "timestamp"       timestamptz    NOT NULL,   -- of the row, which is found by these three
    event_id          uuid           NOT NULL,
    revision          integer        NOT NULL CHECK (revision >= 1),
    provider          text           NOT NULL,
    model_name        text           NOT NULL,
    old_pricing_state text           NOT NULL,
    old_price_id      bigint,
    old_cost_usd      numeric(24, 12),           -- null: was unpriced
    new_pricing_state text           NOT NULL,
    new_price_id      bigint,
    new_cost_usd      numeric(24, 12),           -- null: is unpriced
    delta_usd         numeric(24, 12) NOT NULL CHECK (delta_usd = coalesce(new_cost_usd, 0) - coalesce(old_cost_usd, 0)),
    reason            text           NOT NULL,
    job_id            uuid           NOT NULL,   -- shared by everything that one Reprice changed
    created_at        timestamptz    NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, "timestamp", event_id, revision)
);
CREATE INDEX usage_cost_adjustments_job ON usage_cost_adjustments (job_id, tenant_id, "timestamp", event_id, revision);

-- The level of each limit as it was last told, so that every replica leaves it only a margin below its threshold.
CREATE TABLE usage_limit_levels (
    tenant_id    uuid        NOT NULL,
    provider     text        NOT NULL,
    model_name   text        NOT NULL,
    metric       text        NOT NULL,
    window_s     integer     NOT NULL,
    window_start timestamptz NOT NULL,   -- the level says nothing of other windows
    level        smallint    NOT NULL,   -- 2 normal, 3 warning, 4 critical; healthy has no row
    changed_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, provider, model_name, metric, window_s)
);

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'turnpike_usage') THEN
        GRANT SELECT, INSERT, UPDATE, DELETE ON usage_limit_levels TO turnpike_usage;
        GRANT SELECT ON model_prices_ever TO turnpike_usage;
        -- Written once: even this service cannot rewrite what was.
        GRANT SELECT, INSERT ON model_prices_replaced, usage_cost_adjustments TO turnpike_usage;
    END IF;
END
$$;
