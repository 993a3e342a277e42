-- Reports on the rollups.
--
-- A report brings its tiles: runs of buckets, each with the grain that answers it. The lateral join looks every tile up
-- in its own rollup's primary key; OFFSET 0 keeps the planner from turning that into one scan of all the tenant's
-- buckets. A grain's branch is not run for the tiles of another.

-- name: usage_by_group
-- Sums by provider and model, or by fewer of them, after a given entry, most requests first; the last row is the total.
WITH rollup AS NOT MATERIALIZED (
    SELECT 'minute' AS grain, minutes.* FROM usage_rollup_minute AS minutes
    UNION ALL SELECT 'hour', hours.* FROM usage_rollup_hour AS hours
    UNION ALL SELECT 'day', days.* FROM usage_rollup_day AS days
),
entry AS (
    SELECT CASE WHEN $9::boolean THEN found.provider ELSE '' END AS provider,
           CASE WHEN $10::boolean THEN found.model_name ELSE '' END AS model_name,
           coalesce(sum(attempts) FILTER (WHERE NOT absorbed), 0)::bigint AS requests,
           sum(attempts)::bigint AS attempts,
           coalesce(sum(attempts) FILTER (WHERE status = 'success'), 0)::bigint AS succeeded,
           coalesce(sum(attempts) FILTER (WHERE status IN ('error', 'interrupted')), 0)::bigint AS failed,
           coalesce(sum(attempts) FILTER (WHERE status = 'rate_limit'), 0)::bigint AS rate_limited,
           coalesce(sum(attempts) FILTER (WHERE status = 'cancelled'), 0)::bigint AS cancelled,
           coalesce(sum(attempts) FILTER (WHERE absorbed), 0)::bigint AS absorbed,
           sum(input_tokens)::bigint AS input_tokens,
           sum(output_tokens)::bigint AS output_tokens,
           sum(cached_read_tokens)::bigint AS cached_read_tokens,
           sum(cached_write_tokens)::bigint AS cached_write_tokens,
           sum(reasoning_tokens)::bigint AS reasoning_tokens,
           coalesce(sum(cost_usd) FILTER (WHERE usage_source <> 'estimated'), 0) AS exact_usd,
           coalesce(sum(cost_usd) FILTER (WHERE usage_source = 'estimated'), 0) AS estimated_usd,
           sum(unpriced_attempts)::bigint AS unpriced_attempts,
           sum(unpriced_tokens)::bigint AS unpriced_tokens,
           sum(latency_count)::bigint AS latency_count,
           sum(latency_sum_ms)::bigint AS latency_sum_ms,
           sum(latency_histogram) AS latency_histogram,
           sum(first_token_count)::bigint AS first_token_count,
           sum(first_token_sum_ms)::bigint AS first_token_sum_ms,
           sum(first_token_histogram) AS first_token_histogram
    FROM unnest($2::text[], $3::timestamptz[], $4::timestamptz[]) AS tile (grain, first_bucket, end_bucket)
    CROSS JOIN LATERAL (
        SELECT *
        FROM rollup
        WHERE rollup.grain = tile.grain
          AND rollup.tenant_id = $1
          AND rollup.bucket >= tile.first_bucket
          AND rollup.bucket < tile.end_bucket
          AND ($5 = '' OR rollup.provider = $5)
          AND ($6 = '' OR rollup.model_name = $6)
          AND ($7::boolean IS NULL OR rollup.absorbed = $7)
          AND ($8 = '' OR rollup.funding = $8)
        OFFSET 0
    ) AS found
    GROUP BY 1, 2
),
page AS (
    SELECT *
    FROM entry
    WHERE $11::bigint IS NULL
       OR requests < $11
       OR (requests = $11 AND attempts < $12::bigint)
       OR (requests = $11 AND attempts = $12 AND (provider, model_name) > ($13::text, $14::text))
    ORDER BY requests DESC, attempts DESC, provider, model_name
    LIMIT $15
)
SELECT false AS is_total, page.* FROM page
UNION ALL
SELECT true, '', '',
       coalesce(sum(requests), 0)::bigint,
       coalesce(sum(attempts), 0)::bigint,
       coalesce(sum(succeeded), 0)::bigint,
       coalesce(sum(failed), 0)::bigint,
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
       coalesce(sum(latency_count), 0)::bigint,
       coalesce(sum(latency_sum_ms), 0)::bigint,
       coalesce(sum(latency_histogram), 0),
       coalesce(sum(first_token_count), 0)::bigint,
       coalesce(sum(first_token_sum_ms), 0)::bigint,
       coalesce(sum(first_token_histogram), 0)
