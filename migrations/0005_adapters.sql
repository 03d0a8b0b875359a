-- Adapters that were imported with `tiergate adapter import`. id = name-<16 digits of the file's SHA-256> names one content for ever:
-- assignments, jobs, prefix caches and usage rows carry it. The file is ADAPTERS_DIR/<tenant_id>/<id>.gguf.
CREATE TABLE adapters (
    tenant_id uuid NOT NULL REFERENCES tenants (id),
    id text NOT NULL CHECK (length(id) BETWEEN 18 AND 63),
    name text NOT NULL CHECK (length(name) BETWEEN 1 AND 46),
    model text NOT NULL CHECK (length(model) BETWEEN 1 AND 63),
    bytes bigint NOT NULL CHECK (bytes > 0),
    sha256 bytea NOT NULL CHECK (length(sha256) = 32),
    imported_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, id)
);
