-- Recounting the ledger. Every statement looks at one tenant's days, or at one week, so that it is bounded by what is
-- kept of these.

-- name: tenants_after
-- The tenants after a given one that have rows in a span, or rollups at all; one probe of an index for each.
WITH RECURSIVE next AS (
    SELECT found.tenant_id, 1 AS number
    FROM (
        (SELECT tenant_id FROM model_usage_stats
         WHERE tenant_id > $1 AND "timestamp" >= $2 AND "timestamp" < $3 ORDER BY tenant_id LIMIT 1)
        UNION ALL (SELECT tenant_id FROM usage_rollup_minute WHERE tenant_id > $1 ORDER BY tenant_id LIMIT 1)
        UNION ALL (SELECT tenant_id FROM usage_rollup_hour WHERE tenant_id > $1 ORDER BY tenant_id LIMIT 1)
        UNION ALL (SELECT tenant_id FROM usage_rollup_day WHERE tenant_id > $1 ORDER BY tenant_id LIMIT 1)
        ORDER BY tenant_id LIMIT 1
    ) AS found
    UNION ALL
    SELECT found.tenant_id, next.number + 1
    FROM next
    CROSS JOIN LATERAL (
        (SELECT tenant_id FROM model_usage_stats
         WHERE tenant_id > next.tenant_id AND "timestamp" >= $2 AND "timestamp" < $3 ORDER BY tenant_id LIMIT 1)
        UNION ALL (SELECT tenant_id FROM usage_rollup_minute
                   WHERE tenant_id > next.tenant_id ORDER BY tenant_id LIMIT 1)
        UNION ALL (SELECT tenant_id FROM usage_rollup_hour
                   WHERE tenant_id > next.tenant_id ORDER BY tenant_id LIMIT 1)
        UNION ALL (SELECT tenant_id FROM usage_rollup_day
                   WHERE tenant_id > next.tenant_id ORDER BY tenant_id LIMIT 1)
        ORDER BY tenant_id LIMIT 1
    ) AS found
    WHERE next.number < $4
)
SELECT tenant_id FROM next ORDER BY tenant_id

-- name: rows_by_day
-- About how many rows a tenant has on each day, to cut its days into parts that are quickly recounted.
SELECT bucket, sum(attempts)::bigint AS attempts
FROM usage_rollup_day
WHERE tenant_id = $1 AND bucket >= $2 AND bucket < $3
GROUP BY bucket

-- name: rollup
-- Compare the sums of a tenant's buckets with a recount of its rows. The braces stand for a rollup and its grain.
WITH counted AS (
    SELECT
        date_bin('{width}', "timestamp", '2000-01-01+00') AS bucket, provider, model_name, status, error_class, funding,
        absorbed, usage_source,
        count(*) AS attempts,
        sum(input_tokens)::bigint AS input_tokens,
        sum(output_tokens)::bigint AS output_tokens,
        sum(cached_read_tokens)::bigint AS cached_read_tokens,
        sum(cached_write_tokens)::bigint AS cached_write_tokens,
        sum(reasoning_tokens)::bigint AS reasoning_tokens,
        coalesce(sum(estimated_cost_usd), 0)::numeric(28, 12) AS cost_usd,
        coalesce(sum(provider_cost_usd), 0)::numeric(28, 12) AS provider_cost_usd,
        count(*) FILTER (WHERE pricing_state = 'unpriced') AS unpriced_attempts,
        coalesce(sum(total_tokens) FILTER (WHERE pricing_state = 'unpriced'), 0)::bigint AS unpriced_tokens,
        count(latency_ms) AS latency_count,
        coalesce(sum(latency_ms), 0)::bigint AS latency_sum_ms,
        coalesce(sum(hist_one(latency_ms)), 0) AS latency_histogram,
        count(first_token_ms) AS first_token_count,
        coalesce(sum(first_token_ms), 0)::bigint AS first_token_sum_ms,
        coalesce(sum(hist_one(first_token_ms)), 0) AS first_token_histogram
    FROM model_usage_stats
    WHERE tenant_id = $1 AND "timestamp" >= $2 AND "timestamp" < $3
    GROUP BY 1, 2, 3, 4, 5, 6, 7, 8
),
kept AS (
    SELECT
        bucket, provider, model_name, status, error_class, funding, absorbed, usage_source, attempts, input_tokens,
        output_tokens, cached_read_tokens, cached_write_tokens, reasoning_tokens, cost_usd, provider_cost_usd,
        unpriced_attempts, unpriced_tokens, latency_count, latency_sum_ms, latency_histogram, first_token_count,
        first_token_sum_ms, first_token_histogram
    FROM {rollup}
    WHERE tenant_id = $1 AND bucket >= $2 AND bucket < $3
),
compared AS (
    SELECT
        coalesce(counted.bucket, kept.bucket) AS bucket,
        counted IS DISTINCT FROM kept AS is_wrong,
        CASE WHEN counted IS DISTINCT FROM kept THEN to_jsonb(counted) END AS recounted,
        CASE WHEN counted IS DISTINCT FROM kept THEN to_jsonb(kept) END AS stored
    FROM counted
    FULL JOIN kept USING (bucket, provider, model_name, status, error_class, funding, absorbed, usage_source)
)
SELECT
    (SELECT count(*) FROM compared) AS checked,
    (SELECT count(*) FROM compared WHERE is_wrong) AS wrong,
    found.recounted::text AS recounted,
    found.stored::text AS stored
