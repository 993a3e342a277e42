-- Reports on the rollups.
--
-- A report brings its tiles: runs of buckets, each with the grain that answers it. {buckets} stands for them, put
-- together of the two statements below, one branch for each tile or, where there are many, for each grain: a branch is
-- an index scan of exactly its buckets, and what is not asked for is no part of the statement. Its parameters come
-- after those that a report has by itself.
--
-- A month of one tenant is thousands of rows with 20 sums each, so two things count here that elsewhere would not:
-- * The groups are to be hashed, which the planner would not do by itself: see CONNECTION_SETTINGS in rollups.py.
-- * numeric_send hands a histogram over as its digits, which are its counts: see packed_histogram.py. They tell how
--   many durations there were, too; nothing is added up that follows from other sums.

-- name: buckets_of_tile
-- The buckets of one tile. The braces stand for its grain and bounds, and for the filters.
SELECT * FROM usage_rollup_{grain} WHERE tenant_id = $1 AND bucket >= {start} AND bucket < {end}{filters}

-- name: buckets_of_tiles
-- The buckets of many tiles of one grain, each looked up in the primary key; OFFSET 0 keeps the planner from turning
-- that into one scan of all the tenant's buckets.
SELECT found.*
FROM unnest({start}::timestamptz[], {end}::timestamptz[]) AS tile (first_bucket, end_bucket)
CROSS JOIN LATERAL (
    SELECT *
    FROM usage_rollup_{grain}
    WHERE tenant_id = $1 AND bucket >= tile.first_bucket AND bucket < tile.end_bucket{filters}
    OFFSET 0
) AS found

-- name: sums
-- What reports of usage add up, histograms apart: a part of the statements below. Attempts that failed are the others.
(sum(attempts) - coalesce(sum(attempts) FILTER (WHERE absorbed), 0))::bigint AS requests,
sum(attempts)::bigint AS attempts,
coalesce(sum(attempts) FILTER (WHERE status = 'success'), 0)::bigint AS succeeded,
coalesce(sum(attempts) FILTER (WHERE status = 'rate_limit'), 0)::bigint AS rate_limited,
coalesce(sum(attempts) FILTER (WHERE status = 'cancelled'), 0)::bigint AS cancelled,
coalesce(sum(attempts) FILTER (WHERE absorbed), 0)::bigint AS absorbed,
sum(input_tokens)::bigint AS input_tokens,
sum(output_tokens)::bigint AS output_tokens,
sum(cached_read_tokens)::bigint AS cached_read_tokens,
sum(cached_write_tokens)::bigint AS cached_write_tokens,
sum(reasoning_tokens)::bigint AS reasoning_tokens,
sum(cost_usd) - coalesce(sum(cost_usd) FILTER (WHERE usage_source = 'estimated'), 0) AS exact_usd,
coalesce(sum(cost_usd) FILTER (WHERE usage_source = 'estimated'), 0) AS estimated_usd,
sum(unpriced_attempts)::bigint AS unpriced_attempts,
sum(unpriced_tokens)::bigint AS unpriced_tokens,
sum(latency_sum_ms)::bigint AS latency_sum_ms,
sum(first_token_sum_ms)::bigint AS first_token_sum_ms

-- name: usage_by_group
-- Sums by provider and model, or by fewer of them, most requests first. {provider} and {model_name} stand for the
-- columns, or for '' where they are not told apart.
SELECT {provider} AS provider,
       {model_name} AS model_name,
       {sums},
       numeric_send(sum(latency_histogram)) AS latency_histogram,
       numeric_send(sum(first_token_histogram)) AS first_token_histogram
FROM ({buckets}) AS found
GROUP BY 1, 2
ORDER BY requests DESC, attempts DESC, provider, model_name
LIMIT $2;

