-- Single rows of the ledger.

-- name: newest_records
-- A tenant's rows in a window after a given one, newest first. The primary key gives them in this order.
SELECT id, tenant_id, request_id, "timestamp", ingested_at, attempt, provider, model_name, requested_model, endpoint,
       user_id, status, error_class, error_message, absorbed, input_tokens, output_tokens, cached_read_tokens,
       cached_write_tokens, reasoning_tokens, usage_source, funding, latency_ms, first_token_ms, provider_cost_usd,
       estimated_cost_usd, pricing_state, price_id, router_id, router_sequence, metadata::text AS metadata
FROM model_usage_stats
WHERE tenant_id = $1
  AND "timestamp" >= $2
  AND "timestamp" < $3
  AND ($4 = '' OR provider = $4)
  AND ($5 = '' OR model_name = $5)
  AND ($6::boolean IS NULL OR absorbed = $6)
  AND ($7 = '' OR funding = $7)
  AND ("timestamp", id) < ($8::timestamptz, $9::uuid)
ORDER BY "timestamp" DESC, id DESC
LIMIT $10;

-- name: newest_records_of_request
-- The same for the attempts of one request, which has an index of its own.
SELECT id, tenant_id, request_id, "timestamp", ingested_at, attempt, provider, model_name, requested_model, endpoint,
       user_id, status, error_class, error_message, absorbed, input_tokens, output_tokens, cached_read_tokens,
       cached_write_tokens, reasoning_tokens, usage_source, funding, latency_ms, first_token_ms, provider_cost_usd,
       estimated_cost_usd, pricing_state, price_id, router_id, router_sequence, metadata::text AS metadata
FROM model_usage_stats
WHERE tenant_id = $1
  AND request_id = $11
  AND "timestamp" >= $2
  AND "timestamp" < $3
  AND ($4 = '' OR provider = $4)
  AND ($5 = '' OR model_name = $5)
  AND ($6::boolean IS NULL OR absorbed = $6)
  AND ($7 = '' OR funding = $7)
  AND ("timestamp", id) < ($8::timestamptz, $9::uuid)
ORDER BY "timestamp" DESC, id DESC
LIMIT $10;
