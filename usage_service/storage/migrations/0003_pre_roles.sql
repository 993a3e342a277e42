-- The role that usage_service works as. It owns nothing and may read and write the ledger only: the tenants' keys, when
-- they live in the same database, are out of its reach. Nothing is granted on tables of other services, whether they
-- exist yet or not.
--
-- Roles belong to the whole server and need CREATEROLE. Where the login may not create them the service works as its
-- login, and says so at start; whoever owns the server can create turnpike_usage beforehand.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'turnpike_usage') THEN
        BEGIN
            CREATE ROLE turnpike_usage NOLOGIN;
        EXCEPTION
            WHEN insufficient_privilege THEN
                RAISE NOTICE 'no privilege to create the role turnpike_usage: the service will work as %', current_user;
                RETURN;
            WHEN duplicate_object OR unique_violation THEN
                NULL;  -- another database of this server was migrated at the same moment
        END;
    END IF;
    BEGIN
        -- From version 16 on whoever creates a role is a member of it, but may not yet become it.
        IF NOT pg_has_role(current_user, 'turnpike_usage',
                           CASE WHEN current_setting('server_version_num')::integer >= 160000 THEN 'SET' ELSE 'MEMBER' END)
        THEN
            EXECUTE format('GRANT turnpike_usage TO %I', current_user);
        END IF;
    EXCEPTION
        WHEN insufficient_privilege THEN
            RAISE NOTICE 'no privilege to become the role turnpike_usage: the service will work as %', current_user;
        WHEN unique_violation THEN
            NULL;
    END;

    -- Everybody may make temporary tables unless the owner of the database took that away.
    BEGIN
        EXECUTE format('GRANT TEMPORARY ON DATABASE %I TO turnpike_usage', current_database());
    EXCEPTION
        WHEN insufficient_privilege THEN
            NULL;
    END;
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO turnpike_usage', current_schema());
    GRANT SELECT, INSERT, UPDATE, DELETE ON
        model_usage_stats, usage_rollup_minute, usage_rollup_hour, usage_rollup_day, usage_events_rejected,
        model_prices, usage_limits
        TO turnpike_usage;
END
$$;
