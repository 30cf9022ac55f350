//! Does each wrong argument get an error that shows the value and names what helps?

use super::{functions, outcome, refused};
use crate::support::{Ask, Cluster};

#[test]
fn a_null_argument_is_an_error_that_names_it() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    let mut tried = 0;
    for function in functions(&mut client) {
        for (name, _, default) in &function.arguments {
            let optional = default.as_ref().is_some_and(|d| d.starts_with("NULL"));
            // A NULL term is a term that is not held: 40001.
            let of_fence = function.name == "oban_fence" && name == "term";
            if !optional && !of_fence {
                let call = function.call(&[(name, "NULL")]);
                refused(&mut client, &call, "22004", &format!("\"{name}\""), name);
                tried += 1;
            }
        }
    }
    assert!(tried > 30, "only {tried} arguments were tried");
    for call in [
        "oban_notify_many('insert', ARRAY['{}', NULL]::jsonb[])",
        "oban_listen_channels(ARRAY['insert', NULL])",
    ] {
        refused(&mut client, &format!("SELECT {call}"), "22004", "", "Leave");
    }
}

/// Each text argument of each function is empty, and too long. No text is cut in silence.
#[test]
fn empty_and_endless_texts_are_refused() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    for function in functions(&mut client) {
        for (name, kind, _) in &function.arguments {
            let (empty, endless) = match kind.as_str() {
                "text" => ("''", "repeat('x', 3000)"),
                "text[]" => ("ARRAY['']", "ARRAY[repeat('x', 3000)]"),
                _ => continue,
            };
            // Oban drops an empty tag.
            let empty = if name == "tags" { endless } else { empty };
            if function.takes_error(name) || (function.name == "oban_notify_text" && name == "payload") {
                continue; // it is any text
            }
            // With an empty prefix, a channel is verbatim.
            let verbatim = name == "prefix" && (function.has("channel") || function.has("channels"));
            if !verbatim {
                let call = function.call(&[(name, empty)]);
                refused(&mut client, &call, "22023", "", "");
            }
            let call = function.call(&[(name, endless)]);
            refused(&mut client, &call, "22023", "", "");
            let error = outcome(&mut client, &call).unwrap_err();
            assert!(error.message().len() < 500, "it shows an excerpt only: {error}");
        }
    }
}

#[test]
fn a_prefix_that_does_not_exist_is_named() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    for function in functions(&mut client).iter().filter(|f| f.has("prefix")) {
        let call = function.call(&[("prefix", "'nowhere'")]);
        match function.name.as_str() {
            // oban_install creates the prefix. oban_unlisten_channels only takes names off this session's
            // list.
            "oban_install" | "oban_unlisten_channels" => {
                assert!(outcome(&mut client, &call).is_ok(), "{call}")
            }
            _ => refused(&mut client, &call, "3F000", "\"nowhere\"", "oban_install('nowhere')"),
        }
        client.batch_execute("DROP SCHEMA IF EXISTS nowhere CASCADE").unwrap();
    }
}

