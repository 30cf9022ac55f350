//! The calls that join, renew, resign and leave, and the rows of the view oban_members.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use pgrx::datum::Interval;
use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::Names;
use super::leaders::leaders;
use crate::backend::memberships::{ended, leave, leave_at_exit};
use crate::config;
use crate::error::{self, Error, given};
use crate::logic::ids::{MemberId, SchemaOid};
use crate::logic::leadership::plan::Membership;
use crate::logic::leadership::{Electorate, JoinError, Joined, Joining, LeadershipsView, Member};
use crate::logic::lifecycle::Lack;
use crate::logic::shape;
use crate::pg::argument::{self, TextArgument};
use crate::pg::datum::Shown;
use crate::pg::scan::Locked;
use crate::pg::{catalog, clock, latch, session, time};
use crate::prefix::peers::{self, Unusable};
use crate::prefix::prefixes;
use crate::prefix::rights::{self, Right};
use crate::shmem::Segment;

/// How long a call waits for the keeper. That is long enough for a keeper that is just starting.
const MAX_WAIT: Duration = Duration::from_secs(1);

/// The leases that a member may have, in microseconds. A client could not renew a shorter lease in
/// time. A lease of more than a day is a mistake in the unit.
const LEASES: std::ops::RangeInclusive<i64> = 100_000..=86_400_000_000;

#[pg_extern(name = "oban_join", volatile, parallel_unsafe)]
fn oban_join_as(
    node: Option<TextArgument>,
    name: default!(Option<TextArgument>, "'Oban'"),
    lease: default!(Option<Interval>, "NULL"),
    replace: default!(Option<bool>, "false"),
    prefix: default!(Option<TextArgument>, "'public'"),
    candidate: default!(Option<bool>, "true"),
    fcinfo: pg_sys::FunctionCallInfo,
) -> Result<i64, ErrorReport> {
    let candidate = given("candidate", candidate)?;
    let said = !(candidate && argument::is_left_out(fcinfo, CANDIDATE));
    Ok(join(node, name, lease, replace, prefix, said.then_some(candidate))?)
}

/// The index of the argument `candidate`.
const CANDIDATE: usize = 5;

/// The symbol of oban_join in the SQL of versions before 0.7.0. Members that join through it always
/// stand for election.
#[pg_extern(sql = false)]
fn oban_join(
    node: Option<TextArgument>,
    name: Option<TextArgument>,
    lease: Option<Interval>,
    replace: Option<bool>,
    prefix: Option<TextArgument>,
) -> Result<i64, ErrorReport> {
    Ok(join(node, name, lease, replace, prefix, Some(true))?)
}

fn join(
    node: Option<TextArgument>,
    name: Option<TextArgument>,
    lease: Option<Interval>,
    replace: Option<bool>,
    prefix: Option<TextArgument>,
    candidate: Option<bool>,
) -> Result<i64, Error> {
    let names = Names::of(name, prefix)?;
    let node = error::name("node", node)?;
    let replace = given("replace", replace)?;
    let lease = lease.map(microseconds).transpose()?;
    let electorate = names.electorate(Right::Write)?;
    if session::in_recovery() {
        return Err(Error::InRecovery("join"));
    }
    if session::is_restricted() {
        return Err(Error::Restricted("join"));
    }
    if let Some(lack @ Lack::Slot { .. }) = Segment::attached().and_then(|segment| segment.lack(false)) {
        return Err(Error::NoPlace { what: "this database's elections", lack });
    }
    if lease.is_none() && config::require_lease() {
        return Err(Error::LeaseRequired);
    }
    let foreign = if candidate.is_none() { foreign_leader(&electorate, names.prefix()) } else { None };
    let segment = Segment::require()?;
    let joining = Joining {
        id: segment.new_member_id(),
        electorate,
        node,
        role: session::role(),
        pid: latch::my_pid(),
        procno: latch::my_procno(),
        session_began: session::began_at(),
        lease: lease.unwrap_or(0),
        candidate,
        foreign_leads: foreign.is_some(),
        wall: time::now(),
        quota: rights::quota_of(config::max_members()),
    };
    if lease.is_none() {
        leave_at_exit();
        session::notice_vanished_client();
    }
    let joined = enter(segment, &joining, replace)?;
    let id = joined.id;
    segment.ensure_keeper(electorate.database);
    wait_until(segment, |v| v.is_considered(id, clock::now()));
    // A foreign node may have committed its row meanwhile.
    let late = candidate.is_none()
        && !joined.again
        && segment.leaderships(|p| p.yield_if_foreign(id, latch::my_procno(), clock::now()));
    if late {
        segment.ensure_keeper(electorate.database);
    }
    if joined.yields || late {
        say_member_only(&electorate, foreign.or_else(|| foreign_leader(&electorate, names.prefix())));
    }
    warn_without_keeper(segment, id);
    warn_without_elections(segment, &electorate, names.prefix());
    Ok(id.0)
}

