-- The routers' journals: which of their events the ledger has answered for, and how they say that they stand.

-- name: note_answered
-- Add sequences to those that were answered for; the first and last of each range, both included.
INSERT INTO usage_journals AS journal (router_id, epoch, answered, answered_at)
SELECT $1, $2, range_agg(int8range(first, last, '[]')), now()
FROM unnest($3::bigint[], $4::bigint[]) AS noted (first, last)
ON CONFLICT (router_id, epoch) DO UPDATE SET
    answered = journal.answered + excluded.answered,
    answered_at = excluded.answered_at
-- What is resent is noted already, and writes nothing.
WHERE NOT journal.answered @> excluded.answered

-- name: keep_report
-- Keep how a router says that its journal stands; returns all that is known of it.
INSERT INTO usage_journals AS journal (
    router_id, epoch, reported_at, last_sequence, first_waiting_sequence, waiting_count, open_count, held_count,
    dead_letter_count, oldest_waiting_at, oldest_open_at
)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
ON CONFLICT (router_id, epoch) DO UPDATE SET
    reported_at = excluded.reported_at,
    last_sequence = excluded.last_sequence,
    first_waiting_sequence = excluded.first_waiting_sequence,
    waiting_count = excluded.waiting_count,
    open_count = excluded.open_count,
    held_count = excluded.held_count,
    dead_letter_count = excluded.dead_letter_count,
    oldest_waiting_at = excluded.oldest_waiting_at,
    oldest_open_at = excluded.oldest_open_at
RETURNING *

-- name: list_journals
-- Every journal that was ever heard of.
SELECT * FROM usage_journals ORDER BY router_id, epoch
