-- The last pause, resume and scaling of each queue. An empty node stands for all nodes, and a queue
-- named * for all queues. Only the extension's functions write it.
CREATE TABLE {prefix}.obanrs_queue_signals (
    name text COLLATE "C" NOT NULL,
    queue text COLLATE "C" NOT NULL,
    node text COLLATE "C" NOT NULL,
    paused boolean,
    queue_limit integer,
    paused_at timestamptz,
    limit_at timestamptz,
    PRIMARY KEY (name, queue, node)
);
COMMENT ON TABLE {prefix}.obanrs_queue_signals IS
    'obanrs: the last pause, resume and scaling of each queue, as oban_queue_signals shows them';
