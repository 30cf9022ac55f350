//! The shape of an open and locked table, read from the raw rows of the catalogs. `logic::shape`
//! judges the shape.
//!
//! No expression of the table is evaluated or built. In particular, whether an index has an
//! expression is read in the index's row of pg_index, because building an IndexInfo would already
//! evaluate parts of the expression.

use std::ffi::CStr;

use pgrx::pg_sys;

use super::catalog_scan::{CHILDREN, COLUMNS, CONSTRAINTS, Key, PARENTS, RULES, lossy, rows};
use super::heap::Heap;
use super::index::{FIRST_OF_USERS, KeyIndex};
use super::tuple;
use crate::logic::ids::TableOid;
use crate::logic::jobs;
use crate::logic::shape::{Column, Constraint, ConstraintKind, Index, Publication, Shape, Type};

/// Returns the shape of a table, and the index by which the table's rows are found by `name`, if
/// there is such an index. `None`: another transaction holds a lock on an index, and the table was
/// opened without waiting.
pub fn of(table: &Heap<'_>) -> Option<(Shape, Option<KeyIndex>)> {
    let relation = table.relation();
    // SAFETY: an open relation has its row of pg_class.
    let form = unsafe { &*(*relation).rd_rel };
    let is_table = form.relkind as u8 == pg_sys::RELKIND_RELATION;
    if !is_table {
        return Some((Shape::default(), None));
    }
    let oid = table.oid();
    let constraints = constraints(oid);
    let (indexes, key) = indexes(table)?;
    let is_child =
        |catalog, column| !rows(catalog, &[(column, Key::Oid(oid.into()))], |_| Some(())).is_empty();
    let shape = Shape {
        is_table,
        is_temporary: form.relpersistence as u8 == pg_sys::RELPERSISTENCE_TEMP,
        // SAFETY: an open table has its access method.
        is_heap: unsafe { (*relation).rd_tableam == pg_sys::GetHeapamTableAmRoutine() },
        is_partition: form.relispartition,
        inherits: is_child(PARENTS, "inhrelid") || is_child(CHILDREN, "inhparent"),
        rules: rules(relation),
        policies_bind_owner: policies_bind_owner(relation),
        owner_lacks: owner_lacks(relation),
        owner: super::catalog::quoted_role(table.owner()),
        columns: columns(relation),
        referenced_by: referenced_by(relation, &constraints),
        constraints: constraints.into_iter().map(|(_, constraint)| constraint).collect(),
        indexes,
        publication: publication(relation),
    };
    Some((shape, key))
}

/// Returns the columns of a table of jobs, by the table's oid. Takes no lock on the table.
pub fn columns_of_jobs(table: TableOid) -> Vec<jobs::Column> {
    rows(COLUMNS, &[("attrelid", Key::Oid(table.into()))], |attribute| {
        if attribute.bool("attisdropped") || attribute.i16("attnum") <= 0 {
            return None;
        }
        let type_oid = attribute.oid("atttypid");
        let kind = if tuple::is_text(type_oid) {
            jobs::Type::Text
        } else if tuple::is_texts(type_oid) {
            jobs::Type::Texts
        } else if tuple::enum_label(type_oid, c"available").is_some() {
            jobs::Type::States
        } else {
            jobs::Type::Other
        };
        let is_virtual = attribute.char("attgenerated") == tuple::VIRTUAL;
        Some(jobs::Column { name: attribute.name("attname"), kind, is_virtual })
    })
}

/// Returns the columns of an open relation, without dropped ones.
fn columns(relation: pg_sys::Relation) -> Vec<Column> {
    // SAFETY: an open relation's descriptor has natts attributes.
    unsafe {
        let descriptor = (*relation).rd_att;
        (0..(*descriptor).natts)
            .map(|i| &*super::catalog_attribute(descriptor, i))
            .filter(|attribute| !attribute.attisdropped)
            .map(|attribute| Column {
                name: lossy(CStr::from_ptr(attribute.attname.data.as_ptr())),
                kind: type_of(attribute.atttypid, attribute.atttypmod),
                not_null: attribute.attnotnull,
                has_default: attribute.atthasdef,
                generated: attribute.attgenerated != 0 || attribute.attidentity != 0,
            })
            .collect()
    }
}

