//! Encoders against DuckDB itself: the same values through its own casts and its own Arrow export.

pub(crate) mod duck;

mod arrow;
mod json;
mod text;
