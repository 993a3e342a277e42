-- The price book.

-- name: load
-- Every entry, past and future.
SELECT id, provider, model_name, input_usd, output_usd, cached_read_usd, cached_write_usd, reasoning_usd,
    max_prompt_tokens, effective_at, source
FROM model_prices

-- name: add
-- Enter prices; one that stands there already stays.
INSERT INTO model_prices (
    provider, model_name, input_usd, output_usd, cached_read_usd, cached_write_usd, reasoning_usd, max_prompt_tokens,
    effective_at, source
)
SELECT
    provider, model_name, input_usd, output_usd, cached_read_usd, cached_write_usd, reasoning_usd, max_prompt_tokens,
    effective_at, source
FROM unnest(
    $1::text[], $2::text[], $3::numeric[], $4::numeric[], $5::numeric[], $6::numeric[], $7::numeric[], $8::bigint[],
    $9::timestamptz[], $10::text[]
) AS offered (
    provider, model_name, input_usd, output_usd, cached_read_usd, cached_write_usd, reasoning_usd, max_prompt_tokens,
    effective_at, source
)
ORDER BY provider, model_name, effective_at
ON CONFLICT (provider, model_name, effective_at) DO NOTHING