/// Puts a member into the table of members. With `replace`, a process that may act for the role of
/// the present member takes its node over.
fn enter(segment: Segment, joining: &Joining, replace: bool) -> Result<Joined, Error> {
    let Joining { electorate, node, .. } = joining;
    let mut instead_of = None;
    loop {
        let (joined, replaced) = segment.leaderships(|p| {
            let now = clock::now();
            let replaced = instead_of.and_then(|id| p.view().member(id, now)).map(|(_, m)| *m);
            (p.join(joining, instead_of, now), replaced)
        });
        match joined {
            Ok(joined) => {
                // The gossip of the replaced member's node came from the process that is replaced.
                if let Some(old) = replaced {
                    ended(segment, electorate, &old);
                }
                return Ok(joined);
            }
            Err(JoinError::Full) => {
                return Err(Error::TableFull {
                    what: "another member".into(),
                    setting: "obanrs.max_members",
                });
            }
            Err(JoinError::OtherNode { node }) => {
                let (node, name) = (node.as_str().to_owned(), electorate.name.as_str().to_owned());
                return Err(Error::SessionIsNode { node, name });
            }
            Err(JoinError::QuotaUsed) => {
                return Err(Error::QuotaUsed {
                    role: catalog::quoted_role(session::role()),
                    what: "another member".into(),
                    setting: "obanrs.max_members",
                });
            }
            Err(JoinError::Taken { member, pid, role, lease_ends }) => {
                if !replace {
                    let (node, name) = (node.as_str().to_owned(), electorate.name.as_str().to_owned());
                    let lease_ends = lease_ends.map(|ends| time::iso(clock::to_wall(ends)));
                    return Err(Error::NodeTaken { node, name, pid, lease_ends });
                }
                if !session::acts_for(role) {
                    return Err(not_yours(member));
                }
                instead_of = Some(member);
            }
        }
    }
}

/// Returns the foreign node that leads a name now, by the row of the name. `None`: no foreign node
/// leads, or the table can't be read. A table that another transaction has locked is not waited
/// for.
fn foreign_leader(electorate: &Electorate, prefix: &str) -> Option<String> {
    let name = Some(electorate.name.as_str());
    let rows = leaders(electorate.schema, prefix, name, Locked::Peek).ok().flatten()?;
    rows.into_iter().find(|row| row.foreign).map(|row| row.node)
}

/// Raises a NOTICE that this member, which joined without `candidate`, does not stand for election.
fn say_member_only(electorate: &Electorate, foreign: Option<String>) {
    let name = electorate.name.as_str();
    let why = match foreign {
        Some(node) => format!("the node \"{node}\", which did not join, leads \"{name}\""),
        None => format!("a node that did not join has led \"{name}\" since the server started"),
    };
    error::log(
        PgLogLevel::NOTICE,
        PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION,
        format!("this member does not stand for election, as {why}"),
        "Nodes of Oban for Elixir run cron, staging and pruning on the leader only. Give candidate => true \
         to lead them, candidate => false to silence this, or a name of your own.",
    );
}

/// Raises a WARNING that says why this prefix can hold no election, if the name has no leader.
fn warn_without_elections(segment: Segment, electorate: &Electorate, prefix: &str) {
    if segment.leaderships_view(|v| v.has_leader(electorate, clock::now())) {
        return;
    }
    if prefixes::database_read_only() == Some(true) {
        error::log(
            PgLogLevel::WARNING,
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "this database holds no elections, so that no member leads: it is read-only by default",
            "Run ALTER DATABASE ... SET default_transaction_read_only = off.",
        );
        return;
    }
    let quoted = spi::quote_literal(prefix);
    let (why, hint) = match peers::inspect(electorate.schema) {
        Ok(()) | Err(Unusable::Locked) => return,
        Err(Unusable::Missing | Unusable::Replaced) => (
            "its table of leaders is missing, or not installed".to_owned(),
            format!("Run SELECT oban_install({quoted})."),
        ),
        Err(Unusable::Obstacles(obstacles)) => (
            shape::described(&obstacles),
            "Elections run no code of a table's owner: oban_check() names all that is in the way.".to_owned(),
        ),
    };
    error::log(
        PgLogLevel::WARNING,
        PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
        format!("prefix \"{prefix}\" holds no elections, so that no member leads: {why}"),
        hint,
    );
}