-- name: page_of_usage_by_group
-- The same after a given entry; the last row is the total of all entries, few of which a page may hold.
WITH entry AS (
    SELECT {provider} AS provider,
           {model_name} AS model_name,
           {sums},
           sum(latency_histogram) AS latency_histogram,
           sum(first_token_histogram) AS first_token_histogram
    FROM ({buckets}) AS found
    GROUP BY 1, 2
),
page AS (
    SELECT *
    FROM entry
    WHERE $2::bigint IS NULL
       OR requests < $2
       OR (requests = $2 AND attempts < $3::bigint)
       OR (requests = $2 AND attempts = $3 AND (provider, model_name) > ($4::text, $5::text))
    ORDER BY requests DESC, attempts DESC, provider, model_name
    LIMIT $6
)
SELECT false AS is_total, provider, model_name,
       requests, attempts, succeeded, rate_limited, cancelled, absorbed,
       input_tokens, output_tokens, cached_read_tokens, cached_write_tokens, reasoning_tokens,
       exact_usd, estimated_usd, unpriced_attempts, unpriced_tokens, latency_sum_ms,
       numeric_send(latency_histogram) AS latency_histogram, first_token_sum_ms,
       numeric_send(first_token_histogram) AS first_token_histogram
FROM page
UNION ALL
SELECT true, '', '',
       coalesce(sum(requests), 0)::bigint,
       coalesce(sum(attempts), 0)::bigint,
       coalesce(sum(succeeded), 0)::bigint,
       coalesce(sum(rate_limited), 0)::bigint,
       coalesce(sum(cancelled), 0)::bigint,
       coalesce(sum(absorbed), 0)::bigint,
       coalesce(sum(input_tokens), 0)::bigint,
       coalesce(sum(output_tokens), 0)::bigint,
       coalesce(sum(cached_read_tokens), 0)::bigint,
       coalesce(sum(cached_write_tokens), 0)::bigint,
       coalesce(sum(reasoning_tokens), 0)::bigint,
       coalesce(sum(exact_usd), 0),
       coalesce(sum(estimated_usd), 0),
       coalesce(sum(unpriced_attempts), 0)::bigint,
       coalesce(sum(unpriced_tokens), 0)::bigint,
       coalesce(sum(latency_sum_ms), 0)::bigint,
       numeric_send(coalesce(sum(latency_histogram), 0)),
       coalesce(sum(first_token_sum_ms), 0)::bigint,
       numeric_send(coalesce(sum(first_token_histogram), 0))
FROM entry
ORDER BY is_total, requests DESC, attempts DESC, provider, model_name;

-- name: usage_by_step
-- Sums by step, and by provider and model or fewer of them, oldest first. A bucket's step is its place among the steps'
-- starts: no bucket of a tile lies across one. {provider} and {model_name} stand for what they do above.
SELECT width_bucket(bucket, $2::timestamptz[]) AS step,
       {provider} AS provider,
       {model_name} AS model_name,
       {sums},
       numeric_send(sum(latency_histogram)) AS latency_histogram,
       numeric_send(sum(first_token_histogram)) AS first_token_histogram
FROM ({buckets}) AS found
GROUP BY 1, 2, 3
ORDER BY 1, 2, 3
LIMIT $3;

-- name: costs_by_day
-- Cost by day and provider after a given entry. A bucket's day is its place among the starts of the caller's days: no
-- bucket of a tile lies across one.
WITH daily AS (
    SELECT width_bucket(bucket, $2::timestamptz[]) AS number,
           provider,
           (sum(attempts) - coalesce(sum(attempts) FILTER (WHERE absorbed), 0))::bigint AS requests,
           sum(input_tokens + output_tokens + cached_read_tokens + cached_write_tokens + reasoning_tokens)::bigint
               AS total_tokens,
           sum(cost_usd) AS cost_usd,
           coalesce(sum(cost_usd) FILTER (WHERE usage_source = 'estimated'), 0) AS estimated_usd,
           sum(unpriced_attempts)::bigint AS unpriced_attempts,
           sum(unpriced_tokens)::bigint AS unpriced_tokens
    FROM ({buckets}) AS found
    GROUP BY 1, 2
)
SELECT number, provider, requests, total_tokens, cost_usd - estimated_usd AS exact_usd, estimated_usd,
       unpriced_attempts, unpriced_tokens
