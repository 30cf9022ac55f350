//! What do the sessions do that call functions and ask views?

use std::time::{Duration, Instant};

use postgres::{Client, SimpleQueryMessage};

use super::World;
use super::arguments::{line, odd_json, pick, quoted, value, wire};
use crate::errors::Function;
use crate::splitbrain::Dice;

const ROLES: [&str; 4] = ["postgres", "owner", "writer", "nobody"];

/// Statements that set, hold or hide something in the session.
const SET: &str = r#"
    SET search_path = shadow, pg_catalog
    SET search_path = shadow, pg_catalog, ext, public
    SET search_path = ''
    SET search_path = nowhere, "$user", app
    SET search_path = pg_temp, pg_catalog, shadow
    SET search_path = ext
    RESET search_path
    SET statement_timeout = 1
    SET statement_timeout = 5
    SET statement_timeout = 50
    RESET statement_timeout
    SET lock_timeout = 1
    SET default_transaction_read_only = on
    SET default_transaction_read_only = off
    SET default_transaction_isolation = 'serializable'
    SET default_transaction_isolation = 'repeatable read'
    RESET default_transaction_isolation
    SET obanrs.notifier = postgres
    RESET obanrs.notifier
    SET session_replication_role = replica
    RESET session_replication_role
    SET row_security = off
    SET ROLE grouped
    RESET ROLE
    SET plan_cache_mode = force_generic_plan
    SET TimeZone = 'Asia/Kathmandu'
    SET DateStyle = 'German'
    SET IntervalStyle = 'sql_standard'
    SET work_mem = '64kB'
    SET client_min_messages = error
    SET client_encoding = 'SQL_ASCII'
    RESET client_encoding
    SET escape_string_warning = off
    SET temp_tablespaces = pg_default
    RESET ALL
    DISCARD ALL
    DISCARD PLANS
    UNLISTEN *
    LISTEN "public.oban_insert"
    CREATE TEMP TABLE IF NOT EXISTS oban_jobs (id bigint, state text, queue text)
    CREATE TEMP TABLE IF NOT EXISTS oban_peers (name text, node text)
    SELECT pg_catalog.set_config(name, 'on', false) FROM pg_catalog.pg_settings WHERE name OPERATOR(pg_catalog.~) '^(force|debug)_parallel'
    SELECT pg_catalog.pg_advisory_lock_shared(1)
"#;

/// Statements on a view.
const VIEWED: &str = r#"
    SELECT * FROM ext.{}
    SELECT pg_catalog.count(*) FROM ext.{}
    SELECT * FROM ext.{} LIMIT 1
    SELECT x FROM ext.{} x ORDER BY 1 DESC
    SELECT x FROM pg_catalog.generate_series(1, 20) g, ext.{} x
    SELECT * FROM ext.{} FOR UPDATE
    TABLE ext.{}
"#;

/// A statement, and the object of the extension that it is about: a function, a view or a sequence.
pub struct Call {
    pub object: String,
    pub sql: String,
}

/// A thread of the test, with one connection after another.
pub struct Session<'a> {
    pub world: &'a World,
    pub dice: Dice,
    pub client: Client,
    /// Members that it joined. It may have left some of them.
    members: Vec<i64>,
}

