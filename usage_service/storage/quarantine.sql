-- Events that the ledger cannot take.

-- name: keep
-- Keep events aside; one that was sent again is there already.
INSERT INTO usage_events_rejected (router_id, event_id, disposition, field, reason, payload, payload_hash)
SELECT router_id, event_id, disposition, field, reason, payload, payload_hash
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bytea[], $7::bytea[])
    AS kept (router_id, event_id, disposition, field, reason, payload, payload_hash)
ORDER BY event_id, payload_hash
ON CONFLICT (event_id, payload_hash) DO NOTHING
