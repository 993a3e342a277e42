-- Correcting what rows cost, with their share in every rollup. Locks are taken in the order in which ingest takes them:
-- rows, then the day, hour and minute rollups, each by key.

-- name: next_day
-- The first tenant and day, from a given one on, with usage of a provider and model in a window.
SELECT tenant_id, bucket
FROM usage_rollup_day
WHERE (tenant_id, bucket) >= ($1::uuid, $2::timestamptz)
  AND ($3::uuid IS NULL OR tenant_id = $3)
  AND bucket >= $4::timestamptz
  AND bucket < $5::timestamptz
  AND ($6 = '' OR provider = $6)
  AND ($7 = '' OR model_name = $7)
ORDER BY tenant_id, bucket
LIMIT 1

-- name: read_rows
-- A tenant's rows in a window after a given one, in order of time and id.
SELECT id, tenant_id, "timestamp", provider, model_name, status, error_class, funding, absorbed, usage_source,
    input_tokens, output_tokens, cached_read_tokens, cached_write_tokens, reasoning_tokens, estimated_cost_usd,
    price_id, pricing_state
FROM model_usage_stats
WHERE tenant_id = $1
  AND "timestamp" >= $2
  AND "timestamp" < $3
  AND ("timestamp", id) > ($4::timestamptz, $5::uuid)
  AND ($6 = '' OR provider = $6)
  AND ($7 = '' OR model_name = $7)
ORDER BY "timestamp", id
LIMIT $8

-- name: lock_rows
-- Completes read_rows: nobody else changes these rows until the transaction ends.
FOR NO KEY UPDATE

-- name: correct_rows
-- Give rows their new price and append the adjustments. The rows are locked, so the next revision is nobody else's.
WITH correction AS (
    SELECT *
    FROM unnest(
        $2::timestamptz[], $3::uuid[], $4::text[], $5::text[], $6::text[], $7::bigint[], $8::numeric[], $9::text[],
        $10::bigint[], $11::numeric[], $12::numeric[]
    ) AS one (
        used_at, id, provider, model_name, old_pricing_state, old_price_id, old_cost_usd, new_pricing_state,
        new_price_id, new_cost_usd, delta_usd
    )
),
corrected AS (
    UPDATE model_usage_stats AS stored
    SET estimated_cost_usd = correction.new_cost_usd,
        price_id = correction.new_price_id,
        pricing_state = correction.new_pricing_state
    FROM correction
    WHERE stored.tenant_id = $1 AND stored."timestamp" = correction.used_at AND stored.id = correction.id
      AND stored."timestamp" >= $15::timestamptz AND stored."timestamp" < $16::timestamptz
    RETURNING stored.id
),
appended AS (
    INSERT INTO usage_cost_adjustments (
        tenant_id, "timestamp", event_id, revision, provider, model_name, old_pricing_state, old_price_id,
        old_cost_usd, new_pricing_state, new_price_id, new_cost_usd, delta_usd, reason, job_id
    )
    SELECT
        $1, used_at, id,
        1 + coalesce(
            (
                SELECT max(earlier.revision)
                FROM usage_cost_adjustments AS earlier
                WHERE earlier.tenant_id = $1 AND earlier."timestamp" = used_at AND earlier.event_id = correction.id
            ), 0
        ),
        provider, model_name, old_pricing_state, old_price_id, old_cost_usd, new_pricing_state, new_price_id,
        new_cost_usd, delta_usd, $13, $14
    FROM correction
)
SELECT count(*) FROM corrected

-- name: lock_rollups
-- Lock the rollup rows that the corrections touch, in the order of their key. The braces stand for a grain.
SELECT
FROM unnest($2::timestamptz[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::boolean[], $9::text[])
    AS change (bucket, provider, model_name, status, error_class, funding, absorbed, usage_source)
JOIN usage_rollup_{grain} AS rollup
    ON rollup.tenant_id = $1 AND rollup.bucket = change.bucket AND rollup.provider = change.provider
    AND rollup.model_name = change.model_name AND rollup.status = change.status
    AND rollup.error_class = change.error_class AND rollup.funding = change.funding
    AND rollup.absorbed = change.absorbed AND rollup.usage_source = change.usage_source
ORDER BY rollup.tenant_id, rollup.bucket, rollup.provider, rollup.model_name, rollup.status, rollup.error_class,
    rollup.funding, rollup.absorbed, rollup.usage_source
FOR NO KEY UPDATE OF rollup

-- name: change_rollups
-- Add the corrections to the rollup rows that are still kept; returns how many those are.
WITH changed AS (
    UPDATE usage_rollup_{grain} AS rollup
    SET cost_usd = rollup.cost_usd + change.cost_usd,
        unpriced_attempts = rollup.unpriced_attempts + change.unpriced_attempts,
        unpriced_tokens = rollup.unpriced_tokens + change.unpriced_tokens
    FROM unnest(
        $2::timestamptz[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::boolean[], $9::text[],
        $10::numeric[], $11::bigint[], $12::bigint[]
    ) AS change (
        bucket, provider, model_name, status, error_class, funding, absorbed, usage_source, cost_usd,
        unpriced_attempts, unpriced_tokens
    )
    WHERE rollup.tenant_id = $1 AND rollup.bucket = change.bucket AND rollup.provider = change.provider
      AND rollup.model_name = change.model_name AND rollup.status = change.status
      AND rollup.error_class = change.error_class AND rollup.funding = change.funding
      AND rollup.absorbed = change.absorbed AND rollup.usage_source = change.usage_source
    RETURNING rollup.bucket
)
SELECT count(*) FROM changed

-- name: adjustments
-- A tenant's adjustments of usage in a window after a given one: newest usage, then latest revision first.
SELECT event_id, "timestamp", revision, provider, model_name, old_cost_usd, old_price_id, new_cost_usd, new_price_id,
    delta_usd, reason, job_id, created_at
FROM usage_cost_adjustments
WHERE tenant_id = $1
  AND "timestamp" >= $2
  AND "timestamp" < $3
  AND ($4::uuid IS NULL OR job_id = $4)
  AND ("timestamp", event_id, revision) < ($5::timestamptz, $6::uuid, $7::integer)
ORDER BY "timestamp" DESC, event_id DESC, revision DESC
LIMIT $8
