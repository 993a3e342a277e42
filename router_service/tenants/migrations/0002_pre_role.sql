-- The role that router_service works as: it may read and write tenants and nothing else, so that no fault of the router
-- can touch the ledger. Where the login may not create roles the router works as its login, and says so at start.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'turnpike_router') THEN
        BEGIN
            CREATE ROLE turnpike_router NOLOGIN;
        EXCEPTION
            WHEN insufficient_privilege THEN
                RAISE NOTICE 'no privilege to create the role turnpike_router: the service will work as %', current_user;
                RETURN;
            WHEN duplicate_object OR unique_violation THEN
                NULL;  -- another database of this server was migrated at the same moment
        END;
    END IF;
    BEGIN
        IF NOT pg_has_role(current_user, 'turnpike_router', 'MEMBER') THEN
            EXECUTE format('GRANT turnpike_router TO %I', current_user);
        END IF;
    EXCEPTION
        WHEN insufficient_privilege THEN
            RAISE NOTICE 'no privilege to become the role turnpike_router: the service will work as %', current_user;
        WHEN unique_violation THEN
            NULL;
    END;
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO turnpike_router', current_schema());
    GRANT SELECT, INSERT, UPDATE, DELETE ON tenants TO turnpike_router;
END
$$;
