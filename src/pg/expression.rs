//! A condition that a user gives as text, parsed by Postgres' own parser.

use std::panic::{RefUnwindSafe, UnwindSafe};

use pgrx::pg_sys;
use pgrx::pg_sys::panic::CaughtError;
use pgrx::prelude::*;

use super::{c_name, c_string};
use crate::logic::ids::TableOid;

/// A parsed expression, which is not analyzed yet: its names mean nothing so far. The tree is in
/// Postgres' memory until the function's call ends.
#[derive(Clone, Copy)]
pub struct Expression(*mut pg_sys::Node);

impl Expression {
    /// Parses a text that is exactly one expression. `Err` says why the text is none. The text can
    /// end no statement and begin none, because the parser reads nothing but expressions.
    ///
    /// The parser also takes clauses of a SELECT around the expression, and drops some without a
    /// trace (ALL, FOR READ ONLY). In parentheses it takes an expression alone.
    pub fn parse(text: &str) -> Result<Self, String> {
        let expression = Self::parse_target(text)?;
        Self::parse_target(&format!("({text}\n)"))?;
        Ok(expression)
    }

    /// Parses a text that is the one target of a SELECT without the word. `Err` says why it is not.
    fn parse_target(text: &str) -> Result<Self, String> {
        let text = c_name(text);
        let parse = std::panic::AssertUnwindSafe(|| {
            // SAFETY: the text lives as long as the call. In this mode, the parser returns one
            // statement, a SELECT without the word.
            unsafe {
                let mode = pg_sys::RawParseMode::RAW_PARSE_PLPGSQL_EXPR;
                let statements =
                    pgrx::PgList::<pg_sys::RawStmt>::from_pg(pg_sys::raw_parser(text.as_ptr(), mode));
                statements.get_ptr(0).map(|statement| (*statement).stmt.cast::<pg_sys::SelectStmt>())
            }
        });
        let select = refusals_of_analysis(move || { parse }.0())?;
        // SAFETY: the statement is a node that the parser has made.
        let expression = select.and_then(|select| unsafe { only_expression(&*select) });
        expression.map(Self).ok_or_else(|| "it is not exactly one expression".to_owned())
    }

    /// Returns whether each of the trees is what this expression means now as the condition of a
    /// trigger on the table. A tree is the text of a `pg_trigger.tgqual`. Names in the expression
    /// mean what the current search_path says. False also if there is no such table.
    ///
    /// Raises an ERROR if Postgres refuses the expression. While the function looks, it holds the
    /// lock of a SELECT on the table, so that columns stay as they are.
    pub fn means(self, table: TableOid, trees: &[&[u8]]) -> bool {
        let lock = pg_sys::AccessShareLock as i32;
        let kind = pg_sys::ParseExprKind::EXPR_KIND_TRIGGER_WHEN;
        // SAFETY: this is how CREATE TRIGGER analyzes a condition. The table is open during the
        // analysis, and is closed here or by the abort after an ERROR. Postgres alters the tree
        // while it analyzes it, so it gets a copy. The texts are from pg_trigger, and were written
        // by Postgres.
        unsafe {
            let relation = pg_sys::try_relation_open(table.into(), lock);
            if relation.is_null() {
                return false;
            }
            let analysis = pg_sys::make_parsestate(std::ptr::null_mut());
            for name in [c"old", c"new"] {
                let alias = pg_sys::makeAlias(name.as_ptr(), std::ptr::null_mut());
                let row =
                    pg_sys::addRangeTableEntryForRelation(analysis, relation, lock, alias, false, false);
                pg_sys::addNSItemToQuery(analysis, row, false, true, true);
            }
            let tree = pg_sys::copyObjectImpl(self.0.cast_const().cast()).cast();
            let tree = pg_sys::transformExpr(analysis, tree, kind);
            let tree = pg_sys::coerce_to_boolean(analysis, tree, c"WHEN".as_ptr());
            pg_sys::assign_expr_collations(analysis, tree);
            let is_same = |stored: &&[u8]| {
                let stored = c_string(*stored);
                pg_sys::equal(tree.cast_const().cast(), pg_sys::stringToNode(stored.as_ptr()))
            };
            let are_same = trees.iter().all(is_same);
            pg_sys::free_parsestate(analysis);
            pg_sys::relation_close(relation, lock);
            are_same
        }
    }

    pub(super) fn node(self) -> *mut pg_sys::Node {
        self.0
    }
}