FROM daily
WHERE $3::integer IS NULL
   OR number < $3
   OR (number = $3 AND cost_usd < $4::numeric)
   OR (number = $3 AND cost_usd = $4 AND provider > $5::text)
ORDER BY number DESC, cost_usd DESC, provider
LIMIT $6;

-- name: failures
-- Kinds of failure after a given one, most frequent first, with first and last bucket made as fine as is kept. A
-- bucket's length is that of its tile, found by its place among the tiles' starts.
WITH kind AS (
    SELECT provider,
           model_name,
           status,
           error_class,
           sum(attempts)::bigint AS occurrences,
           coalesce(sum(attempts) FILTER (WHERE absorbed), 0)::bigint AS absorbed,
           sum(cost_usd) - coalesce(sum(cost_usd) FILTER (WHERE usage_source = 'estimated'), 0) AS exact_usd,
           coalesce(sum(cost_usd) FILTER (WHERE usage_source = 'estimated'), 0) AS estimated_usd,
           sum(unpriced_attempts)::bigint AS unpriced_attempts,
           sum(unpriced_tokens)::bigint AS unpriced_tokens,
           min(bucket) AS first_bucket,
           max(bucket) AS last_bucket
    FROM ({buckets}) AS found
    WHERE status <> 'success'
    GROUP BY 1, 2, 3, 4
),
page AS MATERIALIZED (
    SELECT kind.*,
           ($11::interval[])[width_bucket(first_bucket, $10::timestamptz[])] AS first_span,
           ($11::interval[])[width_bucket(last_bucket, $10::timestamptz[])] AS last_span
    FROM kind
    WHERE $2::bigint IS NULL
       OR occurrences < $2
       OR (occurrences = $2
           AND (provider, model_name, status, error_class) > ($3::text, $4::text, $5::text, $6::text))
    ORDER BY occurrences DESC, provider, model_name, status, error_class
    LIMIT $7
)
SELECT page.*,
       coalesce(first_minute.bucket, first_hour.bucket, page.first_bucket) AS first_seen,
       coalesce(last_minute.bucket, last_hour.bucket, page.last_bucket) AS last_seen,
       coalesce(sample.error_message, '') AS sample_message
FROM page
-- A coarse bucket is looked into only where all of its finer ones are kept ($8 minutes, $9 hours). Older than that, a
-- late event may have left a few, which would not tell the first.
CROSS JOIN LATERAL (
    SELECT min(bucket) AS bucket
    FROM usage_rollup_hour AS r
    WHERE page.first_span > interval '3600 seconds' AND page.first_bucket >= $9::timestamptz AND r.tenant_id = $1
      AND r.bucket >= page.first_bucket AND r.bucket < page.first_bucket + page.first_span
      AND (r.provider, r.model_name, r.status, r.error_class)
          = (page.provider, page.model_name, page.status, page.error_class){filters}
) AS first_hour
CROSS JOIN LATERAL (
    SELECT min(bucket) AS bucket
    FROM usage_rollup_minute AS r
    WHERE page.first_span > interval '60 seconds' AND r.tenant_id = $1
      AND coalesce(first_hour.bucket, page.first_bucket) >= $8::timestamptz
      AND r.bucket >= coalesce(first_hour.bucket, page.first_bucket)
      AND r.bucket < coalesce(first_hour.bucket + interval '3600 seconds', page.first_bucket + page.first_span)
      AND (r.provider, r.model_name, r.status, r.error_class)
          = (page.provider, page.model_name, page.status, page.error_class){filters}
) AS first_minute
CROSS JOIN LATERAL (
    SELECT max(bucket) AS bucket
    FROM usage_rollup_hour AS r
    WHERE page.last_span > interval '3600 seconds' AND page.last_bucket >= $9 AND r.tenant_id = $1
      AND r.bucket >= page.last_bucket AND r.bucket < page.last_bucket + page.last_span
      AND (r.provider, r.model_name, r.status, r.error_class)
          = (page.provider, page.model_name, page.status, page.error_class){filters}
) AS last_hour
CROSS JOIN LATERAL (
    SELECT max(bucket) AS bucket
    FROM usage_rollup_minute AS r
    WHERE page.last_span > interval '60 seconds' AND r.tenant_id = $1
      AND coalesce(last_hour.bucket, page.last_bucket) >= $8
      AND r.bucket >= coalesce(last_hour.bucket, page.last_bucket)
      AND r.bucket < coalesce(last_hour.bucket + interval '3600 seconds', page.last_bucket + page.last_span)
      AND (r.provider, r.model_name, r.status, r.error_class)
          = (page.provider, page.model_name, page.status, page.error_class){filters}
) AS last_minute
-- The only look at raw rows: within the last bucket, the newest one.
LEFT JOIN LATERAL (
    SELECT raw.error_message
    FROM model_usage_stats AS raw
    WHERE raw.tenant_id = $1
      AND raw."timestamp" >= coalesce(last_minute.bucket, last_hour.bucket, page.last_bucket)
      AND raw."timestamp" < coalesce(
          last_minute.bucket + interval '60 seconds',
          last_hour.bucket + interval '3600 seconds',
          page.last_bucket + page.last_span)
      AND (raw.provider, raw.model_name, raw.status, raw.error_class)
          = (page.provider, page.model_name, page.status, page.error_class){filters}
    ORDER BY raw."timestamp" DESC, raw.id DESC
    LIMIT 1
) AS sample ON true
ORDER BY occurrences DESC, provider, model_name, status, error_class;

