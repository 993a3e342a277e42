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

-- name: lock_book
-- Let one process at a time set a price; each sees what the one before has entered.
SELECT pg_advisory_xact_lock(hashtextextended('turnpike price book', 0))

-- name: find_with_start
-- The entry of a model with a start.
SELECT id, provider, model_name, input_usd, output_usd, cached_read_usd, cached_write_usd, reasoning_usd,
    max_prompt_tokens, effective_at, source
FROM model_prices
WHERE provider = $1 AND model_name = $2 AND effective_at = $3

-- name: remove
-- Take an entry out of the book, to be kept as a replaced one.
DELETE FROM model_prices WHERE id = $1
RETURNING id, provider, model_name, input_usd, output_usd, cached_read_usd, cached_write_usd, reasoning_usd,
    max_prompt_tokens, effective_at, source, created_at

-- name: keep_replaced
-- Keep what was taken out: rows of the ledger may refer to it.
INSERT INTO model_prices_replaced (
    id, provider, model_name, input_usd, output_usd, cached_read_usd, cached_write_usd, reasoning_usd,
    max_prompt_tokens, effective_at, source, created_at, replaced_by
)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)

-- name: history
-- Every entry of a model, replaced ones too: latest start first, then the last entered.
SELECT id, provider, model_name, input_usd, output_usd, cached_read_usd, cached_write_usd, reasoning_usd,
    max_prompt_tokens, effective_at, source, replaced_at,
    (
        SELECT min(following.effective_at)
        FROM model_prices AS following
        WHERE following.provider = $1 AND following.model_name = $2 AND following.effective_at > ever.effective_at
    ) AS expires_at
FROM model_prices_ever AS ever
WHERE provider = $1 AND model_name = $2
ORDER BY effective_at DESC, id DESC
