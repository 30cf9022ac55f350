//! What does the server have before the calls, and what shadows Postgres' own names there?

use postgres::Client;

/// Creates the extension, the roles, and the objects whose names shadow Postgres' own.
pub fn prepare(client: &mut Client) {
    let mut run = |sql: &str| client.batch_execute(sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
    run("CREATE SCHEMA ext; GRANT USAGE ON SCHEMA ext TO PUBLIC; CREATE EXTENSION obanrs SCHEMA ext");
    run("CREATE ROLE owner LOGIN; CREATE ROLE writer LOGIN; CREATE ROLE nobody LOGIN; CREATE ROLE grouped;
         GRANT grouped TO owner, writer; GRANT CREATE ON DATABASE postgres TO owner; CREATE SCHEMA shadow;
         GRANT USAGE, CREATE ON SCHEMA shadow TO PUBLIC");
    run(RESTORE);
    let raises = format!(
        "LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'shadowed' USING ERRCODE = '{SHADOWED_CODE}'; END $$"
    );
    for kind in
        ["text", "name", "oid", "int4", "int8", "timestamp", "timestamptz", "interval", "jsonb", "bool"]
    {
        run(&format!("CREATE FUNCTION shadow.raise(a {kind}, b {kind}) RETURNS bool {raises}"));
        for operator in ["=", "<>", "<", ">", "<=", ">=", "+", "-", "||", "->", "->>", "~"] {
            let operator =
                format!("shadow.{operator} (FUNCTION = shadow.raise, LEFTARG = {kind}, RIGHTARG = {kind})");
            run(&format!("CREATE OPERATOR {operator}"));
        }
    }
    for function in SHADOWED.lines().map(str::trim).filter(|f| !f.is_empty()) {
        run(&format!("CREATE FUNCTION shadow.{function} RETURNS text {raises}"));
    }
    for table in ["pg_class", "pg_namespace", "pg_database", "pg_trigger", "oban_members", "obanrs_term"] {
        run(&format!("CREATE TABLE shadow.{table} (oid oid, relname name, nspname name)"));
    }
}

/// The SQLSTATE that a function or operator raises when it is called in place of Postgres' own.
pub const SHADOWED_CODE: &str = "SHADW";

const SHADOWED: &str = "
    now()
    clock_timestamp()
    current_setting(text)
    current_setting(text, bool)
    current_database()
    quote_ident(text)
    quote_literal(text)
    format(text)
    format_type(oid, int4)
    timezone(text, timestamptz)
    pg_notify(text, text)
    to_jsonb(anyelement)
    nextval(regclass)
    lower(text)
    length(text)
    has_table_privilege(oid, text)
    has_schema_privilege(oid, text)
    pg_has_role(oid, text)
    obj_description(oid, name)
    jsonb_array_length(jsonb)
    oban_version()
    oban_position()
    obanrs_memberships()
";

/// Statements that create again what the DDL has dropped.
pub const RESTORE: &str = "
    CREATE SCHEMA IF NOT EXISTS public; GRANT USAGE ON SCHEMA public TO PUBLIC;
    CREATE SCHEMA IF NOT EXISTS app AUTHORIZATION owner; GRANT USAGE ON SCHEMA app TO PUBLIC;
    SET ROLE owner; SELECT ext.oban_install('app'); GRANT INSERT ON app.oban_jobs TO writer; RESET ROLE;
    SELECT ext.oban_install(); GRANT INSERT ON public.oban_jobs TO writer";