#[test]
fn wrong_values_are_shown_with_what_helps() {
    let cluster = Cluster::start(&["shared_preload_libraries = 'obanrs'", "obanrs.max_members = 1"]);
    let mut client = cluster.client();
    client.batch_execute("CREATE EXTENSION obanrs; SELECT oban_install(), oban_join('taken')").unwrap();
    let mut other = cluster.client();
    let noise =
        "(SELECT jsonb_build_object('x', string_agg(md5(i::text), '')) FROM generate_series(1, 2000) i)";
    for (call, code, shows, helps) in [
        ("oban_notify('insert', '[]')", "22023", "[]", "wrap it"),
        ("oban_notify('insert', '1')", "22023", "1", "wrap it"),
        ("oban_notify_many('insert', ARRAY['{}', '\"x\"']::jsonb[])", "22023", "\"x\"", "wrap it"),
        ("oban_notify('Insert', '{}')", "22023", "\"Insert\"", "lower-case"),
        ("oban_notify('insert', '{}', 'a.b')", "22023", "\"a.b\"", "rename"),
        ("oban_notify(repeat('x', 60), '{}')", "22023", "72 bytes", "63 bytes"),
        ("oban_notify('', '{}', '')", "22023", "channel is empty", "as LISTEN has it"),
        ("oban_notify_text('', 'x')", "22023", "channel is empty", "as LISTEN has it"),
        ("oban_notify_text('x', repeat('é', 4000))", "54000", "8000 bytes", "send its key"),
        ("oban_listen_channels('{Insert}')", "22023", "\"Insert\"", "lower-case"),
        ("oban_unlisten_channels('{a b}')", "22023", "\"a b\"", "lower-case"),
        ("oban_install('a.b')", "22023", "\"a.b\"", "rename"),
        ("oban_install('pg_temp_3')", "42939", "\"pg_temp_3\"", "another schema"),
        ("oban_install('pg_toast')", "42939", "\"pg_toast\"", "another schema"),
        ("oban_install('information_schema')", "42939", "\"information_schema\"", "another schema"),
        ("oban_watch('oban_jobs', '')", "22023", "channel is empty", "object_queue"),
        ("oban_watch('oban_jobs', 'c', 'lane')", "22023", "\"lane\"", "system column"),
        ("oban_watch('oban_jobs', 'c', 'queue', payload_column => 'id')", "22023", "both", "queue_column"),
        ("oban_watch('oban_jobs', 'c', events => '{insert,upsert}')", "22023", "\"upsert\"", "delete"),
        ("oban_watch('oban_jobs', 'c', events => '{}')", "22023", "events is empty", "delete"),
        ("oban_watch('oban_jobs', 'c', condition => 'OLD.id > 1')", "22023", "OLD", "INSERT"),
        ("oban_watch('oban_jobs', 'c', condition => 'true; DROP')", "22023", "\";\"", "one expression"),
        (
            "oban_watch('oban_members', 'c')",
            "42809",
            "public.oban_members is a view",
            "the tables that it reads",
        ),
        ("oban_watch(7, 'c')", "42P01", "7", "dropped"),
        ("oban_encode('[1]')", "22023", "[1]", "wrap it"),
        ("oban_decode('Z:nonsense')", "22023", "", "H4sI"),
        ("oban_decode('{')", "22023", "\"{\"", "H4sI"),
        ("oban_join('x', lease => '1ms')", "22023", "lease is 0.001 s", "100 ms"),
        ("oban_join('x', lease => '25h')", "22023", "lease is 90000 s", "a day"),
        ("oban_orphans(grace => '-1s')", "22023", "grace is -1 s", "at least 0"),
        ("oban_orphans(grace => '-1us')", "22023", "grace is -0.000001 s", "at least 0"),
        ("oban_orphans(grace => '10 years')", "22023", "grace is 3", "a year"),
        ("oban_orphans('pg_catalog')", "42939", "\"pg_catalog\"", "another schema"),
        ("oban_rescue(grace => '-1s')", "22023", "grace is -1 s", "at least 0"),
        ("oban_rescue(term => 7)", "40001", "term 7 of \"Oban\"", "oban_renew"),
        ("oban_pause_queue(repeat('x', 128))", "22023", "128 characters", "127"),
        ("oban_scale_queue('*', 1)", "22023", "\"*\"", "one queue"),
        ("oban_start_queue('*', 1)", "22023", "\"*\"", "one queue"),
        ("oban_stop_queue('*')", "22023", "\"*\"", "one queue"),
        ("oban_scale_queue('a', 0)", "22023", "queue_limit is 0", "1 or more"),
        ("oban_start_queue('a', -5)", "22023", "queue_limit is -5", "1 or more"),
        ("oban_renew(7)", "55000", "7 is no member", "Join again"),
        ("oban_resign(7)", "55000", "7 is no member", "Join again"),
        ("oban_fence(7)", "40001", "term 7 of \"Oban\"", "oban_renew"),
        ("oban_join('x', repeat('n', 300))", "22023", "\"name\" has 300 bytes", "fit"),
        ("oban_join('x')", "53400", "member", "obanrs.max_members"),
        ("oban_join('x')", "53400", "member", "oban_leave"),
        ("oban_poll(after => -1)", "22023", "-1", "last answer"),
        ("oban_poll(max_messages => 0)", "22023", "max_messages is 0", "at least 1"),
        ("oban_poll(array_fill('a'::text, ARRAY[65]))", "22023", "channels has 65", "64"),
        ("oban_poll('{Insert}')", "22023", "\"Insert\"", "lower-case"),
        ("oban_gossip_put('a', 'q', '[]')", "22023", "", ""),
        ("oban_insert_job(repeat('x', 128))", "22023", "128 characters", "127"),
        ("oban_insert_job('w', '[1]')", "22023", "args is no JSON object, but of the kind array", "keys"),
        (
            "oban_insert_job('w', meta => '7')",
            "22023",
            "meta is no JSON object, but of the kind number",
            "keys",
        ),
        ("oban_insert_job('w', priority => 10)", "22023", "priority is 10", "from 0 to 9"),
        ("oban_insert_job('w', max_attempts => 0)", "22023", "max_attempts is 0", "from 1"),
        ("oban_insert_job('w', schedule_in => '-1 s')", "22023", "schedule_in is -1 s", "hundred years"),
        ("oban_insert_job('w', scheduled_at => 'infinity')", "22023", "scheduled_at", "9999"),
        (
            "oban_insert_job('w', scheduled_at => now(), schedule_in => '1 s')",
            "22023",
            "both scheduled_at and schedule_in",
            "one of them",
        ),
        ("oban_insert_job('w', unique_for => '0')", "22023", "unique_for is 0 s", "unique_keys"),
        ("oban_insert_job('w', unique_states => '{done}')", "22023", "\"done\"", "completed"),
        ("oban_insert_job('w', unique_states => '{}')", "22023", "unique_states is empty", "completed"),
        ("oban_insert_job('w', tags => array_fill('a'::text, ARRAY[101]))", "22023", "101 elements", "100"),
        ("oban_insert_jobs('{}')", "22023", "jobs is no JSON array, but of the kind object", "of one job"),
        ("oban_insert_jobs('[1]')", "22023", "jobs[0]: it is no JSON object", "worker"),
        ("oban_insert_jobs('[{}]')", "22023", "jobs[0]: \"worker\" is missing", "unique_for"),
        (
            "oban_insert_jobs('[{\"worker\": \"w\"}, {\"worker\": 1}]')",
            "22023",
            "jobs[1]: \"worker\" is",
            "string",
        ),
        (
            "oban_insert_jobs('[{\"worker\": \"w\", \"job\": 1}]')",
            "22023",
            "jobs[0]: \"job\" is no key",
            "worker",
        ),
        ("oban_prune(max_age => '-1 us')", "22023", "max_age is -0.000001 s", "hundred years"),
        ("oban_prune(max_jobs => 0)", "22023", "max_jobs is 0", "from 1"),
        ("oban_gossip_put('a', 'q', '{\"running\": 1}')", "22023", "running", ""),
        ("oban_gossip_put('a', 'q', ttl => '0s')", "22023", "ttl", ""),
        ("oban_gossip_put('a', 'q', ttl => '2 years')", "22023", "ttl", ""),
        ("oban_gossip_put('a', 'q', jsonb_build_object('x', repeat('x', 70000)))", "22023", "state", ""),
    ] {
        refused(&mut other, &format!("SELECT {call}"), code, shows, helps);
    }
    // These payloads are too long even when they are packed: random text does not compress.
    for call in [format!("oban_notify('insert', {noise})"), format!("oban_encode({noise})")] {
        refused(&mut other, &format!("SELECT {call}"), "54000", "7999", "table");
    }
    let pid: i32 = client.one("SELECT pg_backend_pid()");
    refused(&mut other, "SELECT oban_join('taken')", "23505", "\"taken\"", &pid.to_string());
    let read_only = "BEGIN READ ONLY; SELECT oban_install('new')";
    refused(&mut other, read_only, "25006", "install", "READ WRITE");
    other.batch_execute("ROLLBACK").unwrap();
    let error = outcome(&mut other, "SET obanrs.no_such_setting = 1").unwrap_err();
    assert_eq!(error.code().code(), "42602");
    for (call, code, shows, helps) in [
        ("oban_take('{a}', 'n', timeout => '-1s')", "22023", "timeout is -1 s", "at most a day"),
        ("oban_take('{}', 'n')", "22023", "queues is empty", "Name the queues"),
        ("oban_wait(timeout => '-1s')", "22023", "timeout is -1 s", "at most a day"),
        ("oban_wait(timeout => '25h')", "22023", "timeout is 90000 s", "at most a day"),
        ("oban_wait(after => -7)", "22023", "-7", "last answer"),
    ] {
        refused(&mut other, &format!("CALL {call}"), code, shows, helps);
    }
    for block in [
        "BEGIN; CALL oban_wait()",
        "BEGIN; DO $$ DECLARE p bigint; m bigint; j jsonb; BEGIN CALL oban_wait(\"position\" => p, missed => m, messages => j); END $$",
    ] {
        refused(&mut other, block, "25001", "oban_wait", "oban_poll");
        other.batch_execute("ROLLBACK").unwrap();
    }
    // None of these calls changed anything.
    assert_eq!(client.one::<i64>("SELECT count(*) FROM oban_members"), 1);
    assert_eq!(client.one::<i64>("SELECT count(*) FROM oban_gossip"), 0);
    assert_eq!(client.one::<i64>("SELECT count(*) FROM pg_namespace WHERE nspname IN ('a.b', 'new')"), 0);
}