FROM entry
ORDER BY is_total, requests DESC, attempts DESC, provider, model_name;

-- name: usage_by_step
-- Sums by step, and by provider and model or fewer of them, oldest first. A bucket's step is its place among the steps'
-- starts: no bucket of a tile lies across one.
WITH rollup AS NOT MATERIALIZED (
    SELECT 'minute' AS grain, minutes.* FROM usage_rollup_minute AS minutes
    UNION ALL SELECT 'hour', hours.* FROM usage_rollup_hour AS hours
    UNION ALL SELECT 'day', days.* FROM usage_rollup_day AS days
)
SELECT width_bucket(found.bucket, $11::timestamptz[]) AS step,
       CASE WHEN $9::boolean THEN found.provider ELSE '' END AS provider,
       CASE WHEN $10::boolean THEN found.model_name ELSE '' END AS model_name,
       coalesce(sum(attempts) FILTER (WHERE NOT absorbed), 0)::bigint AS requests,
       sum(attempts)::bigint AS attempts,
       coalesce(sum(attempts) FILTER (WHERE status = 'success'), 0)::bigint AS succeeded,
       coalesce(sum(attempts) FILTER (WHERE status IN ('error', 'interrupted')), 0)::bigint AS failed,
       coalesce(sum(attempts) FILTER (WHERE status = 'rate_limit'), 0)::bigint AS rate_limited,
       coalesce(sum(attempts) FILTER (WHERE status = 'cancelled'), 0)::bigint AS cancelled,
       coalesce(sum(attempts) FILTER (WHERE absorbed), 0)::bigint AS absorbed,
       sum(input_tokens)::bigint AS input_tokens,
       sum(output_tokens)::bigint AS output_tokens,
       sum(cached_read_tokens)::bigint AS cached_read_tokens,
       sum(cached_write_tokens)::bigint AS cached_write_tokens,
       sum(reasoning_tokens)::bigint AS reasoning_tokens,
       coalesce(sum(cost_usd) FILTER (WHERE usage_source <> 'estimated'), 0) AS exact_usd,
       coalesce(sum(cost_usd) FILTER (WHERE usage_source = 'estimated'), 0) AS estimated_usd,
       sum(unpriced_attempts)::bigint AS unpriced_attempts,
       sum(unpriced_tokens)::bigint AS unpriced_tokens,
       sum(latency_count)::bigint AS latency_count,
       sum(latency_sum_ms)::bigint AS latency_sum_ms,
       sum(latency_histogram) AS latency_histogram,
       sum(first_token_count)::bigint AS first_token_count,
       sum(first_token_sum_ms)::bigint AS first_token_sum_ms,
       sum(first_token_histogram) AS first_token_histogram
FROM unnest($2::text[], $3::timestamptz[], $4::timestamptz[]) AS tile (grain, first_bucket, end_bucket)
CROSS JOIN LATERAL (
    SELECT *
    FROM rollup
    WHERE rollup.grain = tile.grain
      AND rollup.tenant_id = $1
      AND rollup.bucket >= tile.first_bucket
      AND rollup.bucket < tile.end_bucket
      AND ($5 = '' OR rollup.provider = $5)
      AND ($6 = '' OR rollup.model_name = $6)
      AND ($7::boolean IS NULL OR rollup.absorbed = $7)
      AND ($8 = '' OR rollup.funding = $8)
    OFFSET 0
) AS found
GROUP BY 1, 2, 3
ORDER BY 1, 2, 3
LIMIT $12;