FROM (SELECT 1) AS always
LEFT JOIN LATERAL (
    SELECT recounted, stored FROM compared WHERE is_wrong ORDER BY bucket, recounted::text, stored::text LIMIT $4
) AS found ON true

-- name: costs
-- Rows whose cost is not price times tokens, or whose price and state do not go together.
WITH due AS (
    SELECT
        entry.id, entry."timestamp", entry.pricing_state, entry.estimated_cost_usd AS cost_usd, entry.price_id, entry.total_tokens,
        -- Multiplied, so that it is exact: a quotient is rounded.
        (entry.input_tokens * price.input_usd
         + entry.cached_read_tokens * coalesce(price.cached_read_usd, price.input_usd)
         + entry.cached_write_tokens * coalesce(price.cached_write_usd, price.input_usd)
         + entry.output_tokens * price.output_usd
         + entry.reasoning_tokens * coalesce(price.reasoning_usd, price.output_usd)) * 0.000001 AS exact_usd,
        price.provider = entry.provider AND price.model_name IN (entry.model_name, '*')
            AND price.effective_at <= entry."timestamp"
            AND (price.max_prompt_tokens IS NULL
                 OR entry.input_tokens + entry.cached_read_tokens + entry.cached_write_tokens <= price.max_prompt_tokens)
            AS price_applies
    FROM model_usage_stats AS entry
    LEFT JOIN model_prices_ever AS price ON price.id = entry.price_id
    WHERE entry.tenant_id = $1 AND entry."timestamp" >= $2 AND entry."timestamp" < $3
),
rounded AS (
    SELECT
        due.*,
        -- Half to even, at 12 decimals.
        CASE
            WHEN exact_usd - trunc(exact_usd, 12) = 0.0000000000005 AND mod(trunc(exact_usd, 12) * 1000000000000, 2) = 0
                THEN trunc(exact_usd, 12)
            ELSE round(exact_usd, 12)
        END AS due_usd
    FROM due
),
judged AS (
    SELECT
        rounded.*,
        CASE pricing_state
            WHEN 'priced' THEN coalesce(price_applies AND total_tokens > 0 AND cost_usd = due_usd, false)
            WHEN 'unpriced' THEN cost_usd IS NULL AND price_id IS NULL AND total_tokens > 0
            WHEN 'nothing_consumed' THEN coalesce(cost_usd = 0, false) AND price_id IS NULL AND total_tokens = 0
            ELSE false
        END AS is_right
    FROM rounded
)
SELECT totals.checked, totals.wrong, found.*
FROM (SELECT count(*) AS checked, count(*) FILTER (WHERE NOT is_right) AS wrong FROM judged) AS totals
LEFT JOIN LATERAL (
    SELECT id, "timestamp", pricing_state, cost_usd, price_id, due_usd, coalesce(price_applies, false) AS price_applies
    FROM judged WHERE NOT is_right ORDER BY "timestamp", id LIMIT $4
) AS found ON true

