-- Events that the ledger cannot take.

-- name: keep
-- Keep events aside; one that was sent again is there already.
INSERT INTO usage_events_rejected (
    router_id, event_id, disposition, field, reason, payload, payload_hash, router_epoch, router_sequence
)
SELECT router_id, event_id, disposition, field, reason, payload, payload_hash, router_epoch, router_sequence
FROM unnest(
    $1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bytea[], $7::bytea[], $8::text[], $9::bigint[]
) AS kept (
    router_id, event_id, disposition, field, reason, payload, payload_hash, router_epoch, router_sequence
)
ORDER BY event_id, payload_hash
ON CONFLICT (event_id, payload_hash) DO NOTHING