/// Raises a WARNING if the keeper has not considered a member in time. The WARNING says that there
/// is no free worker slot, or else that the keeper does not run, is busy or waits for a lock.
fn warn_without_keeper(segment: Segment, id: MemberId) {
    if segment.leaderships_view(|v| v.is_considered(id, clock::now())) {
        return;
    }
    if let Some(lack @ Lack::Workers { .. }) = segment.lack(false) {
        error::log(
            PgLogLevel::WARNING,
            PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
            format!("nobody elects leaders in this database now, as there is no free worker slot: {lack}"),
            lack.hint(),
        );
    } else {
        error::log(
            PgLogLevel::WARNING,
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "no election within a second: this database's keeper does not run, is busy, or waits for a lock on oban_peers",
            "The election comes by itself, when the keeper is back or the lock is free: oban_check() and \
             oban_workers say more.",
        );
    }
}

/// Returns a lease in microseconds. `Err` is 22023: the lease is not one of `LEASES`.
fn microseconds(lease: Interval) -> Result<i64, Error> {
    let micros = i64::try_from(lease.as_micros()).unwrap_or(i64::MAX);
    if LEASES.contains(&micros) {
        return Ok(micros);
    }
    Err(Error::bad(
        format!("lease is {} s", lease.as_micros() as f64 / 1e6),
        "A lease is at least 100 ms and at most a day long; NULL binds the member to this session.",
    ))
}