/// Returns the expression of a SELECT that has nothing else. `None`: the SELECT has several
/// expressions, a name for its expression, or any clause.
///
/// # Safety
/// `select` is a tree that the parser has made.
unsafe fn only_expression(select: &pg_sys::SelectStmt) -> Option<*mut pg_sys::Node> {
    let has_list = [
        select.distinctClause,
        select.fromClause,
        select.groupClause,
        select.windowClause,
        select.valuesLists,
        select.sortClause,
        select.lockingClause,
    ]
    .iter()
    .any(|list| !list.is_null());
    let has_node = [select.whereClause, select.havingClause, select.limitOffset, select.limitCount]
        .iter()
        .any(|n| !n.is_null());
    if has_list || has_node || !select.intoClause.is_null() || !select.withClause.is_null() {
        return None;
    }
    // SAFETY: the caller promises a tree of the parser, whose targets are of type ResTarget.
    unsafe {
        let targets = pgrx::PgList::<pg_sys::ResTarget>::from_pg(select.targetList);
        let target = targets.get_ptr(0).filter(|_| targets.len() == 1)?;
        let is_plain = (*target).name.is_null() && (*target).indirection.is_null();
        // A lone "*" is no expression. The analysis of an expression would crash on it.
        (is_plain && !is_star((*target).val)).then_some((*target).val)
    }
}

/// Returns whether a target of a SELECT is a "*" without a name before it.
///
/// # Safety
/// `target` is a tree that the parser has made.
unsafe fn is_star(target: *mut pg_sys::Node) -> bool {
    // SAFETY: the caller promises a tree of the parser. The tag of a node says what the node is.
    unsafe {
        if (*target).type_ != pg_sys::NodeTag::T_ColumnRef {
            return false;
        }
        let fields = pgrx::PgList::<pg_sys::Node>::from_pg((*target.cast::<pg_sys::ColumnRef>()).fields);
        fields.get_ptr(0).is_some_and(|first| (*first).type_ == pg_sys::NodeTag::T_A_Star)
    }
}

/// Runs `body`, in which Postgres analyzes an expression and uses it. `Err`: Postgres refuses the
/// expression, and why. After an `Err` the transaction must be aborted.
pub fn refusals<R>(body: impl FnOnce() -> R + UnwindSafe) -> Result<R, String> {
    refusals_if(is_about_the_text, body)
}

/// Runs `body`, in which Postgres parses or analyzes an expression and does nothing else. So some
/// more errors are about the expression than `refusals` knows: the analysis raises internal errors
/// for some odd expressions, and a literal can violate the CHECK of a domain. `Err` as in
/// `refusals`.
pub fn refusals_of_analysis<R>(body: impl FnOnce() -> R + UnwindSafe) -> Result<R, String> {
    let is_refusal = |code| {
        is_about_the_text(code)
            || code == PgSqlErrorCode::ERRCODE_INTERNAL_ERROR
            || is_of_class(code, PgSqlErrorCode::ERRCODE_INTEGRITY_CONSTRAINT_VIOLATION)
    };
    refusals_if(is_refusal, body)
}

fn refusals_if<R>(
    is_refusal: impl Fn(PgSqlErrorCode) -> bool + UnwindSafe + RefUnwindSafe,
    body: impl FnOnce() -> R + UnwindSafe,
) -> Result<R, String> {
    PgTryBuilder::new(move || Ok(body()))
        .catch_others(move |error| match error {
            CaughtError::PostgresError(e) if is_refusal(e.sql_error_code()) => Err(e.message().to_owned()),
            other => other.rethrow(),
        })
        .execute()
}

/// Returns whether two SQLSTATEs are of one class: they begin with the same two characters.
fn is_of_class(code: PgSqlErrorCode, class: PgSqlErrorCode) -> bool {
    code as i32 & 0xfff == class as i32 & 0xfff
}

/// Returns whether an ERROR of the parser or of the analysis is about the text: it is of one of the
/// classes 0A, 22, 3F, 42 and 54, and is not about rights.
fn is_about_the_text(code: PgSqlErrorCode) -> bool {
    code != PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE
        && [
            PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
            PgSqlErrorCode::ERRCODE_DATA_EXCEPTION,
            PgSqlErrorCode::ERRCODE_INVALID_SCHEMA_NAME,
            PgSqlErrorCode::ERRCODE_SYNTAX_ERROR_OR_ACCESS_RULE_VIOLATION,
            PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
        ]
        .into_iter()
        .any(|class| is_of_class(code, class))
}
