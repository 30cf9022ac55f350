//! `oban_install` and `oban_uninstall` on tables of another role.
//!
//! Each file here answers one question about them. This file has what they share.

mod accepted;
mod event_triggers;
mod owners_code;
mod races;

use postgres::Client;

use crate::support::{Ask, Cluster};

/// Creates a role `tenant` that owns the schema `t` and may create schemas. Its functions count how often
/// another role runs them. They count in a sequence, which a rollback does not take back. Returns the
/// superuser's connection and the tenant's.
fn tenant(cluster: &Cluster) -> (Client, Client) {
    let mut root = cluster.client();
    root.batch_execute(
        "CREATE ROLE tenant LOGIN; GRANT CREATE ON DATABASE postgres TO tenant; CREATE SCHEMA t AUTHORIZATION tenant;
         CREATE SEQUENCE public.ran_as_others MINVALUE 0 START 0; GRANT ALL ON SEQUENCE public.ran_as_others TO PUBLIC;
         SET client_min_messages = warning",
    )
    .unwrap();
    let mut tenant = cluster.client_as("postgres", "tenant");
    tenant
        .batch_execute(
            "SET client_min_messages = warning;
             CREATE FUNCTION t.spy() RETURNS void LANGUAGE plpgsql AS
                 $$ BEGIN IF current_user <> 'tenant' THEN PERFORM nextval('public.ran_as_others'); END IF; END $$;
             SELECT nextval('public.ran_as_others');
             CREATE TYPE t.e AS ENUM ('a', 'b');
             CREATE FUNCTION t.text_of(t.e) RETURNS text LANGUAGE plpgsql AS
                 $$ BEGIN PERFORM t.spy(); RETURN '1'; END $$;
             CREATE FUNCTION t.bigint_of(t.e) RETURNS bigint LANGUAGE plpgsql AS
                 $$ BEGIN PERFORM t.spy(); RETURN 1; END $$;
             CREATE CAST (t.e AS text) WITH FUNCTION t.text_of(t.e);
             CREATE CAST (t.e AS bigint) WITH FUNCTION t.bigint_of(t.e);
             CREATE FUNCTION t.yes(text) RETURNS boolean IMMUTABLE LANGUAGE plpgsql AS
                 $$ BEGIN PERFORM t.spy(); RETURN true; END $$;
             CREATE FUNCTION t.one(text) RETURNS bigint IMMUTABLE LANGUAGE plpgsql AS
                 $$ BEGIN PERFORM t.spy(); RETURN 1; END $$;
             CREATE DOMAIN t.dt AS text CHECK (t.yes(VALUE));
             CREATE DOMAIN t.di AS bigint CHECK (t.yes(VALUE::text));
             CREATE DOMAIN t.dp AS timestamp CHECK (t.yes(VALUE::text))",
        )
        .unwrap();
    (root, tenant)
}

/// How often a role other than the tenant has run the tenant's functions.
fn runs_as_others(root: &mut Client) -> i64 {
    root.one("SELECT last_value FROM public.ran_as_others")
}

/// The rows of the catalogs about all relations in a schema, without the columns that Postgres updates in
/// place.
fn contents(root: &mut Client, schema: u32) -> String {
    root.one(&format!(
        "SELECT string_agg(what, E'\\n' ORDER BY what) FROM (
             SELECT c.oid || ' ' || c.relname || ' ' || c.relnatts || ' ' || c.relowner::regrole AS what
             FROM pg_class c WHERE c.relnamespace = {schema}
             UNION ALL SELECT c.oid || ' ' || a.attnum || ' ' || a.attname
             FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid WHERE c.relnamespace = {schema}
             UNION ALL SELECT c.oid || ' ' || g.tgname
             FROM pg_class c JOIN pg_trigger g ON g.tgrelid = c.oid WHERE c.relnamespace = {schema}
             UNION ALL SELECT t.oid || ' ' || t.typname FROM pg_type t WHERE t.typnamespace = {schema}
             UNION ALL SELECT k.oid || ' ' || k.conname FROM pg_constraint k WHERE k.connamespace = {schema}
             UNION ALL SELECT d.objoid || ' ' || d.description
             FROM pg_class c JOIN pg_description d ON d.objoid = c.oid WHERE c.relnamespace = {schema}
         ) all_of_it"
    ))
}

fn oid(root: &mut Client, schema: &str) -> u32 {
    root.one(&format!("SELECT '{schema}'::regnamespace::oid"))
}

const PEERS: &str =
    "CREATE TABLE t.oban_peers (name text, node text, started_at timestamp, expires_at timestamp";

/// How many of the extension's triggers a table has.
fn triggers(client: &mut Client, table: &str) -> i64 {
    let sql = "SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'obanrs%' AND tgrelid";
    client.one(&format!("{sql} = '{table}'::regclass"))
}
