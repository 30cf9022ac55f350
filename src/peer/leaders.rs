//! The functions that say which node leads. Those about this session or a named node read shared
//! memory. The others read the table.

use std::cell::Cell;

use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::Names;
use crate::error::{self, Error};
use crate::logic::ids::{SchemaOid, Term};
use crate::logic::leadership::{Electorate, LeadershipsView, Node, RowIdentity};
use crate::logic::text::Text;
use crate::logic::times::WallTime;
use crate::pg::argument::TextArgument;
use crate::pg::datum::Shown;
use crate::pg::scan::{self, Locked};
use crate::pg::tuple::{self, Column, Tuple};
use crate::pg::{clock, latch, session, spi, time};
use crate::prefix::rights::{self, Right};
use crate::prefix::{peers_catalog, prefixes};
use crate::shmem::Segment;

thread_local! {
    /// The seat that this session asked for last. Most sessions ask for one name again and again.
    static LAST_SEAT: Cell<usize> = const { Cell::new(0) };
}

/// Returns the term of the leadership that a member of this session holds, or with `node` the named
/// node. `None`: that session or node does not lead.
fn led_by(view: &LeadershipsView<'_>, electorate: &Electorate, node: Option<&str>) -> Option<Term> {
    let (seat, now) = (view.seat_near(electorate, LAST_SEAT.get())?, clock::now());
    LAST_SEAT.set(seat);
    let (held, leader) = view.held(seat, now)?;
    let mine = match node {
        Some(node) => held.node.as_str() == node,
        None => leader.is_of(latch::my_pid(), session::began_at()),
    };
    mine.then_some(held.lease.term)
}

/// Returns the term of the leadership that this session holds, or with `node` the named node.
/// `None`: that session or node does not lead. To ask about a node takes the right to read the
/// prefix; without it, `Err` is 42501, or 3F000 without such a schema. To ask about this session
/// takes no right. `Err` is 55000 if the library is not preloaded.
fn term_of(
    name: Option<TextArgument>,
    node: Option<TextArgument>,
    prefix: Option<TextArgument>,
) -> Result<Option<Term>, Error> {
    let names = Names::of(name, prefix)?;
    let node: Option<Node> = node.map(|n| error::name("node", Some(n))).transpose()?;
    let electorate = match node {
        Some(_) => Some(names.electorate(Right::Read)?),
        None => names.known(),
    };
    let segment = Segment::require()?;
    // This session leads nothing in a schema that does not exist.
    let Some(electorate) = electorate else { return Ok(None) };
    Ok(segment.leaderships_view(|v| led_by(&v, &electorate, node.as_ref().map(Node::as_str))))
}

#[pg_extern(volatile, parallel_restricted)]
fn oban_is_leader(
    name: default!(Option<TextArgument>, "'Oban'"),
    node: default!(Option<TextArgument>, "NULL"),
    prefix: default!(Option<TextArgument>, "'public'"),
) -> Result<bool, ErrorReport> {
    Ok(term_of(name, node, prefix)?.is_some())
}

/// Has the signature of oban_is_leader and does nothing: a benchmark compares the two.
#[cfg(feature = "bench")]
#[pg_extern(volatile, parallel_restricted)]
fn obanrs_bench_is_leader(
    _name: default!(Option<TextArgument>, "'Oban'"),
    _node: default!(Option<TextArgument>, "NULL"),
    _prefix: default!(Option<TextArgument>, "'public'"),
) -> Result<bool, ErrorReport> {
    Ok(true)
}

#[pg_extern(volatile, parallel_restricted)]
fn oban_term(
    name: default!(Option<TextArgument>, "'Oban'"),
    node: default!(Option<TextArgument>, "NULL"),
    prefix: default!(Option<TextArgument>, "'public'"),
) -> Result<Option<i64>, ErrorReport> {
    Ok(term_of(name, node, prefix)?.map(|term| term.0))
}

/// A leader, as the leader's row in oban_peers says.
pub struct LeaderRow {
    pub name: String,
    pub node: String,
    /// Whether a foreign node has written the row, and not the keeper.
    pub foreign: bool,
    term: Option<i64>,
    started_at: Option<TimestampWithTimeZone>,
    expires_at: Option<TimestampWithTimeZone>,
}

/// The longest name of an instance or a node that is shown, in bytes. Oban's own names are host
/// names and the like.
const MAX_SHOWN: usize = 1_024;

