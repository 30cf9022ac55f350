//! Oban's tables of a prefix, the rights on them, the sequence of terms, and the extension itself. This part
//! knows Oban's tables; `pg` knows how to read and write any table.
//!
//! | file | what is there |
//! | --- | --- |
//! | `peers` | the table of leaders, open and locked, through its access methods |
//! | `peers_catalog` | the table of leaders, as the caches of the catalogs have it |
//! | `jobs` | the table of jobs, as the catalogs have it |
//! | `dialect` | how the programs write that table |
//! | `signals` | the table of remembered signals |
//! | `triggers` | the triggers on both tables |
//! | `watches` | the watches of tables of any kind |
//! | `staged`, `staging` | which prefixes stage; the statements of a stager |
//! | `prefixes` | which schemas are prefixes, and which are installed |
//! | `rights` | rights on a prefix |
//! | `terms` | the sequence of terms |
//! | `extension` | the extension, its functions and its sequence |

pub mod dialect;
pub mod extension;
pub mod jobs;
pub mod peers;
pub mod peers_catalog;
pub mod prefixes;
pub mod rights;
pub mod signals;
pub mod staged;
pub mod staging;
pub mod terms;
pub mod triggers;
pub mod watches;
