-- What an UPDATE of these tables would run of a role that is no superuser, or may run. A stager asks this, in a session
-- whose search_path somebody else may have set: everything is qualified.
--
-- The catalogs do not say which role wrote an expression. A role with the right TRIGGER writes the WHEN of a trigger, and
-- a former owner may have written the rest. Nothing depends on a function that Postgres has itself, such as one that runs a
-- query, writes a file, or reads a value of any type. So an expression counts if it has a function that is not
-- immutable, a subquery, or a type of such a role. A foreign key counts if it refers to the state: its cascade runs the
-- triggers of the other table.
WITH RECURSIVE tables AS (
    SELECT pg_catalog.unnest($1::pg_catalog.oid[]) AS oid
), others AS (
    -- All roles but superusers and the owner of the first table, as which the stager is connected.
    SELECT r.oid, r.rolname FROM pg_catalog.pg_roles r
    WHERE NOT r.rolsuper AND r.oid OPERATOR(pg_catalog.<>) (
        SELECT c.relowner FROM pg_catalog.pg_class c
        WHERE c.oid OPERATOR(pg_catalog.=) ($1::pg_catalog.oid[])[1]
    )
), used AS (
    (
        SELECT 'pg_catalog.pg_class'::pg_catalog.regclass::pg_catalog.oid AS class, t.oid FROM tables t
        UNION
        SELECT 'pg_catalog.pg_class'::pg_catalog.regclass, x.indexrelid
        FROM tables t JOIN pg_catalog.pg_index x ON x.indrelid OPERATOR(pg_catalog.=) t.oid
        UNION
        SELECT 'pg_catalog.pg_trigger'::pg_catalog.regclass, x.oid
        FROM tables t JOIN pg_catalog.pg_trigger x ON x.tgrelid OPERATOR(pg_catalog.=) t.oid
        UNION
        SELECT 'pg_catalog.pg_constraint'::pg_catalog.regclass, x.oid
        FROM tables t JOIN pg_catalog.pg_constraint x ON x.conrelid OPERATOR(pg_catalog.=) t.oid
        UNION
        SELECT 'pg_catalog.pg_attrdef'::pg_catalog.regclass, x.oid
        FROM tables t JOIN pg_catalog.pg_attrdef x ON x.adrelid OPERATOR(pg_catalog.=) t.oid
        UNION
        SELECT 'pg_catalog.pg_rewrite'::pg_catalog.regclass, x.oid
        FROM tables t JOIN pg_catalog.pg_rewrite x ON x.ev_class OPERATOR(pg_catalog.=) t.oid
        UNION
        SELECT 'pg_catalog.pg_policy'::pg_catalog.regclass, x.oid
        FROM tables t JOIN pg_catalog.pg_policy x ON x.polrelid OPERATOR(pg_catalog.=) t.oid
        UNION
        SELECT 'pg_catalog.pg_statistic_ext'::pg_catalog.regclass, x.oid
        FROM tables t JOIN pg_catalog.pg_statistic_ext x ON x.stxrelid OPERATOR(pg_catalog.=) t.oid
    )
    UNION
    SELECT n.class, n.oid
    FROM used u
    CROSS JOIN LATERAL (
        SELECT d.refclassid AS class, d.refobjid AS oid
        FROM pg_catalog.pg_depend d
        WHERE d.classid OPERATOR(pg_catalog.=) u.class AND d.objid OPERATOR(pg_catalog.=) u.oid
          AND d.refclassid OPERATOR(pg_catalog.=) ANY (ARRAY[
                'pg_catalog.pg_proc'::pg_catalog.regclass, 'pg_catalog.pg_operator'::pg_catalog.regclass,
                'pg_catalog.pg_type'::pg_catalog.regclass, 'pg_catalog.pg_opclass'::pg_catalog.regclass
            ]::pg_catalog.oid[])
        UNION ALL
        -- A domain's constraints.
        SELECT 'pg_catalog.pg_constraint'::pg_catalog.regclass, c.oid
        FROM pg_catalog.pg_constraint c
        WHERE c.contypid OPERATOR(pg_catalog.=) u.oid
          AND u.class OPERATOR(pg_catalog.=) 'pg_catalog.pg_type'::pg_catalog.regclass::pg_catalog.oid
        UNION ALL
        -- The functions of an operator class.
        SELECT 'pg_catalog.pg_proc'::pg_catalog.regclass, p.amproc::pg_catalog.oid
        FROM pg_catalog.pg_opclass o
        JOIN pg_catalog.pg_amproc p ON p.amprocfamily OPERATOR(pg_catalog.=) o.opcfamily
        WHERE o.oid OPERATOR(pg_catalog.=) u.oid
          AND u.class OPERATOR(pg_catalog.=) 'pg_catalog.pg_opclass'::pg_catalog.regclass::pg_catalog.oid
    ) n
)
SELECT pg_catalog.format('function %s of role %I', p.oid::pg_catalog.regprocedure, r.rolname)
FROM used u
JOIN pg_catalog.pg_proc p ON p.oid OPERATOR(pg_catalog.=) u.oid
JOIN others r ON r.oid OPERATOR(pg_catalog.=) p.proowner
WHERE u.class OPERATOR(pg_catalog.=) 'pg_catalog.pg_proc'::pg_catalog.regclass::pg_catalog.oid
UNION ALL
SELECT pg_catalog.format('the tables that refer to the column state by the foreign key %I', k.conname)
FROM tables t
JOIN pg_catalog.pg_constraint k
    ON k.confrelid OPERATOR(pg_catalog.=) t.oid AND k.contype OPERATOR(pg_catalog.=) 'f'
