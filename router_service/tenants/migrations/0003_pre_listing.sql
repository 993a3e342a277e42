-- Tenants are listed by creation time, a page at a time.
CREATE INDEX tenants_by_creation ON tenants (created_at, id);