/// Waits until the keeper has done what it was woken for, for `MAX_WAIT` at most.
fn wait_until(segment: Segment, done: impl Fn(LeadershipsView<'_>) -> bool) {
    let since = Instant::now();
    loop {
        latch::reset();
        let left = MAX_WAIT.saturating_sub(since.elapsed());
        if left.is_zero() || segment.leaderships_view(&done) {
            return;
        }
        latch::wait(Some(left));
    }
}

/// Returns the member of this id in this database. `None`: there is no such member. `Err` is 42501:
/// the caller may not act for the role that joined it.
fn own_member(segment: Segment, id: MemberId) -> Result<Option<(Electorate, Member)>, Error> {
    let known = segment.leaderships_view(|v| v.member(id, clock::now()).map(|(_, m)| (*v.electorate(m), *m)));
    match known.filter(|(e, _)| e.database == session::database()) {
        Some((_, member)) if !session::acts_for(member.role) => Err(not_yours(id)),
        known => Ok(known),
    }
}

fn not_yours(member: MemberId) -> Error {
    Error::NotYours(format!("member {member} was joined by another role"))
}

/// Returns the electorate of a member that the caller may act for. `Err` is 55000 if there is no
/// such member any more, in recovery (where there are no members), and if the library is not
/// preloaded. `Err` is 42501 if the caller may not act for the role that joined it.
fn required_member(id: MemberId, what: &'static str) -> Result<(Segment, Electorate), Error> {
    if session::in_recovery() {
        return Err(Error::InRecovery(what));
    }
    let segment = Segment::require()?;
    let (electorate, _) = own_member(segment, id)?.ok_or(Error::NoMember(id.0))?;
    Ok((segment, electorate))
}

#[pg_extern(volatile, parallel_unsafe)]
fn oban_renew(member: Option<i64>) -> Result<Option<i64>, ErrorReport> {
    let id = MemberId(given("member", member)?);
    let (segment, electorate) = required_member(id, "renew")?;
    let renewed = segment.leaderships(|p| p.renew(id, latch::my_procno(), clock::now()));
    let renewed = renewed.ok_or(Error::NoMember(id.0))?;
    if !renewed.due {
        return Ok(renewed.term.map(|term| term.0));
    }
    // The answer has to hold for half a lease at least, so the keeper renews the row first.
    segment.ensure_keeper(electorate.database);
    wait_until(segment, |v| v.is_considered(id, clock::now()));
    let term = segment.leaderships_view(|v| v.term_of(id, clock::now()));
    Ok(term.map(|term| term.0))
}

#[pg_extern(volatile, parallel_unsafe)]
fn oban_resign(member: Option<i64>) -> Result<bool, ErrorReport> {
    let id = MemberId(given("member", member)?);
    let (segment, electorate) = required_member(id, "resign")?;
    let led = segment.leaderships(|p| p.resign(id, latch::my_procno(), clock::now()));
    let led = led.ok_or(Error::NoMember(id.0))?;
    if led {
        segment.ensure_keeper(electorate.database);
        wait_until(segment, |v| v.is_considered(id, clock::now()));
    }
    Ok(led)
}

#[pg_extern(volatile, parallel_unsafe)]
fn oban_leave(member: Option<i64>) -> Result<bool, ErrorReport> {
    let id = MemberId(given("member", member)?);
    let segment = Segment::require()?;
    Ok(own_member(segment, id)?.is_some() && leave(segment, id))
}

/// Returns the rows of the view oban_members: those of this database and of the prefixes that the
/// caller may read.
#[pg_extern(volatile, parallel_restricted)]
fn obanrs_memberships() -> Result<
    TableIterator<
        'static,
        (
            name!(prefix, Shown),
            name!(name, Shown),
            name!(node, Shown),
            name!(member, i64),
            name!(kind, &'static str),
            name!(pid, Option<i32>),
            name!(leader, bool),
            name!(joined_at, Option<TimestampWithTimeZone>),
            name!(expires_at, Option<TimestampWithTimeZone>),
            name!(candidate, bool),
        ),
    >,
    ErrorReport,
> {
    Ok(TableIterator::new(shown_members()))
}

/// The symbol of obanrs_members, which the view oban_members calls in the SQL of versions before
/// 0.7.0.
#[pg_extern(sql = false)]
fn obanrs_members() -> Result<
    TableIterator<
        'static,
        (
            name!(prefix, Shown),
            name!(name, Shown),
            name!(node, Shown),
            name!(member, i64),
            name!(kind, &'static str),
            name!(pid, Option<i32>),
            name!(leader, bool),
            name!(joined_at, Option<TimestampWithTimeZone>),
            name!(expires_at, Option<TimestampWithTimeZone>),
        ),
    >,
    ErrorReport,
> {
    let rows = shown_members().into_iter();
    Ok(TableIterator::new(rows.map(|(a, b, c, d, e, f, g, h, i, _)| (a, b, c, d, e, f, g, h, i))))
}

type MemberRow = (
    Shown,
    Shown,
    Shown,
    i64,
    &'static str,
    Option<i32>,
    bool,
    Option<TimestampWithTimeZone>,
    Option<TimestampWithTimeZone>,
    bool,
);

fn shown_members() -> Vec<MemberRow> {
    let Some(segment) = Segment::attached() else { return Vec::new() }; // oban_check says why
    let mut members = segment.leaderships_view(|v| v.members_of(session::database(), clock::now()));
    members.sort_by_key(|m| m.member.id);
    let mut readable = Readable::default();
    members
        .into_iter()
        .filter_map(|Membership { electorate, member: m, leads }| {
            let lease_ends = m.lease_ends();
            Some((
                Shown(readable.name(electorate.schema)?),
                Shown(electorate.name.as_str().to_owned()),
                Shown(m.node.as_str().to_owned()),
                m.id.0,
                if lease_ends.is_none() { "session" } else { "lease" },
                lease_ends.is_none().then_some(m.pid),
                leads,
                time::timestamptz(m.joined_at_wall),
                lease_ends.and_then(|ends| time::timestamptz(clock::to_wall(ends))),
                m.is_candidate(),
            ))
        })
        .collect()
}

/// The names of the schemas that the caller may read, each looked up once.
#[derive(Default)]
struct Readable(HashMap<SchemaOid, Option<String>>);

impl Readable {
    /// Returns the name of a schema. `None`: the caller may not read the schema, or the schema was
    /// dropped.
    fn name(&mut self, schema: SchemaOid) -> Option<String> {
        let named = || catalog::schema_name(schema).filter(|_| rights::allows_in(schema, Right::Read));
        self.0.entry(schema).or_insert_with(named).clone()
    }
}
