-- The tenants' own limits.

-- name: limits_of_tenant
-- Every limit of a tenant.
SELECT provider, model_name, metric, window_s, limit_value
FROM usage_limits
WHERE tenant_id = $1
ORDER BY provider, model_name, metric, window_s;