-- name: consumption
-- What counts against limits, by tenant, window, provider and model: of however many tenants, each with its own windows.
WITH rollup AS NOT MATERIALIZED (
    SELECT 'minute' AS grain, minutes.* FROM usage_rollup_minute AS minutes
    UNION ALL SELECT 'hour', hours.* FROM usage_rollup_hour AS hours
    UNION ALL SELECT 'day', days.* FROM usage_rollup_day AS days
)
SELECT tile.tenant_id,
       tile.window_key,
       found.provider,
       found.model_name,
       sum(attempts)::bigint AS requests,
       sum(input_tokens + output_tokens + cached_read_tokens + cached_write_tokens + reasoning_tokens)::bigint
           AS tokens,
       sum(cost_usd) AS cost_usd
FROM unnest($1::uuid[], $2::integer[], $3::text[], $4::timestamptz[], $5::timestamptz[])
    AS tile (tenant_id, window_key, grain, first_bucket, end_bucket)
CROSS JOIN LATERAL (
    SELECT provider, model_name, attempts, input_tokens, output_tokens, cached_read_tokens, cached_write_tokens,
           reasoning_tokens, cost_usd
    FROM rollup
    WHERE rollup.grain = tile.grain
      AND rollup.tenant_id = tile.tenant_id
      AND rollup.bucket >= tile.first_bucket
      AND rollup.bucket < tile.end_bucket
    OFFSET 0
) AS found
GROUP BY tile.tenant_id, tile.window_key, found.provider, found.model_name;

-- name: tenant_with_minutes
-- The first tenant, from a given id on, that has minute buckets.
SELECT tenant_id FROM usage_rollup_minute WHERE tenant_id >= $1 ORDER BY tenant_id LIMIT 1;

-- name: tenant_with_hours
-- The first tenant, from a given id on, that has hour buckets.
SELECT tenant_id FROM usage_rollup_hour WHERE tenant_id >= $1 ORDER BY tenant_id LIMIT 1;

-- name: purge_minutes
-- Remove a tenant's minute buckets before a time.
DELETE FROM usage_rollup_minute WHERE tenant_id = $1 AND bucket < $2;

-- name: purge_hours
-- Remove a tenant's hour buckets before a time.
DELETE FROM usage_rollup_hour WHERE tenant_id = $1 AND bucket < $2;
