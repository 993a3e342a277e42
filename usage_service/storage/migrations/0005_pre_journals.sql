-- One row per router and epoch of its journal. `answered` are the sequences that the ledger stored, knew or kept aside:
-- with what the router reports, they show from outside whether an event was lost.
CREATE TABLE usage_journals (
    router_id              text NOT NULL,
    epoch                  text NOT NULL,
    answered               int8multirange NOT NULL DEFAULT '{}',
    answered_at            timestamptz,
    reported_at            timestamptz,               -- null: it has not said how it stands; then the rest means nothing
    last_sequence          bigint NOT NULL DEFAULT 0,
    first_waiting_sequence bigint NOT NULL DEFAULT 0, -- 0: none waits
    waiting_count          bigint NOT NULL DEFAULT 0,
    open_count             bigint NOT NULL DEFAULT 0,
    held_count             bigint NOT NULL DEFAULT 0,
    dead_letter_count      bigint NOT NULL DEFAULT 0,
    oldest_waiting_at      timestamptz,
    oldest_open_at         timestamptz,
    PRIMARY KEY (router_id, epoch)
) WITH (fillfactor = 50);  -- updated with every batch: leaves room for it in place

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'turnpike_usage') THEN
        GRANT SELECT, INSERT, UPDATE, DELETE ON usage_journals TO turnpike_usage;
    END IF;
EXCEPTION
    WHEN insufficient_privilege THEN
        RAISE NOTICE 'no privilege to grant rights on usage_journals to turnpike_usage';
END
$$;
