-- Tenants, their preferences and their sealed provider keys.

CREATE TABLE tenants (
    id               uuid        PRIMARY KEY,
    name             text        NOT NULL,
    llm_tokens       jsonb       NOT NULL DEFAULT '{}',   -- provider → sealed key; see tenants/sealed_keys.py
    inference_config jsonb       NOT NULL DEFAULT '{}',
    version          bigint      NOT NULL DEFAULT 1,
    created_at       timestamptz NOT NULL DEFAULT now(),
    updated_at       timestamptz NOT NULL DEFAULT now()
);

-- Whoever changes a row, also by hand in psql, moves its version and tells the routers. Sealing a key that was written
-- in clear changes llm_tokens too; it is a new version like any other.
CREATE FUNCTION tenants_touch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.version := OLD.version + 1;
    NEW.updated_at := now();
    RETURN NEW;
END $$;
CREATE TRIGGER tenants_touch BEFORE UPDATE ON tenants FOR EACH ROW EXECUTE FUNCTION tenants_touch();

CREATE FUNCTION tenants_notify() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        PERFORM pg_notify('turnpike_tenants', OLD.id || ' 0');
    ELSE
        PERFORM pg_notify('turnpike_tenants', NEW.id || ' ' || NEW.version);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER tenants_notify AFTER INSERT OR UPDATE OR DELETE ON tenants
    FOR EACH ROW EXECUTE FUNCTION tenants_notify();
