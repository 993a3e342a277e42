-- Taking usage events in: the rows and their rollups in one statement, so that no row is without its share in a sum.
-- storage/events.py holds the columns in the same order.

-- name: ingest
-- Insert the staged rows that are not there yet and add them, and them alone, to every rollup; returns the new keys.
-- Everything is sorted by key, so that two writers take their locks in the same order. The braces stand for one of the
-- two stages below. A group of a batch has a few rows, so sum_of_few adds them; for sum() they are hardly worth its start.
WITH inserted AS (
    INSERT INTO model_usage_stats (
        id, tenant_id, user_id, provider, model_name, endpoint, "timestamp", latency_ms, input_tokens, output_tokens,
        total_tokens, estimated_cost_usd, status, error_message, metadata, request_id, attempt, requested_model,
        error_class, absorbed, funding, cached_read_tokens, cached_write_tokens, reasoning_tokens, usage_source,
        first_token_ms, price_id, pricing_state, provider_cost_usd, router_id, router_epoch, router_sequence,
        content_hash
    )
    SELECT
        id, tenant_id, user_id, provider, model_name, endpoint, "timestamp", latency_ms, input_tokens, output_tokens,
        total_tokens, estimated_cost_usd, status, error_message, metadata, request_id, attempt, requested_model,
        error_class, absorbed, funding, cached_read_tokens, cached_write_tokens, reasoning_tokens, usage_source,
        first_token_ms, price_id, pricing_state, provider_cost_usd, router_id, router_epoch, router_sequence,
        content_hash
    FROM {stage}
    ORDER BY tenant_id, "timestamp", id
    ON CONFLICT DO NOTHING
    RETURNING
        id, tenant_id, "timestamp", provider, model_name, status, error_class, funding, absorbed, usage_source,
        input_tokens, output_tokens, cached_read_tokens, cached_write_tokens, reasoning_tokens, total_tokens,
        estimated_cost_usd, provider_cost_usd, pricing_state, latency_ms, first_token_ms
),
by_minute AS (
    SELECT
        tenant_id, date_bin('1 minute', "timestamp", '2000-01-01+00') AS bucket, provider, model_name, status,
        error_class, funding, absorbed, usage_source,
        count(*) AS attempts,
        sum_of_few(input_tokens) AS input_tokens,
        sum_of_few(output_tokens) AS output_tokens,
        sum_of_few(cached_read_tokens) AS cached_read_tokens,
        sum_of_few(cached_write_tokens) AS cached_write_tokens,
        sum_of_few(reasoning_tokens) AS reasoning_tokens,
        coalesce(sum_of_few(estimated_cost_usd), 0) AS cost_usd,
        coalesce(sum_of_few(provider_cost_usd), 0) AS provider_cost_usd,
        count(*) FILTER (WHERE pricing_state = 'unpriced') AS unpriced_attempts,
        coalesce(sum_of_few(total_tokens) FILTER (WHERE pricing_state = 'unpriced'), 0) AS unpriced_tokens,
        count(latency_ms) AS latency_count,
        coalesce(sum(latency_ms), 0) AS latency_sum_ms,
        coalesce(sum_of_few(hist_one(latency_ms)), 0) AS latency_histogram,
        count(first_token_ms) AS first_token_count,
        coalesce(sum(first_token_ms), 0) AS first_token_sum_ms,
        coalesce(sum_of_few(hist_one(first_token_ms)), 0) AS first_token_histogram
    FROM inserted
    GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9
),
minute_rollup AS (
    INSERT INTO usage_rollup_minute AS rollup (
        tenant_id, bucket, provider, model_name, status, error_class, funding, absorbed, usage_source,
        attempts, input_tokens, output_tokens, cached_read_tokens, cached_write_tokens, reasoning_tokens, cost_usd,
        provider_cost_usd, unpriced_attempts, unpriced_tokens, latency_count, latency_sum_ms, latency_histogram,
        first_token_count, first_token_sum_ms, first_token_histogram
    )
    SELECT
        tenant_id, bucket, provider, model_name, status, error_class, funding, absorbed, usage_source,
        attempts, input_tokens, output_tokens, cached_read_tokens, cached_write_tokens, reasoning_tokens, cost_usd,
        provider_cost_usd, unpriced_attempts, unpriced_tokens, latency_count, latency_sum_ms, latency_histogram,
        first_token_count, first_token_sum_ms, first_token_histogram
    FROM by_minute
    ORDER BY tenant_id, bucket, provider, model_name, status, error_class, funding, absorbed, usage_source
    ON CONFLICT (tenant_id, bucket, provider, model_name, status, error_class, funding, absorbed, usage_source)
    DO UPDATE SET
        attempts = rollup.attempts + excluded.attempts,
        input_tokens = rollup.input_tokens + excluded.input_tokens,
        output_tokens = rollup.output_tokens + excluded.output_tokens,
        cached_read_tokens = rollup.cached_read_tokens + excluded.cached_read_tokens,
        cached_write_tokens = rollup.cached_write_tokens + excluded.cached_write_tokens,
        reasoning_tokens = rollup.reasoning_tokens + excluded.reasoning_tokens,
        cost_usd = rollup.cost_usd + excluded.cost_usd,
        provider_cost_usd = rollup.provider_cost_usd + excluded.provider_cost_usd,
        unpriced_attempts = rollup.unpriced_attempts + excluded.unpriced_attempts,
        unpriced_tokens = rollup.unpriced_tokens + excluded.unpriced_tokens,
        latency_count = rollup.latency_count + excluded.latency_count,
        latency_sum_ms = rollup.latency_sum_ms + excluded.latency_sum_ms,
        latency_histogram = rollup.latency_histogram + excluded.latency_histogram,
        first_token_count = rollup.first_token_count + excluded.first_token_count,
        first_token_sum_ms = rollup.first_token_sum_ms + excluded.first_token_sum_ms,
        first_token_histogram = rollup.first_token_histogram + excluded.first_token_histogram
),
by_hour AS (
    SELECT
        tenant_id, date_bin('1 hour', bucket, '2000-01-01+00') AS bucket, provider, model_name, status, error_class,
        funding, absorbed, usage_source,
        sum_of_few(attempts) AS attempts,
        sum_of_few(input_tokens) AS input_tokens,
        sum_of_few(output_tokens) AS output_tokens,
        sum_of_few(cached_read_tokens) AS cached_read_tokens,
        sum_of_few(cached_write_tokens) AS cached_write_tokens,
        sum_of_few(reasoning_tokens) AS reasoning_tokens,
        sum_of_few(cost_usd) AS cost_usd,
        sum_of_few(provider_cost_usd) AS provider_cost_usd,
        sum_of_few(unpriced_attempts) AS unpriced_attempts,
        sum_of_few(unpriced_tokens) AS unpriced_tokens,
        sum_of_few(latency_count) AS latency_count,
        sum_of_few(latency_sum_ms) AS latency_sum_ms,
        sum_of_few(latency_histogram) AS latency_histogram,
        sum_of_few(first_token_count) AS first_token_count,
        sum_of_few(first_token_sum_ms) AS first_token_sum_ms,
        sum_of_few(first_token_histogram) AS first_token_histogram
    FROM by_minute
    GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9
),
hour_rollup AS (
    INSERT INTO usage_rollup_hour AS rollup (
        tenant_id, bucket, provider, model_name, status, error_class, funding, absorbed, usage_source,
        attempts, input_tokens, output_tokens, cached_read_tokens, cached_write_tokens, reasoning_tokens, cost_usd,
        provider_cost_usd, unpriced_attempts, unpriced_tokens, latency_count, latency_sum_ms, latency_histogram,
        first_token_count, first_token_sum_ms, first_token_histogram
    )
    SELECT
        tenant_id, bucket, provider, model_name, status, error_class, funding, absorbed, usage_source,
        attempts, input_tokens, output_tokens, cached_read_tokens, cached_write_tokens, reasoning_tokens, cost_usd,
        provider_cost_usd, unpriced_attempts, unpriced_tokens, latency_count, latency_sum_ms, latency_histogram,
        first_token_count, first_token_sum_ms, first_token_histogram
    FROM by_hour
    ORDER BY tenant_id, bucket, provider, model_name, status, error_class, funding, absorbed, usage_source
    ON CONFLICT (tenant_id, bucket, provider, model_name, status, error_class, funding, absorbed, usage_source)
    DO UPDATE SET
        attempts = rollup.attempts + excluded.attempts,
        input_tokens = rollup.input_tokens + excluded.input_tokens,
        output_tokens = rollup.output_tokens + excluded.output_tokens,
        cached_read_tokens = rollup.cached_read_tokens + excluded.cached_read_tokens,
        cached_write_tokens = rollup.cached_write_tokens + excluded.cached_write_tokens,
        reasoning_tokens = rollup.reasoning_tokens + excluded.reasoning_tokens,
        cost_usd = rollup.cost_usd + excluded.cost_usd,
        provider_cost_usd = rollup.provider_cost_usd + excluded.provider_cost_usd,
        unpriced_attempts = rollup.unpriced_attempts + excluded.unpriced_attempts,
        unpriced_tokens = rollup.unpriced_tokens + excluded.unpriced_tokens,
        latency_count = rollup.latency_count + excluded.latency_count,
        latency_sum_ms = rollup.latency_sum_ms + excluded.latency_sum_ms,
        latency_histogram = rollup.latency_histogram + excluded.latency_histogram,
        first_token_count = rollup.first_token_count + excluded.first_token_count,
        first_token_sum_ms = rollup.first_token_sum_ms + excluded.first_token_sum_ms,
        first_token_histogram = rollup.first_token_histogram + excluded.first_token_histogram
),
by_day AS (
    SELECT
        tenant_id, date_bin('1 day', bucket, '2000-01-01+00') AS bucket, provider, model_name, status, error_class,
        funding, absorbed, usage_source,
        sum_of_few(attempts) AS attempts,
        sum_of_few(input_tokens) AS input_tokens,
        sum_of_few(output_tokens) AS output_tokens,
        sum_of_few(cached_read_tokens) AS cached_read_tokens,
        sum_of_few(cached_write_tokens) AS cached_write_tokens,
        sum_of_few(reasoning_tokens) AS reasoning_tokens,
        sum_of_few(cost_usd) AS cost_usd,
        sum_of_few(provider_cost_usd) AS provider_cost_usd,
        sum_of_few(unpriced_attempts) AS unpriced_attempts,
        sum_of_few(unpriced_tokens) AS unpriced_tokens,
        sum_of_few(latency_count) AS latency_count,
        sum_of_few(latency_sum_ms) AS latency_sum_ms,
        sum_of_few(latency_histogram) AS latency_histogram,
        sum_of_few(first_token_count) AS first_token_count,
        sum_of_few(first_token_sum_ms) AS first_token_sum_ms,
        sum_of_few(first_token_histogram) AS first_token_histogram
    FROM by_hour
    GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9
),
day_rollup AS (
    INSERT INTO usage_rollup_day AS rollup (
        tenant_id, bucket, provider, model_name, status, error_class, funding, absorbed, usage_source,
        attempts, input_tokens, output_tokens, cached_read_tokens, cached_write_tokens, reasoning_tokens, cost_usd,
        provider_cost_usd, unpriced_attempts, unpriced_tokens, latency_count, latency_sum_ms, latency_histogram,
        first_token_count, first_token_sum_ms, first_token_histogram
    )
    SELECT
        tenant_id, bucket, provider, model_name, status, error_class, funding, absorbed, usage_source,
        attempts, input_tokens, output_tokens, cached_read_tokens, cached_write_tokens, reasoning_tokens, cost_usd,
        provider_cost_usd, unpriced_attempts, unpriced_tokens, latency_count, latency_sum_ms, latency_histogram,
        first_token_count, first_token_sum_ms, first_token_histogram
    FROM by_day
    ORDER BY tenant_id, bucket, provider, model_name, status, error_class, funding, absorbed, usage_source
    ON CONFLICT (tenant_id, bucket, provider, model_name, status, error_class, funding, absorbed, usage_source)
    DO UPDATE SET
        attempts = rollup.attempts + excluded.attempts,
        input_tokens = rollup.input_tokens + excluded.input_tokens,
        output_tokens = rollup.output_tokens + excluded.output_tokens,
        cached_read_tokens = rollup.cached_read_tokens + excluded.cached_read_tokens,
        cached_write_tokens = rollup.cached_write_tokens + excluded.cached_write_tokens,
        reasoning_tokens = rollup.reasoning_tokens + excluded.reasoning_tokens,
        cost_usd = rollup.cost_usd + excluded.cost_usd,
        provider_cost_usd = rollup.provider_cost_usd + excluded.provider_cost_usd,
        unpriced_attempts = rollup.unpriced_attempts + excluded.unpriced_attempts,
        unpriced_tokens = rollup.unpriced_tokens + excluded.unpriced_tokens,
        latency_count = rollup.latency_count + excluded.latency_count,
        latency_sum_ms = rollup.latency_sum_ms + excluded.latency_sum_ms,
        latency_histogram = rollup.latency_histogram + excluded.latency_histogram,
        first_token_count = rollup.first_token_count + excluded.first_token_count,
        first_token_sum_ms = rollup.first_token_sum_ms + excluded.first_token_sum_ms,
        first_token_histogram = rollup.first_token_histogram + excluded.first_token_histogram
)
SELECT tenant_id, id FROM inserted

