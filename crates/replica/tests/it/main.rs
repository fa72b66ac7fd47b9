//! Claims about a replica, on bytes that DuckDB 1.5.5 wrote (`testdata/life`, made by `testdata/make.py`).

mod damage;
mod faults;
mod files;
mod framing;
mod frozen;
mod life;
mod model;
mod opening;
mod past;
mod shipping;
mod stores;
mod sweep;
mod verify;