-- name: costs_by_day
-- Cost by day and provider after a given entry; a tile's day is its position in the caller's calendar.
WITH rollup AS NOT MATERIALIZED (
    SELECT 'minute' AS grain, minutes.* FROM usage_rollup_minute AS minutes
    UNION ALL SELECT 'hour', hours.* FROM usage_rollup_hour AS hours
    UNION ALL SELECT 'day', days.* FROM usage_rollup_day AS days
),
daily AS (
    SELECT tile.day,
           found.provider,
           coalesce(sum(attempts) FILTER (WHERE NOT absorbed), 0)::bigint AS requests,
           sum(input_tokens + output_tokens + cached_read_tokens + cached_write_tokens + reasoning_tokens)::bigint
               AS total_tokens,
           sum(cost_usd) AS cost_usd,
           coalesce(sum(cost_usd) FILTER (WHERE usage_source <> 'estimated'), 0) AS exact_usd,
           coalesce(sum(cost_usd) FILTER (WHERE usage_source = 'estimated'), 0) AS estimated_usd,
           sum(unpriced_attempts)::bigint AS unpriced_attempts,
           sum(unpriced_tokens)::bigint AS unpriced_tokens
    FROM unnest($2::text[], $3::timestamptz[], $4::timestamptz[], $5::date[])
        AS tile (grain, first_bucket, end_bucket, day)
    CROSS JOIN LATERAL (
        SELECT provider, absorbed, usage_source, attempts, input_tokens, output_tokens, cached_read_tokens,
               cached_write_tokens, reasoning_tokens, cost_usd, unpriced_attempts, unpriced_tokens
        FROM rollup
        WHERE rollup.grain = tile.grain
          AND rollup.tenant_id = $1
          AND rollup.bucket >= tile.first_bucket
          AND rollup.bucket < tile.end_bucket
          AND ($6 = '' OR rollup.provider = $6)
          AND ($7 = '' OR rollup.model_name = $7)
          AND ($8::boolean IS NULL OR rollup.absorbed = $8)
          AND ($9 = '' OR rollup.funding = $9)
        OFFSET 0
    ) AS found
    GROUP BY tile.day, found.provider
)
SELECT *
FROM daily
WHERE $10::date IS NULL
   OR day < $10
   OR (day = $10 AND cost_usd < $11::numeric)
   OR (day = $10 AND cost_usd = $11 AND provider > $12::text)
ORDER BY day DESC, cost_usd DESC, provider
LIMIT $13;

-- name: failures
-- Kinds of failure after a given one, most frequent first, with first and last bucket made as fine as is kept.
WITH rollup AS NOT MATERIALIZED (
    SELECT 'minute' AS grain, interval '60 seconds' AS span, minutes.* FROM usage_rollup_minute AS minutes
    UNION ALL SELECT 'hour', interval '3600 seconds', hours.* FROM usage_rollup_hour AS hours
    UNION ALL SELECT 'day', interval '86400 seconds', days.* FROM usage_rollup_day AS days
),
kind AS (
    SELECT found.provider,
           found.model_name,
           found.status,
           found.error_class,
           sum(attempts)::bigint AS occurrences,
           coalesce(sum(attempts) FILTER (WHERE absorbed), 0)::bigint AS absorbed,
           coalesce(sum(cost_usd) FILTER (WHERE usage_source <> 'estimated'), 0) AS exact_usd,
           coalesce(sum(cost_usd) FILTER (WHERE usage_source = 'estimated'), 0) AS estimated_usd,
           sum(unpriced_attempts)::bigint AS unpriced_attempts,
           sum(unpriced_tokens)::bigint AS unpriced_tokens,
           min(bucket) AS first_bucket,
           (array_agg(span ORDER BY bucket))[1] AS first_span,
           max(bucket) AS last_bucket,
           (array_agg(span ORDER BY bucket DESC))[1] AS last_span
    FROM unnest($2::text[], $3::timestamptz[], $4::timestamptz[]) AS tile (grain, first_bucket, end_bucket)
    CROSS JOIN LATERAL (
        SELECT provider, model_name, status, error_class, absorbed, usage_source, bucket, span, attempts, cost_usd,
               unpriced_attempts, unpriced_tokens
        FROM rollup
        WHERE rollup.grain = tile.grain
          AND rollup.tenant_id = $1
          AND rollup.bucket >= tile.first_bucket
          AND rollup.bucket < tile.end_bucket
          AND rollup.status <> 'success'
          AND ($5 = '' OR rollup.provider = $5)
          AND ($6 = '' OR rollup.model_name = $6)
          AND ($7::boolean IS NULL OR rollup.absorbed = $7)
          AND ($8 = '' OR rollup.funding = $8)
        OFFSET 0
    ) AS found
    GROUP BY found.provider, found.model_name, found.status, found.error_class
),
page AS MATERIALIZED (
    SELECT *
    FROM kind
    WHERE $9::bigint IS NULL
       OR occurrences < $9
       OR (occurrences = $9
           AND (provider, model_name, status, error_class) > ($10::text, $11::text, $12::text, $13::text))
    ORDER BY occurrences DESC, provider, model_name, status, error_class
    LIMIT $14
)
SELECT page.*,
       coalesce(first_minute.bucket, first_hour.bucket, page.first_bucket) AS first_seen,
       coalesce(last_minute.bucket, last_hour.bucket, page.last_bucket) AS last_seen,
       coalesce(sample.error_message, '') AS sample_message