-- name: adjustments
-- Corrections that do not follow from the one before, or whose last is not what the row holds.
WITH chain AS (
    SELECT
        event_id, "timestamp", revision, old_cost_usd, old_pricing_state, old_price_id, new_cost_usd, new_pricing_state,
        new_price_id,
        row_number() OVER earlier AS number,
        lag((new_cost_usd, new_pricing_state, new_price_id)::text) OVER earlier AS before,
        lead(revision) OVER earlier IS NULL AS is_last
    FROM usage_cost_adjustments
    WHERE tenant_id = $1 AND "timestamp" >= $2 AND "timestamp" < $3
    WINDOW earlier AS (PARTITION BY event_id ORDER BY revision)
),
judged AS (
    SELECT
        chain.*,
        entry.estimated_cost_usd AS cost_usd,
        chain.revision = chain.number
            AND (chain.number = 1
                 OR chain.before = (old_cost_usd, old_pricing_state, old_price_id)::text)
            AND (NOT is_last
                 OR (entry.id IS NOT NULL
                     AND (entry.estimated_cost_usd, entry.pricing_state, entry.price_id)
                         IS NOT DISTINCT FROM (new_cost_usd, new_pricing_state, new_price_id))) AS is_right
    FROM chain
    LEFT JOIN model_usage_stats AS entry
        ON entry.tenant_id = $1 AND entry."timestamp" = chain."timestamp" AND entry.id = chain.event_id
        AND entry."timestamp" >= $2 AND entry."timestamp" < $3
)
SELECT totals.checked, totals.wrong, found.*
FROM (SELECT count(*) AS checked, count(*) FILTER (WHERE NOT is_right) AS wrong FROM judged) AS totals
LEFT JOIN LATERAL (
    SELECT event_id, "timestamp", revision, new_cost_usd, cost_usd, is_last
    FROM judged WHERE NOT is_right ORDER BY "timestamp", event_id, revision LIMIT $4
) AS found ON true

-- name: rows
-- Rows whose time is not the millisecond in their id, or whose total is not the sum of their token classes.
WITH judged AS (
    SELECT
        id, "timestamp", total_tokens,
        input_tokens + output_tokens + cached_read_tokens + cached_write_tokens + reasoning_tokens AS class_tokens,
        timestamptz '1970-01-01+00'
            + ('x' || lpad(replace(left(id::text, 13), '-', ''), 16, '0'))::bit(64)::bigint * interval '1 millisecond'
            AS id_time
    FROM model_usage_stats
    WHERE tenant_id = $1 AND "timestamp" >= $2 AND "timestamp" < $3
)
SELECT totals.checked, totals.wrong, found.*
FROM (
    SELECT count(*) AS checked,
           count(*) FILTER (WHERE "timestamp" <> id_time OR total_tokens <> class_tokens) AS wrong
    FROM judged
) AS totals
LEFT JOIN LATERAL (
    SELECT id, "timestamp", total_tokens, class_tokens, id_time
    FROM judged WHERE "timestamp" <> id_time OR total_tokens <> class_tokens ORDER BY "timestamp", id LIMIT $4
) AS found ON true

-- name: final_attempts
-- Requests with more than one attempt that was not absorbed, of which the last lies in the span. $5 reaches back for
-- those that began before it.
WITH request AS (
    SELECT request_id, count(*) AS finals, max("timestamp") AS last
    FROM model_usage_stats
    WHERE tenant_id = $1 AND "timestamp" >= $5 AND "timestamp" < $3 AND NOT absorbed
    GROUP BY request_id
    HAVING max("timestamp") >= $2
)
SELECT totals.checked, totals.wrong, found.*
FROM (SELECT count(*) AS checked, count(*) FILTER (WHERE finals > 1) AS wrong FROM request) AS totals
LEFT JOIN LATERAL (
    SELECT request_id, finals FROM request WHERE finals > 1 ORDER BY last, request_id LIMIT $4
) AS found ON true

