//! The PostgreSQL engine: drives the server's own tools, and believes them only with evidence.
//!
//! [`POSTGRES`] is all that a front end needs. Everything, the SQL included, goes through host processes (`psql`,
//! `pg_dump`, …), so that peer authentication and containers work alike.

mod config;
mod logical;
mod psql;
mod server;
mod sql;
mod tools;
