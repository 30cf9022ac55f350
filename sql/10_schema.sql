-- First: what functions and views rely on.

-- Terms of leaderships, of all prefixes of this database. Kept by pg_dump, so that a restored database
-- goes on above the terms that its applications have seen.
CREATE SEQUENCE @extschema@.obanrs_term AS bigint;
SELECT pg_catalog.pg_extension_config_dump('@extschema@.obanrs_term', '');