-- name: duplicate_events
-- Event ids that stand in the ledger more than once in a span, under whatever tenant.
WITH event AS (
    SELECT id, count(*) AS copies
    FROM model_usage_stats
    WHERE "timestamp" >= $1 AND "timestamp" < $2
    GROUP BY id
)
SELECT totals.checked, totals.wrong, found.*
FROM (SELECT count(*) AS checked, count(*) FILTER (WHERE copies > 1) AS wrong FROM event) AS totals
LEFT JOIN LATERAL (SELECT id, copies FROM event WHERE copies > 1 ORDER BY id LIMIT $3) AS found ON true

-- name: sequence_runs
-- The sequences of a span's rows as runs without a gap, by router and epoch, with how many rows they are of, and the
-- highest that was stored before $3. Sorted, which the server can do on disk, instead of gathered in memory.
SELECT
    router_id, router_epoch, min(router_sequence) AS first, max(router_sequence) AS last, count(*) AS rows,
    max(router_sequence) FILTER (WHERE ingested_at < $3) AS settled_to
FROM (
    SELECT
        router_id, router_epoch, router_sequence, ingested_at,
        router_sequence - dense_rank() OVER (PARTITION BY router_id, router_epoch ORDER BY router_sequence) AS run
    FROM model_usage_stats
    WHERE "timestamp" >= $1 AND "timestamp" < $2 AND router_sequence > 0 AND router_epoch <> ''
) AS numbered
GROUP BY router_id, router_epoch, run
ORDER BY router_id, router_epoch, first
LIMIT $4

-- name: duplicate_sequences
-- The sequences of one router and epoch between two others that more than one row has.
SELECT router_sequence, array_agg(id ORDER BY id) AS ids
FROM model_usage_stats
WHERE "timestamp" >= $1 AND "timestamp" < $2 AND router_id = $3 AND router_epoch = $4
  AND router_sequence BETWEEN $5 AND $6
GROUP BY router_sequence
HAVING count(*) > 1
ORDER BY router_sequence
LIMIT $7

-- name: sequence_runs_between
-- The same for some routers and epochs, between two sequences of each.
SELECT router_id, router_epoch, min(router_sequence) AS first, max(router_sequence) AS last
FROM (
    SELECT
        entry.router_id, entry.router_epoch, entry.router_sequence,
        entry.router_sequence - dense_rank() OVER (
            PARTITION BY entry.router_id, entry.router_epoch ORDER BY entry.router_sequence
        ) AS run
    FROM model_usage_stats AS entry
    JOIN unnest($3::text[], $4::text[], $5::bigint[], $6::bigint[]) AS wanted (router_id, router_epoch, first, last)
        ON wanted.router_id = entry.router_id AND wanted.router_epoch = entry.router_epoch
        AND entry.router_sequence BETWEEN wanted.first AND wanted.last
    WHERE entry."timestamp" >= $1 AND entry."timestamp" < $2
) AS numbered
GROUP BY router_id, router_epoch, run
ORDER BY router_id, router_epoch, first
LIMIT $7

-- name: first_sequences
-- The lowest sequence of each router and epoch among the rows of a span.
SELECT router_id, router_epoch, min(router_sequence) AS first
FROM model_usage_stats
WHERE "timestamp" >= $1 AND "timestamp" < $2 AND router_sequence > 0 AND router_epoch <> ''
GROUP BY router_id, router_epoch

-- name: quarantined_sequences
-- The sequences of quarantined events.
SELECT DISTINCT router_id, router_epoch, router_sequence
FROM usage_events_rejected
WHERE router_sequence > 0 AND router_epoch <> ''

-- name: open_attempts
-- Routers that say that an attempt has been running since before a time.
SELECT
    count(*) AS checked,
    count(*) FILTER (WHERE open_count > 0 AND oldest_open_at < $1) AS wrong,
    array_agg(router_id || ' epoch ' || epoch ORDER BY oldest_open_at, router_id, epoch)
        FILTER (WHERE open_count > 0 AND oldest_open_at < $1) AS journals,
    array_agg(oldest_open_at ORDER BY oldest_open_at, router_id, epoch)
        FILTER (WHERE open_count > 0 AND oldest_open_at < $1) AS opened_at
FROM usage_journals
WHERE reported_at IS NOT NULL

-- name: try_lock
-- Whether this session is the only one that audits on schedule.
SELECT pg_try_advisory_lock(7449363208146612598)