FROM page
-- A coarse bucket is looked into only where all of its finer ones are kept ($15 minutes, $16 hours). Older than that, a late event
-- may have left a few, which would not tell the first.
CROSS JOIN LATERAL (
    SELECT min(bucket) AS bucket
    FROM usage_rollup_hour AS r
    WHERE page.first_span > interval '3600 seconds' AND page.first_bucket >= $16::timestamptz AND r.tenant_id = $1
      AND r.bucket >= page.first_bucket AND r.bucket < page.first_bucket + page.first_span
      AND (r.provider, r.model_name, r.status, r.error_class)
          = (page.provider, page.model_name, page.status, page.error_class)
      AND ($7::boolean IS NULL OR r.absorbed = $7) AND ($8 = '' OR r.funding = $8)
) AS first_hour
CROSS JOIN LATERAL (
    SELECT min(bucket) AS bucket
    FROM usage_rollup_minute AS r
    WHERE page.first_span > interval '60 seconds' AND r.tenant_id = $1
      AND coalesce(first_hour.bucket, page.first_bucket) >= $15::timestamptz
      AND r.bucket >= coalesce(first_hour.bucket, page.first_bucket)
      AND r.bucket < coalesce(first_hour.bucket + interval '3600 seconds', page.first_bucket + page.first_span)
      AND (r.provider, r.model_name, r.status, r.error_class)
          = (page.provider, page.model_name, page.status, page.error_class)
      AND ($7::boolean IS NULL OR r.absorbed = $7) AND ($8 = '' OR r.funding = $8)
) AS first_minute
CROSS JOIN LATERAL (
    SELECT max(bucket) AS bucket
    FROM usage_rollup_hour AS r
    WHERE page.last_span > interval '3600 seconds' AND page.last_bucket >= $16 AND r.tenant_id = $1
      AND r.bucket >= page.last_bucket AND r.bucket < page.last_bucket + page.last_span
      AND (r.provider, r.model_name, r.status, r.error_class)
          = (page.provider, page.model_name, page.status, page.error_class)
      AND ($7::boolean IS NULL OR r.absorbed = $7) AND ($8 = '' OR r.funding = $8)
) AS last_hour
CROSS JOIN LATERAL (
    SELECT max(bucket) AS bucket
    FROM usage_rollup_minute AS r
    WHERE page.last_span > interval '60 seconds' AND r.tenant_id = $1
      AND coalesce(last_hour.bucket, page.last_bucket) >= $15
      AND r.bucket >= coalesce(last_hour.bucket, page.last_bucket)
      AND r.bucket < coalesce(last_hour.bucket + interval '3600 seconds', page.last_bucket + page.last_span)
      AND (r.provider, r.model_name, r.status, r.error_class)
          = (page.provider, page.model_name, page.status, page.error_class)
      AND ($7::boolean IS NULL OR r.absorbed = $7) AND ($8 = '' OR r.funding = $8)
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
          = (page.provider, page.model_name, page.status, page.error_class)
      AND ($7::boolean IS NULL OR raw.absorbed = $7) AND ($8 = '' OR raw.funding = $8)
    ORDER BY raw."timestamp" DESC, raw.id DESC
    LIMIT 1
) AS sample ON true
ORDER BY occurrences DESC, provider, model_name, status, error_class;

-- name: consumption
-- What counts against limits, by window, provider and model.
WITH rollup AS NOT MATERIALIZED (
    SELECT 'minute' AS grain, minutes.* FROM usage_rollup_minute AS minutes
    UNION ALL SELECT 'hour', hours.* FROM usage_rollup_hour AS hours
    UNION ALL SELECT 'day', days.* FROM usage_rollup_day AS days
)
SELECT tile.window_key,
       found.provider,
       found.model_name,
       sum(attempts)::bigint AS requests,
       sum(input_tokens + output_tokens + cached_read_tokens + cached_write_tokens + reasoning_tokens)::bigint
           AS tokens,
       sum(cost_usd) AS cost_usd
FROM unnest($2::text[], $3::timestamptz[], $4::timestamptz[], $5::integer[])
    AS tile (grain, first_bucket, end_bucket, window_key)
CROSS JOIN LATERAL (
    SELECT provider, model_name, attempts, input_tokens, output_tokens, cached_read_tokens, cached_write_tokens,
           reasoning_tokens, cost_usd
    FROM rollup
    WHERE rollup.grain = tile.grain
      AND rollup.tenant_id = $1
      AND rollup.bucket >= tile.first_bucket
      AND rollup.bucket < tile.end_bucket
    OFFSET 0
) AS found
GROUP BY tile.window_key, found.provider, found.model_name;

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