-- name: create_stage
-- Where COPY puts a large batch; one per connection, empty again after each transaction.
CREATE TEMP TABLE IF NOT EXISTS usage_stage (
    id uuid, tenant_id uuid, user_id text, provider text, model_name text, endpoint text, "timestamp" timestamptz,
    latency_ms integer, input_tokens bigint, output_tokens bigint, total_tokens bigint, estimated_cost_usd numeric,
    status text, error_message text, metadata jsonb, request_id uuid, attempt smallint, requested_model text,
    error_class text, absorbed boolean, funding text, cached_read_tokens bigint, cached_write_tokens bigint,
    reasoning_tokens bigint, usage_source text, first_token_ms integer, price_id bigint, pricing_state text,
    provider_cost_usd numeric, router_id text, router_epoch text, router_sequence bigint, content_hash bytea
) ON COMMIT DELETE ROWS

-- name: stage_from_copy
-- As the stage: the rows that COPY has put aside.
pg_temp.usage_stage

-- name: stage_from_arrays
-- As the stage: one array per column, a single round trip for a small batch.
unnest(
    $1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::text[], $7::timestamptz[], $8::integer[],
    $9::bigint[], $10::bigint[], $11::bigint[], $12::numeric[], $13::text[], $14::text[], $15::jsonb[], $16::uuid[],
    $17::smallint[], $18::text[], $19::text[], $20::boolean[], $21::text[], $22::bigint[], $23::bigint[],
    $24::bigint[], $25::text[], $26::integer[], $27::bigint[], $28::text[], $29::numeric[], $30::text[], $31::text[],
    $32::bigint[], $33::bytea[]
) AS stage (
    id, tenant_id, user_id, provider, model_name, endpoint, "timestamp", latency_ms, input_tokens, output_tokens,
    total_tokens, estimated_cost_usd, status, error_message, metadata, request_id, attempt, requested_model,
    error_class, absorbed, funding, cached_read_tokens, cached_write_tokens, reasoning_tokens, usage_source,
    first_token_ms, price_id, pricing_state, provider_cost_usd, router_id, router_epoch, router_sequence,
    content_hash
)

-- name: find_stored
-- What the ledger holds under the keys of a batch.
SELECT stored.tenant_id, stored.id, stored.content_hash, stored.estimated_cost_usd, stored.pricing_state, stored.router_epoch
FROM unnest($1::uuid[], $2::timestamptz[], $3::uuid[]) AS sent (tenant_id, used_at, id)
JOIN model_usage_stats AS stored
    ON stored.tenant_id = sent.tenant_id AND stored."timestamp" = sent.used_at AND stored.id = sent.id
    -- Bounds that the planner and the executor can leave partitions out by.
    AND stored."timestamp" BETWEEN $4::timestamptz AND $5::timestamptz