/// Returns the unexpired rows of a schema's oban_peers, of one name or of all, sorted by name.
/// `None`: the table can't be read. The rows are those of the table, not those of shared memory,
/// because the table also has foreign leaders of names without members, and because a standby has
/// the table. The rights are those of the extension's functions. So the table's own rights and
/// policies are not tested, and code of the table's owner never runs in the asking session.
///
/// For a row that shared memory knows, shared memory says whether the lease holds. So all calls
/// give one answer, whatever the wall clock shows. Other rows are judged by the wall clock.
/// `prefix` is the schema's name, for messages.
///
/// `Err` is 3F000 or 42501 if the schema or the right to read it is gone, and 55000 if the table is
/// unlogged and this server is in recovery.
pub fn leaders(
    schema: SchemaOid,
    prefix: &str,
    name: Option<&str>,
    locked: Locked,
) -> Result<Option<Vec<LeaderRow>>, Error> {
    type Columns = (Column, Column, Column, Column, [Option<Column>; 2]);
    let (now, wall) = (clock::now(), time::now());
    let (segment, database) = (Segment::attached(), session::database());
    let find = |column: &dyn Fn(&str) -> Option<Column>| -> Option<Columns> {
        let typed = |name: &str, kind: pg_sys::Oid| column(name).filter(|c| c.type_oid == kind);
        let text = |name: &str| column(name).filter(|c| tuple::is_name(c.type_oid));
        let time = |name: &str| typed(name, pg_sys::TIMESTAMPOID);
        let numbers = ["term", "boot"].map(|name| typed(name, pg_sys::INT8OID));
        Some((text("name")?, text("node")?, time("started_at")?, time("expires_at")?, numbers))
    };
    let read = |row: &Tuple, columns: &Columns| {
        let (of_name, node, started_at, expires_at, [term, boot]) = columns;
        let ends = WallTime(row.i64(*expires_at)?);
        let own = row.short_text(*of_name, MAX_SHOWN).filter(|own| name.is_none_or(|name| own == name))?;
        let (term_read, started) = (term.and_then(|term| row.i64(term)), row.i64(*started_at).map(WallTime));
        let holds = Text::new(&own).and_then(|name| {
            let electorate = Electorate { database, schema, name };
            let (term, started_at) = (Term(term_read.unwrap_or(0)), started.unwrap_or(WallTime::ZERO));
            let row_is = RowIdentity { term, started_at, expires_at: ends };
            segment?.leaderships_view(|v| v.holds(&electorate, row_is, now))
        });
        if !holds.unwrap_or(ends > wall) {
            return None;
        }
        Some(LeaderRow {
            name: own,
            node: row.short_text(*node, MAX_SHOWN)?,
            foreign: boot.and_then(|boot| row.i64(boot)).is_none(),
            term: term_read,
            started_at: started.and_then(time::timestamptz),
            expires_at: time::timestamptz(ends),
        })
    };
    // If another table has the name by the time of the lock, the search begins again. A table that
    // is replaced again and again gives no answer.
    for _ in 0..3 {
        let Some(table) = peers_catalog::info_in(schema) else { return Ok(None) };
        let admit = |unlogged: bool| {
            rights::require_in(schema, prefix, Right::Read)?;
            if unlogged && session::in_recovery() {
                return Err(Error::UnloggedInRecovery { table: spi::qualified(prefix, "oban_peers") });
            }
            Ok(peers_catalog::info_in(schema).is_some_and(|now| now.oid == table.oid))
        };
        if let Some(mut rows) = scan::rows(table.oid, locked, admit, find, read)? {
            rows.sort_by(|a, b| a.name.cmp(&b.name));
            return Ok(Some(rows));
        }
        if locked != Locked::Wait {
            break;
        }
    }
    Ok(None)
}

#[pg_extern(volatile, parallel_restricted)]
fn oban_leader(
    name: default!(Option<TextArgument>, "'Oban'"),
    prefix: default!(Option<TextArgument>, "'public'"),
) -> Result<
    TableIterator<
        'static,
        (
            name!(node, Shown),
            name!(term, Option<i64>),
            name!(started_at, Option<TimestampWithTimeZone>),
            name!(expires_at, Option<TimestampWithTimeZone>),
        ),
    >,
    ErrorReport,
> {
    let names = Names::of(name, prefix)?;
    let electorate = names.electorate(Right::Read)?;
    let name = electorate.name.as_str();
    let rows = leaders(electorate.schema, names.prefix(), Some(name), Locked::Wait)?.unwrap_or_default();
    Ok(TableIterator::new(rows.into_iter().map(|r| (Shown(r.node), r.term, r.started_at, r.expires_at))))
}

/// Returns the rows of the view oban_leadership: those of every prefix that the caller may read and
/// that has a table of leaders, installed or not. Leaves out a prefix whose table can't be read at
/// the moment, because a tenant's lock must not hold up a reader of all prefixes.
#[pg_extern(volatile, parallel_restricted)]
fn obanrs_leadership() -> TableIterator<
    'static,
    (
        name!(prefix, Shown),
        name!(name, Shown),
        name!(node, Shown),
        name!(term, Option<i64>),
        name!(started_at, Option<TimestampWithTimeZone>),
        name!(expires_at, Option<TimestampWithTimeZone>),
    ),
> {
    let prefixes =
        prefixes::named_schemas().into_iter().filter(|(_, schema)| rights::allows_in(*schema, Right::Read));
    let rows: Vec<_> = prefixes
        .flat_map(|(prefix, schema)| {
            let rows =
                leaders(schema, &prefix, None, Locked::Skip).ok().flatten().unwrap_or_default().into_iter();
            rows.map(move |r| {
                let (prefix, name, node) = (Shown(prefix.clone()), Shown(r.name), Shown(r.node));
                (prefix, name, node, r.term, r.started_at, r.expires_at)
            })
        })
        .collect();
    TableIterator::new(rows)
}
