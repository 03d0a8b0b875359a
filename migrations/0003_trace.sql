-- What `tiergate why` tells beyond the columns of a row: route, gateway, worker, hold, steps, prices. Narrow rows stay narrow: one
-- column, null in rows of earlier versions.
ALTER TABLE usage ADD COLUMN trace jsonb;