fn type_of(oid: pg_sys::Oid, modifier: i32) -> Type {
    match oid {
        pg_sys::TEXTOID | pg_sys::VARCHAROID if modifier == -1 => Type::Text,
        pg_sys::TIMESTAMPOID if modifier == -1 => Type::Timestamp,
        pg_sys::INT8OID => Type::Bigint,
        // SAFETY: the function looks up a type by its oid, and checks the oid itself.
        oid if unsafe { pg_sys::get_typtype(oid) } as u8 == pg_sys::TYPTYPE_DOMAIN => Type::Domain,
        _ => Type::Other,
    }
}

/// Returns the constraints of a table, each with its oid.
fn constraints(table: TableOid) -> Vec<(u32, Constraint)> {
    rows(CONSTRAINTS, &[("conrelid", Key::Oid(table.into()))], |row| {
        let kind = match row.char("contype") {
            b'c' => ConstraintKind::Check,
            b'f' => ConstraintKind::ForeignKey,
            b'x' => ConstraintKind::Exclusion,
            _ => ConstraintKind::Other,
        };
        Some((row.oid("oid").to_u32(), Constraint { name: row.name("conname"), kind }))
    })
}

/// Returns the foreign keys of other tables that refer to this table. Each entry is the name of a
/// table and the name of a constraint. The foreign keys are found by the internal triggers that
/// they have put on this table.
fn referenced_by(relation: pg_sys::Relation, own: &[(u32, Constraint)]) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for trigger in triggers(relation) {
        let constraint = trigger.tgconstraint;
        if !trigger.tgisinternal || own.iter().any(|(oid, _)| *oid == constraint.to_u32()) {
            continue;
        }
        // SAFETY: the function looks up a constraint by its oid, and the name is copied.
        let name = unsafe {
            let name = pg_sys::get_constraint_name(constraint);
            if name.is_null() { String::new() } else { lossy(CStr::from_ptr(name)) }
        };
        let other = super::catalog::qualified_name(trigger.tgconstrrelid.into()).unwrap_or_default();
        if !found.contains(&(other.clone(), name.clone())) {
            found.push((other, name));
        }
    }
    found
}

/// Returns the triggers of an open relation.
pub(super) fn triggers<'a>(relation: pg_sys::Relation) -> &'a [pg_sys::Trigger] {
    // SAFETY: the description is null, or has `numtriggers` triggers. The triggers live as long as
    // the relation is open and locked.
    unsafe {
        let description = (*relation).trigdesc;
        if description.is_null() {
            return &[];
        }
        std::slice::from_raw_parts((*description).triggers, (*description).numtriggers as usize)
    }
}

/// Returns the names of the rules of an open relation.
fn rules(relation: pg_sys::Relation) -> Vec<String> {
    // SAFETY: the pointer is null, or points to `numLocks` rules.
    let oids: Vec<u32> = unsafe {
        let rules = (*relation).rd_rules;
        if rules.is_null() {
            return Vec::new();
        }
        (0..(*rules).numLocks as usize).map(|i| (**(*rules).rules.add(i)).ruleId.to_u32()).collect()
    };
    oids.into_iter()
        .map(|oid| {
            let names = rows(RULES, &[("oid", Key::Oid(oid.into()))], |row| Some(row.name("rulename")));
            names.into_iter().next().unwrap_or_default()
        })
        .collect()
}

/// Returns whether row-level security applies to the table's owner.
fn policies_bind_owner(relation: pg_sys::Relation) -> bool {
    // SAFETY: the relation is open, and the function reads caches of catalogs.
    unsafe {
        let owner = (*(*relation).rd_rel).relowner;
        pg_sys::check_enable_rls((*relation).rd_id, owner, true)
            == pg_sys::CheckEnableRlsResult::RLS_ENABLED as i32
    }
}