impl<'a> Session<'a> {
    pub fn new(world: &'a World, seed: u64) -> Self {
        let client = world.cluster.client();
        Self { world, dice: Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)), client, members: Vec::new() }
    }

    pub fn connect(&mut self, roles: &[&'static str]) {
        let role = pick(&mut self.dice, roles);
        // If the server can't be reached, the watch finds that.
        while !self.world.stopped() {
            match self.world.cluster.try_client("postgres", role) {
                Ok(client) => return self.client = client,
                Err(_) => self.dice.pause(20),
            }
        }
    }

    /// Runs a statement and counts its outcome. Returns its rows, or None when it failed.
    pub fn run(&mut self, object: Option<&str>, sql: &str) -> Option<Vec<SimpleQueryMessage>> {
        if self.client.is_closed() {
            return None;
        }
        let since = Instant::now();
        let answer = self.client.simple_query(sql);
        let took = since.elapsed();
        match answer {
            Ok(rows) => {
                self.world.note(object, "00000", sql, took);
                Some(rows)
            }
            Err(error) => {
                match error.as_db_error() {
                    Some(e) => {
                        let within = e.where_().unwrap_or_default();
                        let example = format!("{} {within}<- {sql}", e.message());
                        self.world.note(object, e.code().code(), &example, took);
                    }
                    None => self.world.tally.lock().expect("no session panicked").lost += 1,
                }
                None
            }
        }
    }

    pub fn call(&mut self, call: &Call) {
        let Some(rows) = self.run(Some(&call.object), &call.sql) else { return };
        if call.object == "oban_join"
            && let Some(SimpleQueryMessage::Row(row)) =
                rows.iter().find(|m| matches!(m, SimpleQueryMessage::Row(_)))
            && let Some(member) = row.get(0).and_then(|m| m.parse().ok())
        {
            self.members.push(member);
        }
    }

    /// Returns a call of any function, procedure, view or sequence, with any arguments.
    fn any(&mut self) -> Call {
        let world = self.world;
        // Most calls of a procedure fail, because it works outside of transactions only. So there are more.
        let procedures: Vec<_> = world.functions.iter().filter(|function| function.is_procedure).collect();
        if self.dice.below(16) == 0 {
            let procedure = procedures[self.dice.below(procedures.len() as u64) as usize];
            return self.function(procedure);
        }
        let functions = world.functions.len() as u64;
        let nth = self.dice.below(functions + world.relations.len() as u64 + 8);
        if nth >= functions {
            let relation = &world.relations[((nth - functions) as usize) % world.relations.len()];
            return self.view(relation);
        }
        self.function(&world.functions[nth as usize])
    }

    /// Returns such a call that can be prepared.
    fn query(&mut self) -> Call {
        loop {
            let call = self.any();
            if !call.sql.starts_with("CALL") && !call.sql.starts_with("EXPLAIN") {
                return call;
            }
        }
    }

    fn view(&mut self, relation: &str) -> Call {
        let form = line(&mut self.dice, VIEWED);
        let sql = if relation == "obanrs_term" && self.dice.below(8) == 0 {
            "SELECT pg_catalog.nextval('ext.obanrs_term')".into()
        } else {
            form.replace("{}", relation)
        };
        Call { object: relation.into(), sql }
    }

    fn function(&mut self, function: &Function) -> Call {
        let hostility =
            pick(&mut self.dice, if function.is_procedure { &[0, 0, 10, 100] } else { &[0, 10, 30, 100] });
        let mut values: Vec<(&str, String)> = Vec::new();
        for (name, kind, _) in &function.arguments {
            let hostile = self.dice.below(100) < hostility;
            let own = name == "member" && !self.members.is_empty() && !hostile;
            let value = if own {
                pick(&mut self.dice, &self.members).to_string()
            } else {
                value(&mut self.dice, name, kind, hostile)
            };
            // An argument of CALL can't be a subquery.
            let called = function.is_procedure && value.starts_with("(SELECT");
            values.push((name, if called { "NULL".into() } else { value }));
        }
        let values: Vec<(&str, &str)> = values.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let mut sql = function.call(&values);
        if let Some(call) = sql.strip_prefix("SELECT * FROM ") {
            sql = match self.dice.below(10) {
                0 => format!("SELECT {call}"),
                1 => format!("SELECT x FROM pg_catalog.generate_series(1, 3) g, LATERAL {call} x"),
                2 => format!("EXPLAIN ANALYZE SELECT {call}"),
                3 => format!("SELECT (SELECT x FROM {call} x LIMIT 1) FROM pg_catalog.generate_series(1, 3)"),
                _ => sql,
            };
        }
        Call { object: function.name.strip_prefix("ext.").expect("it is qualified").into(), sql }
    }

    fn set_something(&mut self) {
        let mut set = line(&mut self.dice, SET).to_owned();
        if self.dice.below(8) == 0 {
            let check = r#"{"name":"Oban","node":"n","queue":"q","#;
            let payload = match self.dice.below(3) {
                0 => odd_json(&mut self.dice),
                1 => quoted(&odd_json(&mut self.dice).trim_matches('\'').replacen('{', check, 1)),
                _ => wire(&mut self.dice),
            };
            let channel = pick(&mut self.dice, &["public.oban_gossip", "app.oban_gossip", "r1.oban_gossip"]);
            set = format!("SELECT pg_catalog.pg_notify('{channel}', {payload})");
        }
        self.run(None, &set);
    }

    /// Makes some calls, in some kind of transaction.
    fn situation(&mut self) {
        let world = self.world;
        match self.dice.below(12) {
            0 => self.set_something(),
            1..=3 => self.transaction(),
            4 => self.caught(),
            5 => {
                // One message with two statements is one transaction.
                let first = self.any();
                let second = match world.functions.iter().find(|f| f.name == format!("ext.{}", first.object))
                {
                    Some(function) => self.function(function),
                    None => self.view(&first.object),
                };
                let sql = format!("{}; {}", first.sql, second.sql);
                self.run(Some(&first.object), &sql);
            }
            6 => {
                let call = self.query();
                self.run(Some(&call.object), &format!("PREPARE hostile AS {}", call.sql));
                for _ in 0..self.dice.below(8) {
                    self.run(Some(&call.object), "EXECUTE hostile");
                }
                self.run(None, "DEALLOCATE ALL");
            }
            7 => {
                let call = self.query();
                let hold = pick(&mut self.dice, &["", "WITH HOLD"]);
                self.run(None, "BEGIN");
                self.run(Some(&call.object), &format!("DECLARE hostile CURSOR {hold} FOR {}", call.sql));
                self.run(Some(&call.object), "FETCH 1 FROM hostile");
                let end = pick(&mut self.dice, &["COMMIT", "ROLLBACK"]);
                self.run(None, end);
                self.run(Some(&call.object), "FETCH ALL FROM hostile");
                self.run(None, "CLOSE ALL");
            }
            _ => {
                let call = self.any();
                self.call(&call);
            }
        }
    }

    fn transaction(&mut self) {
        let begin = pick(
            &mut self.dice,
            &[
                "BEGIN",
                "BEGIN",
                "BEGIN READ ONLY",
                "BEGIN ISOLATION LEVEL REPEATABLE READ",
                "BEGIN ISOLATION LEVEL SERIALIZABLE",
                "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY",
            ],
        );
        self.run(None, begin);
        for _ in 0..1 + self.dice.below(4) {
            let saved = self.dice.below(4) > 0;
            if saved {
                self.run(None, "SAVEPOINT hostile");
            }
            let call = self.any();
            self.call(&call);
            if saved {
                let end = pick(
                    &mut self.dice,
                    &[
                        "ROLLBACK TO hostile",
                        "ROLLBACK TO hostile",
                        "RELEASE hostile",
                        "ROLLBACK TO hostile; RELEASE hostile",
                        "",
                    ],
                );
                self.run(None, end);
            }
        }
        match self.dice.below(6) {
            0 => {
                let id = format!("'hostile {}'", self.dice.below(1 << 30));
                self.run(None, &format!("PREPARE TRANSACTION {id}"));
                let end = pick(&mut self.dice, &["COMMIT", "ROLLBACK"]);
                self.run(None, "ROLLBACK");
                self.run(None, &format!("{end} PREPARED {id}"));
            }
            1 | 2 => drop(self.run(None, "ROLLBACK")),
            3 => drop(self.run(None, "COMMIT AND CHAIN; COMMIT")),
            _ => drop(self.run(None, "COMMIT")),
        }
    }

    /// Makes calls in PL/pgSQL, which goes on after an error.
    fn caught(&mut self) {
        let calls: Vec<Call> = (0..1 + self.dice.below(4)).map(|_| self.any()).collect();
        let mut body = String::new();
        for (i, call) in calls.iter().enumerate() {
            body.push_str(&format!(
                "FOR i IN 1..2 LOOP
                    BEGIN
                        EXECUTE $hostile${}$hostile$;
                        PERFORM pg_catalog.set_config('hostile.c{i}', '00000', false);
                    EXCEPTION WHEN OTHERS THEN
                        PERFORM pg_catalog.set_config('hostile.c{i}', SQLSTATE, false),
                                pg_catalog.set_config('hostile.m{i}', SQLERRM, false);
                    END;
                 END LOOP; ",
                call.sql
            ));
        }
        if self.run(None, &format!("DO $do$ BEGIN {body} END $do$")).is_none() {
            return;
        }
        for (i, call) in calls.iter().enumerate() {
            let ask = format!(
                "SELECT pg_catalog.current_setting('hostile.c{i}', true), pg_catalog.current_setting('hostile.m{i}', true)"
            );
            let Some(rows) = self.run(None, &ask) else { return };
            if let Some(SimpleQueryMessage::Row(row)) =
                rows.iter().find(|m| matches!(m, SimpleQueryMessage::Row(_)))
                && let Some(code) = row.get(0).filter(|code| !code.is_empty())
            {
                let example = format!("{} <- caught: {}", row.get(1).unwrap_or_default(), call.sql);
                self.world.note(Some(&call.object), code, &example, Duration::ZERO);
            }
        }
    }

    /// Makes calls on many connections, until the test stops.
    pub fn work(&mut self) {
        while !self.world.stopped() {
            self.connect(&ROLES);
            for _ in 0..10 + self.dice.below(100) {
                if self.world.stopped() || self.client.is_closed() {
                    break;
                }
                self.situation();
            }
        }
    }
}
