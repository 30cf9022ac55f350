-- term: which leadership of the name this is; it only rises. boot: the start of the server that a
-- leader's session belongs to; NULL in rows of nodes that are no members of ours.
ALTER TABLE {prefix}.oban_peers ADD COLUMN IF NOT EXISTS term bigint, ADD COLUMN IF NOT EXISTS boot bigint;