/// Returns the rights to write rows that the table's owner lacks.
fn owner_lacks(relation: pg_sys::Relation) -> Vec<&'static str> {
    let rights =
        [(pg_sys::ACL_INSERT, "INSERT"), (pg_sys::ACL_UPDATE, "UPDATE"), (pg_sys::ACL_DELETE, "DELETE")];
    let lacks = |right: u32| {
        // SAFETY: the relation is open, and the function looks up a privilege by oids.
        unsafe {
            let owner = (*(*relation).rd_rel).relowner;
            pg_sys::pg_class_aclcheck((*relation).rd_id, owner, pg_sys::AclMode::from(right))
                != pg_sys::AclResult::ACLCHECK_OK
        }
    };
    rights.into_iter().filter(|(right, _)| lacks(*right)).map(|(_, name)| name).collect()
}

/// Returns all indexes of the table, and the index by which rows are found. If several indexes are
/// fit for that, the primary key is preferred. `None`: another transaction holds a lock on an
/// index, as for `of`.
fn indexes(table: &Heap<'_>) -> Option<(Vec<Index>, Option<KeyIndex>)> {
    let (mut found, mut key, mut key_is_primary) = (Vec::new(), None, false);
    let name = table.column("name").map(|column| column.number());
    for oid in table.index_oids() {
        // SAFETY: the index is open during the call of `look`.
        let look = |relation| unsafe { (index(relation, name), (*(*relation).rd_index).indisprimary) };
        let (index, is_primary) = table.look_at_index(oid, look)?;
        if index.is_key() && (key.is_none() || is_primary && !key_is_primary) {
            (key, key_is_primary) = (Some(KeyIndex { oid }), is_primary);
        }
        found.push(index);
    }
    Some((found, key))
}

/// Returns what `logic::shape` has to know about an index. `name` is the number of the table's
/// column `name`.
///
/// # Safety
/// `relation` is an open index.
unsafe fn index(relation: pg_sys::Relation, name: Option<i32>) -> Index {
    // SAFETY: the caller promises an open index. An open index has its row of pg_index, and as many
    // keys, collations and operator classes as that row says.
    unsafe {
        let form = &*(*relation).rd_index;
        let first = i32::from(*form.indkey.values.as_ptr());
        let constraint = pg_sys::get_index_constraint((*relation).rd_id);
        let constraint = (constraint != pg_sys::InvalidOid).then(|| {
            let name = pg_sys::get_constraint_name(constraint);
            if name.is_null() { String::new() } else { lossy(CStr::from_ptr(name)) }
        });
        let keys = form.indnkeyatts as usize;
        let collations = std::slice::from_raw_parts((*relation).rd_indcollation, keys);
        Index {
            name: super::catalog::qualified_name((*relation).rd_id.into()).unwrap_or_default(),
            constraint,
            unique: form.indisunique,
            on_name: keys == 1 && Some(first) == name,
            key_columns: key_columns(form, keys),
            deferrable: !form.indimmediate,
            valid: form.indisvalid && form.indisready,
            exclusion: form.indisexclusion,
            has_expressions: has(relation, pg_sys::Anum_pg_index_indexprs),
            has_predicate: has(relation, pg_sys::Anum_pg_index_indpred),
            built_in: is_built_in(relation),
            deterministic: !takes_padding_for_equal(relation)
                && collations
                    .iter()
                    .all(|c| *c == pg_sys::InvalidOid || pg_sys::get_collation_isdeterministic(*c)),
        }
    }
}

/// Returns the names of an index's key columns, without expressions.
fn key_columns(form: &pg_sys::FormData_pg_index, keys: usize) -> Vec<String> {
    // SAFETY: a row of pg_index has as many columns as it says, of which the first are keys.
    let columns = unsafe { std::slice::from_raw_parts(form.indkey.values.as_ptr(), keys) };
    let name_of_column = |column: &i16| {
        // SAFETY: the function looks up a column by numbers. The name is copied.
        unsafe {
            let name = pg_sys::get_attname(form.indrelid, *column, true);
            (!name.is_null()).then(|| lossy(CStr::from_ptr(name)))
        }
    };
    columns.iter().filter_map(name_of_column).collect()
}

