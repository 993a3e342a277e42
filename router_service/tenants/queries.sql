-- The JSON columns are cut off one character past what `rows.MAX_JSON_CHARACTERS` accepts: a huge value, which somebody
-- wrote by hand, is recognised and not carried.

-- name: get_tenant
-- One tenant.
SELECT id, name, left(llm_tokens::text, 65537) AS llm_tokens, left(inference_config::text, 65537) AS inference_config, version, created_at, updated_at
FROM tenants WHERE id = $1;

-- name: lock_tokens
-- The names in a tenant's llm_tokens, none when it is no object, while nobody else changes them.
SELECT ARRAY(
    SELECT jsonb_object_keys(CASE jsonb_typeof(llm_tokens) WHEN 'object' THEN llm_tokens ELSE '{}' END)
) AS names
FROM tenants WHERE id = $1 FOR UPDATE;

-- name: list_tenants
-- A page of tenants in order of creation, after the given position; a null position starts at the first.
SELECT id, name, left(llm_tokens::text, 65537) AS llm_tokens, left(inference_config::text, 65537) AS inference_config, version, created_at, updated_at
FROM tenants
WHERE (created_at, id) > (coalesce($1::timestamptz, '-infinity'), coalesce($2::uuid, '00000000-0000-0000-0000-000000000000'))
ORDER BY created_at, id LIMIT $3;

-- name: list_positions
-- Where the tenants of a page stand in the order of list_tenants.
SELECT created_at, id
FROM tenants
WHERE (created_at, id) > (coalesce($1::timestamptz, '-infinity'), coalesce($2::uuid, '00000000-0000-0000-0000-000000000000'))
ORDER BY created_at, id LIMIT $3;

-- name: list_versions
-- The versions of the tenants that a router holds.
SELECT id, version FROM tenants WHERE id = ANY($1::uuid[]);

-- name: create_tenant
-- A new tenant; no row when the id is taken.
INSERT INTO tenants (id, name, llm_tokens, inference_config) VALUES ($1, $2, $3::jsonb, $4::jsonb)
ON CONFLICT (id) DO NOTHING
RETURNING id, name, left(llm_tokens::text, 65537) AS llm_tokens, left(inference_config::text, 65537) AS inference_config, version, created_at, updated_at;

-- name: update_tenant
-- New name and configuration, if the tenant still has the version that the change was made from.
UPDATE tenants SET name = $3, inference_config = $4::jsonb WHERE id = $1 AND version = $2
RETURNING id, name, left(llm_tokens::text, 65537) AS llm_tokens, left(inference_config::text, 65537) AS inference_config, version, created_at, updated_at;

-- name: set_token
-- One provider's key, beside the others; every spelling of the provider's name that was there goes.
UPDATE tenants SET llm_tokens = ((CASE jsonb_typeof(llm_tokens) WHEN 'object' THEN llm_tokens ELSE '{}' END) - $2::text[]) || jsonb_build_object($3::text, $4::jsonb) WHERE id = $1
RETURNING id, name, left(llm_tokens::text, 65537) AS llm_tokens, left(inference_config::text, 65537) AS inference_config, version, created_at, updated_at;

-- name: delete_token
-- Without one provider's key, however its name was spelled.
UPDATE tenants SET llm_tokens = (CASE jsonb_typeof(llm_tokens) WHEN 'object' THEN llm_tokens ELSE '{}' END) - $2::text[] WHERE id = $1
RETURNING id, name, left(llm_tokens::text, 65537) AS llm_tokens, left(inference_config::text, 65537) AS inference_config, version, created_at, updated_at;

-- name: seal_tokens
-- Newly sealed keys in place of those in clear or sealed with an older key, unless somebody changed the row in between.
UPDATE tenants SET llm_tokens = $3::jsonb WHERE id = $1 AND version = $2
RETURNING id, name, left(llm_tokens::text, 65537) AS llm_tokens, left(inference_config::text, 65537) AS inference_config, version, created_at, updated_at;

-- name: notify
-- Tells every router to read a tenant anew, or all of them.
SELECT pg_notify('turnpike_tenants', $1);
