-- Weekly partitions of the ledger. Names and bounds are made by storage/partitions.py from dates, never from input.

-- name: lock
-- One process at a time changes partitions; the lock ends with the transaction.
SELECT pg_advisory_xact_lock(7449363208146612597)

-- name: list_partitions
-- The partitions that exist, by name.
SELECT child.relname AS name
FROM pg_inherits
JOIN pg_class AS child ON child.oid = pg_inherits.inhrelid
WHERE pg_inherits.inhparent = 'model_usage_stats'::regclass

-- name: create_partition
-- A table like the ledger; attached in a second step, because that does not stop readers and writers of the ledger.
CREATE TABLE {name} (LIKE model_usage_stats INCLUDING ALL)

-- name: attach_partition
-- Make the new table the ledger's part for one week.
ALTER TABLE model_usage_stats ATTACH PARTITION {name} FOR VALUES FROM ('{start}') TO ('{end}')

-- name: drop_partition
-- Drop a week of raw rows; its rollups stay.
DROP TABLE {name}

-- name: limit_lock_wait
-- Give up soon on a table lock: whoever waits for one holds up all traffic behind it.
SET LOCAL lock_timeout = '1s'
