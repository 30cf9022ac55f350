-- What an UPDATE of these tables would run of a role that is no superuser. A stager asks this, in a session whose
-- search_path somebody else may have set: everything is qualified.
WITH RECURSIVE tables AS (
    SELECT pg_catalog.unnest($1::pg_catalog.oid[]) AS oid
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
JOIN pg_catalog.pg_authid r ON r.oid OPERATOR(pg_catalog.=) p.proowner AND NOT r.rolsuper
WHERE u.class OPERATOR(pg_catalog.=) 'pg_catalog.pg_proc'::pg_catalog.regclass::pg_catalog.oid
UNION ALL
SELECT pg_catalog.format('table %s of role %I', c.oid::pg_catalog.regclass, r.rolname)
FROM tables t
JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) t.oid
JOIN pg_catalog.pg_authid r ON r.oid OPERATOR(pg_catalog.=) c.relowner AND NOT r.rolsuper
LIMIT 1