JOIN pg_catalog.pg_attribute a
    ON a.attrelid OPERATOR(pg_catalog.=) t.oid AND a.attname OPERATOR(pg_catalog.=) 'state'
    AND a.attnum OPERATOR(pg_catalog.=) ANY (k.confkey)
UNION ALL
SELECT pg_catalog.format('a function, type or subquery in %s', e.place)
FROM tables t
CROSS JOIN LATERAL (
    SELECT 'the constraint ' OPERATOR(pg_catalog.||) k.conname::pg_catalog.text, k.conbin::pg_catalog.text
    FROM pg_catalog.pg_constraint k WHERE k.conrelid OPERATOR(pg_catalog.=) t.oid AND k.conbin IS NOT NULL
    UNION ALL
    SELECT 'the WHEN of the trigger ' OPERATOR(pg_catalog.||) g.tgname::pg_catalog.text, g.tgqual::pg_catalog.text
    FROM pg_catalog.pg_trigger g WHERE g.tgrelid OPERATOR(pg_catalog.=) t.oid AND g.tgqual IS NOT NULL
    UNION ALL
    SELECT 'a generated column', d.adbin::pg_catalog.text
    FROM pg_catalog.pg_attrdef d
    JOIN pg_catalog.pg_attribute a
        ON a.attrelid OPERATOR(pg_catalog.=) d.adrelid AND a.attnum OPERATOR(pg_catalog.=) d.adnum
    WHERE d.adrelid OPERATOR(pg_catalog.=) t.oid AND a.attgenerated OPERATOR(pg_catalog.<>) ''
    UNION ALL
    SELECT 'the policy ' OPERATOR(pg_catalog.||) l.polname::pg_catalog.text,
        pg_catalog.concat(l.polqual::pg_catalog.text, l.polwithcheck::pg_catalog.text)
    FROM pg_catalog.pg_policy l WHERE l.polrelid OPERATOR(pg_catalog.=) t.oid
) e (place, tree)
WHERE pg_catalog.strpos(e.tree, '{SUBLINK ') OPERATOR(pg_catalog.>) 0
   OR EXISTS (
        SELECT FROM pg_catalog.regexp_matches(e.tree, ':(?:funcid|opfuncid) ([0-9]+)', 'g') f (id)
        JOIN pg_catalog.pg_proc p ON p.oid OPERATOR(pg_catalog.=) f.id[1]::pg_catalog.oid
        WHERE p.provolatile OPERATOR(pg_catalog.<>) 'i'
   )
   OR EXISTS (
        SELECT FROM pg_catalog.regexp_matches(e.tree, ':(?:[a-z]*resulttype|consttype|vartype) ([0-9]+)', 'g') f (id)
        JOIN pg_catalog.pg_type y ON y.oid OPERATOR(pg_catalog.=) f.id[1]::pg_catalog.oid
        JOIN others r ON r.oid OPERATOR(pg_catalog.=) y.typowner
   )
UNION ALL
SELECT pg_catalog.format('table %s of role %I', c.oid::pg_catalog.regclass, r.rolname)
FROM tables t
JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) t.oid
JOIN others r ON r.oid OPERATOR(pg_catalog.=) c.relowner
LIMIT 1