/// Returns whether a key column has an operator class for char(n). A column of type text can have
/// such an operator class, which ignores spaces at the end.
///
/// # Safety
/// `relation` is an open index.
unsafe fn takes_padding_for_equal(relation: pg_sys::Relation) -> bool {
    const BPCHAR_OPS: u32 = 426;
    const BPCHAR_PATTERN_OPS: u32 = 2097;
    // SAFETY: the caller promises an open index, which has as many operator families as key
    // columns.
    unsafe {
        let keys = (*(*relation).rd_index).indnkeyatts as usize;
        let families = std::slice::from_raw_parts((*relation).rd_opfamily, keys);
        families.iter().any(|family| [BPCHAR_OPS, BPCHAR_PATTERN_OPS].contains(&family.to_u32()))
    }
}

/// Returns whether an insertion into an index runs no user's code. Such an index has no expression,
/// no predicate and no exclusion constraint, and its access method, operator classes and types
/// belong to Postgres.
///
/// # Safety
/// `relation` is an open index.
pub(super) unsafe fn is_plain(relation: pg_sys::Relation) -> bool {
    // SAFETY: the caller promises an open index.
    unsafe {
        !has(relation, pg_sys::Anum_pg_index_indexprs)
            && !has(relation, pg_sys::Anum_pg_index_indpred)
            && !(*(*relation).rd_index).indisexclusion
            && is_built_in(relation)
    }
}

/// Returns whether a column of an index's row of pg_index is not NULL.
///
/// # Safety
/// `relation` is an open index.
unsafe fn has(relation: pg_sys::Relation, column: u32) -> bool {
    // SAFETY: the caller promises an open index, which keeps a copy of the row.
    unsafe { !pg_sys::heap_attisnull((*relation).rd_indextuple, column as i32, std::ptr::null_mut()) }
}

/// Returns whether the access method, all operator families and all key types of an index belong to
/// Postgres. The types count, because Postgres' operator classes for any range or array call
/// functions that the type's creator chose: a GiST index calls a range's subtype_diff.
///
/// # Safety
/// `relation` is an open index.
unsafe fn is_built_in(relation: pg_sys::Relation) -> bool {
    // SAFETY: the caller promises an open index. The index has as many operator families as key
    // columns. For each key column it has as many support functions as its access method says.
    unsafe {
        if (*(*relation).rd_rel).relam.to_u32() >= FIRST_OF_USERS {
            return false;
        }
        let keys = (*(*relation).rd_index).indnkeyatts as usize;
        let families = std::slice::from_raw_parts((*relation).rd_opfamily, keys);
        let support = (*(*relation).rd_indam).amsupport as usize;
        let procedures = std::slice::from_raw_parts((*relation).rd_support, keys * support);
        let form = &*(*relation).rd_index;
        let columns = std::slice::from_raw_parts(form.indkey.values.as_ptr(), keys);
        // Column 0 is an expression, which is an obstacle by itself.
        let is_own =
            |column: i16| column == 0 || pg_sys::get_atttype(form.indrelid, column).to_u32() < FIRST_OF_USERS;
        families.iter().all(|family| family.to_u32() < FIRST_OF_USERS)
            && procedures.iter().all(|procedure| procedure.to_u32() < FIRST_OF_USERS)
            && columns.iter().all(|column| is_own(*column))
    }
}

/// Returns what in the table's publications would refuse an UPDATE or a DELETE.
fn publication(relation: pg_sys::Relation) -> Publication {
    // SAFETY: the relation is open, and the function reads the catalogs of publications. The
    // function walks filters and does not evaluate them.
    unsafe {
        let mut description = pg_sys::PublicationDesc::default();
        pg_sys::RelationBuildPublicationDesc(relation, &raw mut description);
        let actions = description.pubactions;
        let has_identity = pg_sys::RelationGetReplicaIndex(relation) != pg_sys::InvalidOid
            || (*(*relation).rd_rel).relreplident as u8 == pg_sys::REPLICA_IDENTITY_FULL;
        #[cfg(feature = "pg18")]
        let generated = description.gencols_valid_for_update && description.gencols_valid_for_delete;
        #[cfg(not(feature = "pg18"))]
        let generated = true;
        Publication {
            lacks_identity: (actions.pubupdate || actions.pubdelete) && !has_identity,
            misfit: !(description.rf_valid_for_update
                && description.rf_valid_for_delete
                && description.cols_valid_for_update
                && description.cols_valid_for_delete
                && generated),
        }
    }
}
