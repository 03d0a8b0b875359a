-- Models that were added with `tiergate model add`: what was looked at, so that `verify` can tell whether it is still that. Which models are
-- served is the configuration's; assignments name them.
CREATE TABLE models (
    name text PRIMARY KEY CHECK (length(name) BETWEEN 1 AND 63),
    path text NOT NULL,
    format text NOT NULL CHECK (format IN ('gguf', 'safetensors')),
    tier text NOT NULL DEFAULT '',
    template text NOT NULL DEFAULT '',
    revision text NOT NULL,
    shape jsonb NOT NULL,
    context integer NOT NULL CHECK (context > 0),
    added_at timestamptz NOT NULL DEFAULT now(),
    verified_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE model_files (
    model text NOT NULL REFERENCES models (name) ON DELETE CASCADE,
    file text NOT NULL, -- within the directory; of a single file its own name
    bytes bigint NOT NULL CHECK (bytes >= 0),
    sha256 bytea NOT NULL CHECK (length(sha256) = 32),
    PRIMARY KEY (model, file)
);
