-- The tenants' own limits.

-- name: limits_of_tenants
-- Every limit of some tenants, tenant by tenant.
SELECT tenant_id, provider, model_name, metric, window_s, limit_value
FROM usage_limits
WHERE tenant_id = ANY($1::uuid[])
ORDER BY tenant_id, provider, model_name, metric, window_s;

-- name: lock_limits_of_tenant
-- Let one process at a time set a tenant's limits, so that their number is known.
SELECT pg_advisory_xact_lock(hashtextextended('turnpike limits ' || $1::uuid::text, 0));

-- name: limit_before
-- What a limit is, and how many others its tenant has.
SELECT max(limit_value) FILTER (
           WHERE provider = $2 AND model_name = $3 AND metric = $4 AND window_s = $5
       ) AS limit_value,
       count(*) FILTER (
           WHERE (provider, model_name, metric, window_s) <> ($2, $3, $4, $5)
       ) AS others
FROM usage_limits
WHERE tenant_id = $1;

-- name: set_limit
-- Set a limit; one that is the same already keeps its time.
INSERT INTO usage_limits AS stored (tenant_id, provider, model_name, metric, window_s, limit_value)
VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (tenant_id, provider, model_name, metric, window_s)
DO UPDATE SET
    limit_value = excluded.limit_value,
    updated_at = CASE WHEN stored.limit_value = excluded.limit_value THEN stored.updated_at ELSE now() END
RETURNING tenant_id, provider, model_name, metric, window_s, limit_value, updated_at;

-- name: delete_limit
-- Remove a limit.
DELETE FROM usage_limits
WHERE tenant_id = $1 AND provider = $2 AND model_name = $3 AND metric = $4 AND window_s = $5
RETURNING tenant_id, provider, model_name, metric, window_s, limit_value, updated_at;

-- name: page_of_limits
-- Limits after a given one, of all tenants or of one, in the order of their key.
SELECT tenant_id, provider, model_name, metric, window_s, limit_value, updated_at
FROM usage_limits
WHERE ($1::uuid IS NULL OR tenant_id = $1)
  AND ($2 = '' OR provider = $2)
  AND (
      $3::uuid IS NULL
      OR (tenant_id, provider, model_name, metric, window_s) > ($3, $4::text, $5::text, $6::text, $7::integer)
  )
ORDER BY tenant_id, provider, model_name, metric, window_s
LIMIT $8;

-- name: told_levels
-- The levels that were last told of some tenants' limits.
SELECT tenant_id, provider, model_name, metric, window_s, window_start, level
FROM usage_limit_levels
WHERE tenant_id = ANY($1::uuid[]);

-- name: tell_levels
-- Remember levels. What another replica has told of the same window meanwhile stays, unless it is better.
INSERT INTO usage_limit_levels AS told (tenant_id, provider, model_name, metric, window_s, window_start, level)
SELECT tenant_id, provider, model_name, metric, window_s, window_start, level
FROM unnest(
    $1::uuid[], $2::text[], $3::text[], $4::text[], $5::integer[], $6::timestamptz[], $7::smallint[], $8::smallint[]
) AS change (tenant_id, provider, model_name, metric, window_s, window_start, level, level_before)
ORDER BY tenant_id, provider, model_name, metric, window_s
ON CONFLICT (tenant_id, provider, model_name, metric, window_s)
DO UPDATE SET window_start = excluded.window_start, level = excluded.level, changed_at = now()
WHERE told.window_start < excluded.window_start
   OR (told.window_start = excluded.window_start AND told.level < excluded.level);

-- name: lower_levels
-- Lower levels, or forget them where that is HEALTHY (1); only those that are still as they were when it was decided.
WITH change AS (
    SELECT *
    FROM unnest(
        $1::uuid[], $2::text[], $3::text[], $4::text[], $5::integer[], $6::timestamptz[], $7::smallint[], $8::smallint[]
    ) AS one (tenant_id, provider, model_name, metric, window_s, window_start, level, level_before)
),
found AS (
    SELECT told.tenant_id, told.provider, told.model_name, told.metric, told.window_s, change.level
    FROM usage_limit_levels AS told
    JOIN change USING (tenant_id, provider, model_name, metric, window_s)
    WHERE told.window_start = change.window_start AND told.level = change.level_before
    ORDER BY told.tenant_id, told.provider, told.model_name, told.metric, told.window_s
    FOR UPDATE OF told
),
forgotten AS (
    DELETE FROM usage_limit_levels AS told
    USING found
    WHERE told.tenant_id = found.tenant_id AND told.provider = found.provider AND told.model_name = found.model_name
      AND told.metric = found.metric AND told.window_s = found.window_s AND found.level = 1
)
UPDATE usage_limit_levels AS told
SET level = found.level, changed_at = now()
FROM found
WHERE told.tenant_id = found.tenant_id AND told.provider = found.provider AND told.model_name = found.model_name
  AND told.metric = found.metric AND told.window_s = found.window_s AND found.level > 1;

-- name: recent_consumption
-- What was used in windows of less than a minute, by tenant, window, provider and model; from rows, of which there are
-- few.
SELECT asked.tenant_id, asked.window_key, raw.provider, raw.model_name, count(*) AS requests,
       sum(raw.total_tokens)::bigint AS tokens, coalesce(sum(raw.estimated_cost_usd), 0) AS cost_usd
FROM unnest($1::uuid[], $2::integer[], $3::timestamptz[], $4::timestamptz[])
    AS asked (tenant_id, window_key, starts_at, ends_at)
JOIN model_usage_stats AS raw
    ON raw.tenant_id = asked.tenant_id AND raw."timestamp" >= asked.starts_at AND raw."timestamp" < asked.ends_at
WHERE raw."timestamp" >= $5::timestamptz AND raw."timestamp" < $6::timestamptz
GROUP BY asked.tenant_id, asked.window_key, raw.provider, raw.model_name;

-- name: forget_levels
-- Remove levels of windows that are long over.
DELETE FROM usage_limit_levels WHERE changed_at < $1;
