-- Tenants, users, keys, assignments and the ledger. Ids are UUIDv7 made by the application.
CREATE TABLE tenants (
    id uuid PRIMARY KEY,
    name text NOT NULL UNIQUE CHECK (name ~ '^[a-z0-9][a-z0-9._-]{0,62}$'),
    weight double precision NOT NULL DEFAULT 1 CHECK (weight > 0 AND weight <= 1000),
    created_at timestamptz NOT NULL DEFAULT now(),
    suspended_at timestamptz
);

CREATE TABLE users (
    id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL REFERENCES tenants (id),
    name text NOT NULL CHECK (length(name) BETWEEN 1 AND 63),
    created_at timestamptz NOT NULL DEFAULT now(),
    suspended_at timestamptz,
    UNIQUE (tenant_id, name)
);

-- The key itself is shown once and stored nowhere: hash = HMAC-SHA-256(pepper, key).
CREATE TABLE api_keys (
    id uuid PRIMARY KEY,
    public_id text NOT NULL UNIQUE CHECK (length(public_id) = 8),
    user_id uuid NOT NULL REFERENCES users (id),
    name text NOT NULL DEFAULT '' CHECK (length(name) <= 63),
    pepper_id bigint NOT NULL,
    hash bytea NOT NULL CHECK (length(hash) = 32),
    roles integer NOT NULL DEFAULT 1 CHECK (roles BETWEEN 1 AND 3),
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    revoked_at timestamptz,
    last_used_at timestamptz
);
CREATE INDEX api_keys_user ON api_keys (user_id);

-- A tenant may call a model only by a name it was assigned: the model's own id or an alias.
CREATE TABLE assignments (
    tenant_id uuid NOT NULL REFERENCES tenants (id),
    name text NOT NULL CHECK (length(name) BETWEEN 1 AND 63),
    model text NOT NULL CHECK (length(model) BETWEEN 1 AND 63),
    adapter text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, name)
);

-- The ledger: one row per accepted request, unique by request_id alone. at and day come from the settlement, never from now().
CREATE TABLE usage (
    request_id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL,
    user_id uuid NOT NULL,
    key_id uuid NOT NULL,
    at timestamptz NOT NULL,
    accepted_at timestamptz NOT NULL,
    endpoint text NOT NULL,
    task text NOT NULL,
    model text NOT NULL,
    adapter text NOT NULL DEFAULT '',
    tier text NOT NULL,
    outcome text NOT NULL,
    attempts integer NOT NULL CHECK (attempts >= 0),
    prompt_tokens bigint NOT NULL CHECK (prompt_tokens >= 0),
    cached_tokens bigint NOT NULL CHECK (cached_tokens >= 0),
    completion_tokens bigint NOT NULL CHECK (completion_tokens >= 0),
    money bigint NOT NULL CHECK (money >= 0), -- nano-units
    queue_ms bigint NOT NULL,
    first_token_ms bigint, -- null: none was made
    total_ms bigint NOT NULL,
    engine_us bigint NOT NULL
);
CREATE INDEX usage_tenant_at ON usage (tenant_id, at);

-- Sums of usage per scope and UTC day, written in the transaction of the rows: quota_used = sum over usage, always.
-- scope: 't', 'u:<user>', 'k:<key>', 'm:<model>'.
CREATE TABLE quota_used (
    tenant_id uuid NOT NULL,
    scope text NOT NULL,
    day date NOT NULL,
    requests bigint NOT NULL DEFAULT 0,
    tokens bigint NOT NULL DEFAULT 0,
    money bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (tenant_id, scope, day)
);

CREATE FUNCTION notify_api_keys() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('api_keys', NEW.id::text);
    RETURN NEW;
END $$;
CREATE TRIGGER api_keys_changed AFTER UPDATE OF revoked_at, expires_at, roles ON api_keys
    FOR EACH ROW EXECUTE FUNCTION notify_api_keys();

CREATE FUNCTION notify_owner() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('api_keys', ''); -- everything may have changed
    RETURN NEW;
END $$;
CREATE TRIGGER tenants_changed AFTER UPDATE OF suspended_at, weight ON tenants
    FOR EACH ROW EXECUTE FUNCTION notify_owner();
CREATE TRIGGER users_changed AFTER UPDATE OF suspended_at ON users
    FOR EACH ROW EXECUTE FUNCTION notify_owner();

CREATE FUNCTION notify_assignments() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('assignments', '');
    RETURN NULL;
END $$;
CREATE TRIGGER assignments_changed AFTER INSERT OR UPDATE OR DELETE ON assignments
    FOR EACH STATEMENT EXECUTE FUNCTION notify_assignments();
