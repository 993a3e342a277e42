-- The ledger: every attempt once, its rollups, the price book, limits, quarantine.
--
-- `pre` in a file name means: apply before the new code runs. All tables carry tenant_id in their key, so that the same
-- schema can be distributed by it.

-- One row per attempt. id is a UUIDv7 and "timestamp" is the millisecond inside it, computed by this service: that is
-- what makes the primary key globally unique on a table partitioned by time. Partitions are made by the service.
CREATE TABLE model_usage_stats (
    id                  uuid          NOT NULL,
    tenant_id           uuid          NOT NULL,
    user_id             text          NOT NULL DEFAULT '',
    provider            text          NOT NULL,
    model_name          text          NOT NULL,
    endpoint            text          NOT NULL DEFAULT '',
    "timestamp"         timestamptz   NOT NULL,
    latency_ms          integer,                            -- null: never sent
    input_tokens        bigint        NOT NULL DEFAULT 0,   -- the five token classes are disjoint
    output_tokens       bigint        NOT NULL DEFAULT 0,
    total_tokens        bigint        NOT NULL DEFAULT 0,   -- their sum
    estimated_cost_usd  numeric(24, 12),                    -- null: unpriced, which is not zero
    status              text          NOT NULL,             -- success, error, rate_limit, cancelled, interrupted
    error_message       text,
    metadata            jsonb         NOT NULL DEFAULT '{}',  -- labels (object), task_type, decision (JSON as text)
    request_id          uuid          NOT NULL,
    attempt             smallint      NOT NULL,
    requested_model     text          NOT NULL DEFAULT '',
    error_class         text          NOT NULL DEFAULT '',
    absorbed            boolean       NOT NULL DEFAULT false,
    funding             text          NOT NULL DEFAULT '',  -- tenant_key, system_key; '' when no key was used
    cached_read_tokens  bigint        NOT NULL DEFAULT 0,
    cached_write_tokens bigint        NOT NULL DEFAULT 0,
    reasoning_tokens    bigint        NOT NULL DEFAULT 0,
    usage_source        text          NOT NULL,             -- provider, provider_late, counted, estimated, none
    first_token_ms      integer,
    price_id            bigint,
    pricing_state       text          NOT NULL,             -- priced, unpriced, nothing_consumed
    provider_cost_usd   numeric(24, 12),                    -- what the provider says it charged
    router_id           text          NOT NULL,
    router_epoch        text          NOT NULL DEFAULT '',
    router_sequence     bigint        NOT NULL DEFAULT 0,
    content_hash        bytea         NOT NULL,             -- of the event as sent: tells a duplicate from a conflict
    ingested_at         timestamptz   NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, "timestamp", id)
) PARTITION BY RANGE ("timestamp");

-- The primary key serves as the composite index on (tenant_id, timestamp). Almost every row is a success, so the index
-- on status leaves those out.
CREATE INDEX model_usage_stats_provider ON model_usage_stats (provider, "timestamp");
CREATE INDEX model_usage_stats_status ON model_usage_stats (status, "timestamp") WHERE status <> 'success';
CREATE INDEX model_usage_stats_request ON model_usage_stats (tenant_id, request_id);

-- Rollups: one row per tenant, bucket and label set; every report reads these. Same columns in all three grains.
CREATE TABLE usage_rollup_minute (
    tenant_id           uuid          NOT NULL,
    bucket              timestamptz   NOT NULL,
    provider            text          NOT NULL,
    model_name          text          NOT NULL,
    status              text          NOT NULL,
    error_class         text          NOT NULL,
    funding             text          NOT NULL,
    absorbed            boolean       NOT NULL,
    usage_source        text          NOT NULL,
    attempts            bigint        NOT NULL,
    input_tokens        bigint        NOT NULL,
    output_tokens       bigint        NOT NULL,
    cached_read_tokens  bigint        NOT NULL,
    cached_write_tokens bigint        NOT NULL,
    reasoning_tokens    bigint        NOT NULL,
    cost_usd            numeric(28, 12) NOT NULL,
    provider_cost_usd   numeric(28, 12) NOT NULL,
    unpriced_attempts   bigint        NOT NULL,
    unpriced_tokens     bigint        NOT NULL,
    latency_count       bigint        NOT NULL,
    latency_sum_ms      bigint        NOT NULL,
    latency_histogram   bigint[]      NOT NULL,
    first_token_count   bigint        NOT NULL,
    first_token_sum_ms  bigint        NOT NULL,
    first_token_histogram bigint[]    NOT NULL,
    PRIMARY KEY (tenant_id, bucket, provider, model_name, status, error_class, funding, absorbed, usage_source)
) WITH (fillfactor = 70);
CREATE TABLE usage_rollup_hour (LIKE usage_rollup_minute INCLUDING ALL) WITH (fillfactor = 70);
CREATE TABLE usage_rollup_day  (LIKE usage_rollup_minute INCLUDING ALL) WITH (fillfactor = 70);

