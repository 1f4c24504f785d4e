//! Exact counting, searching and fair sampling of unit vectors inside spherical caps.

pub mod control;
pub mod error;
pub mod store;
