//! Stores: our own for a local directory, one that fails on purpose, and what every store must be able to do.

pub mod file;


pub use file::FileStore;
