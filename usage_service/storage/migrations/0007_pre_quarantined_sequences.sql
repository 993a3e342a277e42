-- Which position of its router's journal a quarantined event had, so that an audit does not take it for a lost one.
ALTER TABLE usage_events_rejected
    ADD COLUMN router_epoch    text   NOT NULL DEFAULT '',
    ADD COLUMN router_sequence bigint NOT NULL DEFAULT 0;