-- Events that cannot be stored, as they came, and events whose id is taken by other content.
CREATE TABLE usage_events_rejected (
    id           bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    received_at  timestamptz NOT NULL DEFAULT now(),
    router_id    text        NOT NULL,
    event_id     text        NOT NULL,
    disposition  text        NOT NULL,   -- rejected, conflict
    field        text        NOT NULL,
    reason       text        NOT NULL,
    payload      bytea       NOT NULL,   -- the serialised event: bytes, because text cannot hold everything
    payload_hash bytea       NOT NULL,
    UNIQUE (event_id, payload_hash)      -- a resent bad event is kept once
);

-- Prices in US dollars per million tokens, valid from effective_at until the next row of the same provider and model.
CREATE TABLE model_prices (
    id                 bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    provider           text NOT NULL,
    model_name         text NOT NULL,          -- '*': every model of the provider without a price of its own
    input_usd          numeric(18, 9) NOT NULL,
    output_usd         numeric(18, 9) NOT NULL,
    cached_read_usd    numeric(18, 9),         -- null: as input
    cached_write_usd   numeric(18, 9),         -- null: as input
    reasoning_usd      numeric(18, 9),         -- null: as output
    max_prompt_tokens  bigint,                 -- longer prompts cost more and stay unpriced; null: no bound
    effective_at       timestamptz NOT NULL,
    source             text NOT NULL,
    created_at         timestamptz NOT NULL DEFAULT now(),
    UNIQUE (provider, model_name, effective_at)
);

INSERT INTO model_prices (provider, model_name, input_usd, output_usd, effective_at, source) VALUES
    ('groq',       'llama-3.3-70b-versatile',     0.59,  0.79,  '2020-01-01+00', 'seed'),
    ('groq',       'llama-3.1-70b-versatile',     0.59,  0.79,  '2020-01-01+00', 'seed'),
    ('groq',       'mixtral-8x7b-32768',          0.24,  0.24,  '2020-01-01+00', 'seed'),
    ('openrouter', 'deepseek/deepseek-r1',        0.55,  2.19,  '2020-01-01+00', 'seed'),
    ('openrouter', 'anthropic/claude-3.5-sonnet', 3.00,  15.00, '2020-01-01+00', 'seed'),
    ('openrouter', 'google/gemini-pro-1.5',       1.25,  5.00,  '2020-01-01+00', 'seed'),
    ('llm7',       'gpt-4o-mini',                 0.15,  0.60,  '2020-01-01+00', 'seed'),
    ('llm7',       'gpt-4o',                      5.00,  15.00, '2020-01-01+00', 'seed'),
    ('llm7',       'gpt-4-turbo',                 10.00, 30.00, '2020-01-01+00', 'seed'),
    ('local',      '*',                           0,     0,     '2020-01-01+00', 'seed'),
    ('sandbox',    '*',                           1.00,  2.00,  '2020-01-01+00', 'seed');

-- A tenant's own limits; they replace the provider's defaults from the settings. model_name '' means all together.
CREATE TABLE usage_limits (
    tenant_id   uuid           NOT NULL,
    provider    text           NOT NULL,
    model_name  text           NOT NULL DEFAULT '',
    metric      text           NOT NULL,   -- requests, tokens, cost
    window_s    integer        NOT NULL,
    limit_value numeric(24, 6) NOT NULL CHECK (limit_value >= 0),
    updated_at  timestamptz    NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, provider, model_name, metric, window_s)
);
