//! Stores: our own for a local directory, one that fails on purpose, and what every store must be able to do.

pub mod conformance;
pub mod faulty;
pub mod file;

pub use faulty::{Call, Fault, FaultyStore, Op};
pub use file::FileStore;
